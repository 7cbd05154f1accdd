"""Means over seeds with 95 % intervals by Student's t, suited to a few seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval."""

    value: float
    half: float  # half the interval's width; nan for a single seed
    values: tuple[float, ...]  # by seed

    @property
    def count(self) -> int:
        """Seeds."""
        return len(self.values)

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    @property
    def is_above_zero(self) -> bool:
        """Whether significantly above zero (95 %). False for fewer than three seeds."""
        return self.count > 2 and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether significantly below zero (95 %). False for fewer than three seeds."""
        return self.count > 2 and self.high < 0


def mean(values: Sequence[float]) -> Mean:
    """The mean of one number per seed."""
    n = len(values)
    value = sum(values) / n
    if n == 1:
        return Mean(value, math.nan, tuple(values))
    deviation = math.sqrt(sum((v - value) ** 2 for v in values) / (n - 1))
    half = float(student.ppf(0.975, df=n - 1)) * deviation / math.sqrt(n)
    return Mean(value, half, tuple(values))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Mean:
    """The mean of paired differences, seed by seed: both saw the same data in the same order."""
    return mean([a - b for a, b in zip(ours, theirs, strict=True)])
