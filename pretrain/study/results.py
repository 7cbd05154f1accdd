"""Results of the runs of a study: one `Result` per run, with its curves, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.logged import depth_of
from pretrain.origin import Origin
from pretrain.study.curve import Curve
from pretrain.study.one_run import Run, left_by


@dataclass(frozen=True)
class Arm:
    """An arm of a study: a way to train with its N, over all seeds."""

    name: str  # "n4", "equal-flops-n4"
    label: str  # "N = 4"
    passes: int  # N

    @property
    def is_control(self) -> bool:
        """Whether it differs from the other arms in more than N."""
        return self.name != f"n{self.passes}"


@dataclass(frozen=True)
class Result:
    """One finished run."""

    arm: Arm
    seed: int
    passes: int  # the N that it was trained with: 1 for some arms
    scores: dict[int, dict[str, float]]  # by the N at test: "loss", and each accuracy
    bits: dict[int, list[float | None]]  # for text: bits per byte by window, then overall
    curve: Curve
    rows: list[float] = field(default_factory=list)  # held-out loss by row, at the trained N
    origin: Origin = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether its loss is nan at the N that it was trained with."""
        return math.isnan(self.scores[self.passes]["loss"])


def read_result(folder: Path, run: Run, arm: Arm, seed: int) -> Result:
    """The result of a finished run."""
    scores, bits, rows = {}, {}, []
    passes = run.settings().sleep.passes
    left = left_by(folder, run)
    for found in left.evaluations:
        if "bits_per_byte" in found:
            by_window = found["bits_per_byte_per_window"]
            bits[int(found["passes"])] = [*by_window, found["bits_per_byte"]]
        scores[int(found["passes"])] = {"loss": found["loss"], **found.get("accuracy", {})}
        if found["passes"] == passes:
            rows = [loss for loss in found.get("loss_per_row", []) if loss is not None]
    return Result(arm, seed, passes, scores, bits, left.curve, rows, left.origin)


def measures(results: Sequence[Result]) -> list[str]:
    """The measures, the deepest last: "hops_1", "hops_2"; only "loss" if there are no others."""
    return in_order(n for r in results for scores in r.scores.values() for n in scores)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of measures, each once, the deepest last; only "loss" if there are no others."""
    found = [name for name in dict.fromkeys(names) if name != "loss"]
    by_depth = {name: depth for name in found if (depth := depth_of(name)) is not None}
    if by_depth:
        return sorted(by_depth, key=by_depth.__getitem__)
    return found[::-1] or ["loss"]  # a task names its strictest measure first


def shown_name(measure: str) -> str:
    """ "hops 4"."""
    return measure.replace("_", " ")
