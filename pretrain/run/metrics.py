"""What a run writes about itself: metrics.jsonl, one JSON object a line, and the same for
TensorBoard.

Every line has "kind" ("train", "eval", "warning", "skipped", "rollback") and "step", the optimiser
steps done when it was written. Numbers that are not finite are null. A resumed run first drops the
lines after its checkpoint, so that no step is there twice. Only what was skipped before a rollback
stays, as the record of why: it has "rollbacks", how many there had been by then.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from parallel import mesh
from pretrain.config.schema import Config
from pretrain.data.batch import Batch
from pretrain.data.source import BatchSource
from pretrain.errors import UserError
from pretrain.files import parse_json, write_atomically, writes_user_file
from pretrain.model.flops import peak, step_flops


class Metrics:
    """Writes the rows of one run; use it on one rank only, and as a context, which flushes and
    closes it.

    What cannot be written, as on a full disk, is a UserError.
    """

    def __init__(self, run: Path, step: int | None, evaluated: bool, rollbacks: int) -> None:
        """
        Args:
            step: of the checkpoint that the run goes on from; None: it begins anew.
            evaluated: the evaluation of that step, if it has one, was over when it was saved.
            rollbacks: so many have led there.
        """
        self._path = path = run / "metrics.jsonl"
        with writes_user_file(path):
            kept = [] if step is None else _rows_until(path, step, evaluated, rollbacks)
            write_atomically(path, "".join(line + "\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")
            self._board = SummaryWriter(
                str(run / "tensorboard"), purge_step=step + 1 if step else 0
            )

    def write(self, kind: str, step: int, row: dict[str, Any]) -> None:
        """Adds one row, visible at once to whoever follows the file."""
        with writes_user_file(self._path):
            self._file.write(
                json.dumps({"kind": kind, "step": step, **_finite(row)}, ensure_ascii=False) + "\n"
            )
            self._file.flush()
            for tag, value in _scalars(kind, row):
                self._board.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Writes what still waits to be written."""
        with writes_user_file(self._path):
            self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            with writes_user_file(self._path):
                self._file.close()
                self._board.close()
        except UserError:
            if error is None:  # otherwise that one says why the run ends
                raise


def _rows_until(path: Path, step: int, evaluated: bool, rollbacks: int) -> list[str]:
    """The whole lines of what led to `step`; a line cut short by a crash is dropped, as half an
    evaluation is.
    """
    kept = []
    for line in (
        path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    ):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            continue
        before, half = (
            row.get("rollbacks", rollbacks),
            not evaluated and row.get("kind") in ("eval", "warning"),
        )
        if not isinstance(before, int):
            continue
        if before < rollbacks or (before == rollbacks and row["step"] <= step - half):
            kept.append(line)
    return kept


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(tag: str, value: Any) -> list[tuple[str, float]]:
    """(tag, number) of every number in a row but its samples; what is in a list or dict gets a tag
    of its own.
    """
    if (
        tag.endswith("/samples")
        or isinstance(value, bool)
        or not isinstance(value, int | float | dict | list)
    ):
        return []
    if isinstance(value, int | float):
        return [(tag, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [scalar for key, item in items for scalar in _scalars(f"{tag}/{key}", item)]


class Throughput:
    """How fast training has been since the last logging step, evaluations and checkpoints left out."""

    def __init__(self, config: Config, source: BatchSource, step: int, tokens: int) -> None:
        self._config, self._source = config, source
        self._peak = peak(mesh.device())
        self._step, self._tokens, self._waited = step, tokens, source.wait_seconds
        self._begin, self._pause = time.perf_counter(), 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training time."""
        begin = time.perf_counter()
        yield
        self._pause += time.perf_counter() - begin

    def rates(self, step: int, tokens: int, batch: Batch) -> dict[str, float | None]:
        """The rates up to this step, over all ranks.

        Token-passes and FLOPs are those of this data-parallel rank's `batch`, taken for all since
        the last call. Utilisation is of the device's dense bf16 peak (of its measured fp32 rate on
        a CPU).
        """
        seconds = time.perf_counter() - self._begin - self._pause
        done = step_flops(batch, self._config.model, self._config.sleep)
        scale = (step - self._step) * mesh.dp_size() / seconds
        flops = (done.forward + done.backward) * scale
        rates = {
            "tokens_per_s": (tokens - self._tokens) / seconds,
            "wake_tokens_per_s": done.wake * scale,
            "sleep_tokens_per_s": done.sleep * scale,
            "flops_per_s": flops,
            "mfu": flops / mesh.world_size() / self._peak if self._peak else None,
            "data_wait_s": self._source.wait_seconds - self._waited,
        }
        self._step, self._tokens, self._waited = step, tokens, self._source.wait_seconds
        self._begin, self._pause = time.perf_counter(), 0.0
        return rates
