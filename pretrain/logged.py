"""Reads what a run logged, from its metrics.jsonl.

One object per line: {"kind": "train" | "eval", "step", "loss", ...}; "eval" lines come from
`pretrain.evaluate.Evaluation` and also have "passes", "loss_per_window", "loss_per_position" and,
for a task, "accuracy".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import UserError
from pretrain.files import parse_json

Row = dict[str, Any]
# accuracies named "hops_4" are plotted against 4
DEPTHS = {
    "hops": "hops k",
    "op": "operations in the story",
    "steps": "steps t",
    "length": "length of the word",
    "depth": "depth of the graph",
}


def depth_of(measure: str) -> int | None:
    """The depth of an accuracy: 4 for "hops_4"; None if it has none."""
    kind, _, depth = measure.rpartition("_")
    return int(depth) if kind in DEPTHS and depth.isdecimal() else None


@dataclass
class RunMetrics:
    """What one run logged, by step; a step that was logged again after resuming counts once."""

    label: str
    train: list[Row]
    evaluations: list[Row]  # at the largest evaluated N, which is the trained one
    with_fewer: dict[int, Row]  # the last evaluation's rows with fewer passes, by N
    colour: str = ""  # the same in every plot

    @property
    def passes(self) -> int | None:
        return self.evaluations[-1].get("passes") if self.evaluations else None

    @property
    def accuracy(self) -> dict[str, float]:
        """The last evaluation's accuracies; empty for text."""
        return self.evaluations[-1].get("accuracy", {}) if self.evaluations else {}

    def of_set(self, name: str) -> list[Row]:
        """The evaluations of one of data.heldout_sets."""
        return [
            {"step": row["step"], **row["sets"][name]}
            for row in self.evaluations
            if name in row.get("sets", {})
        ]


def read_run(label: str, path: Path) -> RunMetrics:
    """The metrics of the run in folder `path`."""
    train: dict[int, Row] = {}
    evaluations: dict[tuple[int, int], Row] = {}
    for row in read_metrics(path / "metrics.jsonl"):
        if row["kind"] == "train":
            train[row["step"]] = row
        elif row["kind"] == "eval":
            evaluations[row["step"], row.get("passes", 0)] = row
    if not train and not evaluations:
        raise UserError(f"{path / 'metrics.jsonl'}: nothing was logged yet; train the run first")
    most = max((passes for _, passes in evaluations), default=0)
    at_most = [evaluations[key] for key in sorted(evaluations) if key[1] == most]
    fewer = {n: evaluations[step, n] for step, n in sorted(evaluations) if n < most}
    ends = {n: row for n, row in fewer.items() if row["step"] == at_most[-1]["step"]}
    return RunMetrics(label, [train[step] for step in sorted(train)], at_most, ends)


def read_metrics(path: Path) -> Iterator[Row]:
    """The rows of a metrics.jsonl. UserError: it cannot be read, or a line is not a row."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the run's metrics: {error.strerror}; is this a run's folder?"
        ) from None
    # a line without its newline is still being written
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = parse_json(line)
            row["kind"], row["step"]
            for each in (row, *row.get("sets", {}).values()):
                if "loss" in each and each["loss"] is None:
                    each["loss"] = math.nan  # written as null, because JSON has no NaN
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path}:{number}: not a line of metrics; remove it") from None
        yield row
