"""What the runs of a study came to: one `Result` a run, with its curves, and what is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.report import DEPTHS, read_run
from pretrain.study.one_run import Run, evaluations


@dataclass(frozen=True)
class Arm:
    """What is compared: a way to train and its N, over all seeds."""

    name: str  # "n4", "equal-flops-n4"
    label: str  # "N = 4"
    passes: int  # N


@dataclass(frozen=True)
class Curve:
    """How a run got there, at each of its logging steps."""

    steps: list[int]
    tokens: list[int]
    flops: list[float]  # counted, see `pretrain.model.flops`
    seconds: list[float]  # of training, without evaluations and saves
    losses: list[float]
    evaluated: list[tuple[int, dict[str, float]]]  # (step, accuracies) of held-out data

    def at(self, step: int, axis: str) -> float:
        """Tokens, FLOPs or seconds after a step: in between two logging steps, evenly."""
        values: list[float] = getattr(self, axis)
        before = [i for i, s in enumerate(self.steps) if s <= step]
        if not before:
            return values[0] * step / self.steps[0]
        i = before[-1]
        if i + 1 == len(self.steps):
            return values[i]
        share = (step - self.steps[i]) / (self.steps[i + 1] - self.steps[i])
        return values[i] + share * (values[i + 1] - values[i])


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


def read_result(folder: Path, run: Run, arm: Arm, seed: int) -> Result:
    """Of a run that is done."""
    scores, bits, rows = {}, {}, []
    passes = run.settings().sleep.passes
    for found in evaluations(folder, run):
        if "bits_per_byte" in found:
            by_window = found["bits_per_byte_per_window"]
            bits[int(found["passes"])] = [*by_window, found["bits_per_byte"]]
        scores[int(found["passes"])] = {"loss": found["loss"], **found.get("accuracy", {})}
        if found["passes"] == passes:
            rows = [loss for loss in found.get("loss_per_row", []) if loss is not None]
    return Result(arm, seed, passes, scores, bits, _curve(folder / "runs" / run.name), rows)


def _curve(path: Path) -> Curve:
    metrics = read_run(path.name, path)
    curve = Curve([], [], [], [], [], [])
    seconds = flops = 0.0
    tokens = 0
    for row in metrics.train:
        took = (row["tokens"] - tokens) / row["tokens_per_s"]
        seconds, flops, tokens = seconds + took, flops + row["flops_per_s"] * took, row["tokens"]
        curve.steps.append(row["step"])
        curve.tokens.append(tokens)
        curve.flops.append(flops)
        curve.seconds.append(seconds)
        curve.losses.append(row["loss"])
    curve.evaluated.extend((row["step"], _measured(row)) for row in metrics.evaluations)
    return curve


def _measured(row: dict[str, Any]) -> dict[str, float]:
    return {"loss": row["loss"], **row.get("accuracy", {})}


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
