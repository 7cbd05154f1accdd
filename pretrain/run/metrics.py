"""Writes a run's metrics: metrics.jsonl, one JSON object per line, and the same for TensorBoard.

Every line has "kind" ("train", "eval", "warning", "skipped", "rollback") and "step", the optimiser
steps done when it was written (docs/metrics.md). Non-finite numbers are null. A resumed run first
drops the lines written after its checkpoint, so that no step occurs twice (`_keep`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, Self, TextIO

from torch.utils.tensorboard import SummaryWriter

from pretrain.errors import UserError
from pretrain.files import finite, parse_json, write_atomically, writes_user_file
from pretrain.logged import Row
from pretrain.run.agreement import on_rank_0
from pretrain.run.scalars import scalars


class ResumePoint(NamedTuple):
    """What metrics need to know of the checkpoint that a run resumes from."""

    step: int
    evaluated: bool  # the evaluation of that step, if it has one, was done when it was saved
    rollbacks: int  # how many the run had made by then


class Metrics:
    """Writes the rows of one run on rank 0; does nothing on the other ranks.

    A context manager that flushes and closes. A failed write, as on a full disk, is a UserError; on
    opening, it is raised on every rank.
    """

    def __init__(self, run: Path, resumed: ResumePoint | None) -> None:
        """
        Args:
            resumed: what the run resumes from; None: a new run.
        """
        self.last: dict[str, Row] = {}  # the last row written here, by kind
        self._path = run / "metrics.jsonl"
        self._file: TextIO | None = None
        on_rank_0("opening metrics.jsonl", lambda: self._open(resumed))

    def _open(self, resumed: ResumePoint | None) -> None:
        with writes_user_file(self._path):
            kept = [] if resumed is None else _kept_lines(self._path, resumed)
            write_atomically(self._path, "".join(line + "\n" for line in kept))
            self._file = self._path.open("a", encoding="utf-8")
            purged = resumed.step + 1 if resumed and resumed.step else 0
            board = str(self._path.with_name("tensorboard"))
            self._board = SummaryWriter(board, purge_step=purged)

    def write(self, kind: str, step: int, row: Row) -> None:
        """Appends one row and flushes it, so that readers see it at once."""
        self.last[kind] = row
        if self._file is None:
            return
        text = json.dumps({"kind": kind, "step": step, **finite(row)}, ensure_ascii=False)
        with writes_user_file(self._path):
            self._file.write(text + "\n")
            self._file.flush()
            for tag, value in scalars(kind, row):
                self._board.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Flushes what TensorBoard's writer still holds."""
        if self._file is not None:
            with writes_user_file(self._path):
                self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._file is None:
            return
        try:
            with writes_user_file(self._path):
                self._file.close()
                self._board.close()
        except UserError:
            if error is None:  # otherwise the first error says why the run ends
                raise


def _kept_lines(path: Path, resumed: ResumePoint) -> list[str]:
    """The lines that stay; lines that are no rows, such as one cut short by a crash, do not."""
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and _keep(row, resumed):
            kept.append(line)
    return kept


def _keep(row: Row, resumed: ResumePoint) -> bool:
    """Whether a row stays when a run resumes from a checkpoint."""
    rollbacks = row.get("rollbacks", resumed.rollbacks)  # how many there were when it was written
    if not isinstance(rollbacks, int):
        return False  # not written by us
    if rollbacks < resumed.rollbacks:
        return True  # skipped before the run went back: the record of why it did
    if rollbacks > resumed.rollbacks:
        return False  # from a rollback that was not saved, and will be repeated
    if row["step"] == resumed.step and row.get("kind") in ("eval", "warning"):
        return resumed.evaluated  # if not, it may be half an evaluation, and will be repeated
    return row["step"] <= resumed.step  # later steps will be repeated
