"""What the runs of a study came to: one `Result` a run, with its curves, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.logged import DEPTHS
from pretrain.origin import Origin
from pretrain.study.curve import Curve
from pretrain.study.one_run import Run, left_by


@dataclass(frozen=True)
class Arm:
    """What is compared: a way to train and its N, over all seeds."""

    name: str  # "n4", "equal-flops-n4"
    label: str  # "N = 4"
    passes: int  # N

    @property
    def is_control(self) -> bool:
        """Whether it differs from another in more than N."""
        return self.name != f"n{self.passes}"


@dataclass(frozen=True)
class Result:
    """One finished run."""

    arm: Arm
    seed: int
    passes: int  # that it was trained with: one, for some arms
    scores: dict[int, dict[str, float]]  # by the N it is tested at: "loss", and each accuracy
    bits: dict[int, list[float | None]]  # of text: bits per byte by window, all windows last
    curve: Curve
    rows: list[float] = field(default_factory=list)  # held-out loss by row, at the trained N
    origin: Origin = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Its loss is no number at the N that it was trained with."""
        return math.isnan(self.scores[self.passes]["loss"])


def read_result(folder: Path, run: Run, arm: Arm, seed: int) -> Result:
    """Of a run that is done."""
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


def measures(results: list[Result]) -> list[str]:
    """What was measured, the deepest last: "hops_1", "hops_2"; "loss" alone if there is no more."""
    return in_order(n for r in results for scores in r.scores.values() for n in scores)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of measures, each once, the deepest last; "loss" alone if there is no more."""
    found = [name for name in dict.fromkeys(names) if name != "loss"]
    by_depth = [name for name in found if name.rpartition("_")[0] in DEPTHS]
    if by_depth:
        return sorted(by_depth, key=lambda name: int(name.rpartition("_")[2]))
    return found[::-1] or ["loss"]  # a task names its strictest measure first


def shown_name(measure: str) -> str:
    """ "hops 4"."""
    return measure.replace("_", " ")
