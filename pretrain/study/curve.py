"""A run's training curve: tokens, FLOPs, time and results at its logging steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.logged import read_run


@dataclass(frozen=True)
class Curve:
    """The curve of one run, at each of its logging steps."""

    steps: list[int]
    tokens: list[int]
    flops: list[float]  # counted, see `pretrain.model.flops`
    seconds: list[float]  # of training, without evaluations and saves
    evaluated: list[tuple[int, dict[str, float]]]  # (step, loss and accuracies) of held-out data

    @classmethod
    def of(cls, path: Path) -> Curve:
        """The curve from the metrics in a run's folder."""
        metrics = read_run(path.name, path)
        curve = cls([], [], [], [], [])
        seconds = flops = 0.0
        tokens = 0
        for row in metrics.train:
            took = (row["tokens"] - tokens) / row["tokens_per_s"]
            seconds += took
            flops += row["flops_per_s"] * took
            tokens = row["tokens"]
            curve.steps.append(row["step"])
            curve.tokens.append(tokens)
            curve.flops.append(flops)
            curve.seconds.append(seconds)
        for row in metrics.evaluations:
            curve.evaluated.append((row["step"], {"loss": row["loss"], **row.get("accuracy", {})}))
        return curve

    def at(self, step: int, axis: str) -> float:
        """Tokens, FLOPs or seconds after a step; interpolated linearly between logging steps."""
        values: list[float] = getattr(self, axis)
        before = [i for i, s in enumerate(self.steps) if s <= step]
        if not before:
            return values[0] * step / self.steps[0]
        i = before[-1]
        if i + 1 == len(self.steps):
            return values[i]
        share = (step - self.steps[i]) / (self.steps[i + 1] - self.steps[i])
        return values[i] + share * (values[i + 1] - values[i])
