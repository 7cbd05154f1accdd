"""Means over seeds, and how sure they are: Student's t, as a few seeds need it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval."""

    value: float
    half: float  # of the interval's width; nan for a single seed: it says nothing of others
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
        """Surely, to 95 %. False of fewer than three seeds, which say too little of others."""
        return self.count > 2 and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """The same of less."""
        return self.count > 2 and self.high < 0


def mean(values: Sequence[float]) -> Mean:
    """Of one number a seed."""
    n = len(values)
    value = sum(values) / n
    if n == 1:
        return Mean(value, math.nan, tuple(values))
    deviation = math.sqrt(sum((v - value) ** 2 for v in values) / (n - 1))
    half = float(student.ppf(0.975, df=n - 1)) * deviation / math.sqrt(n)
    return Mean(value, half, tuple(values))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Mean:
    """Of the differences, seed by seed: both saw the same data in the same order."""
    return mean([a - b for a, b in zip(ours, theirs, strict=True)])
