"""Means over seeds, and how sure they are: Student's t, as a few seeds need it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; beyond them the normal's
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
NORMAL_975 = 1.960


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
        """Surely, to 95 %. False for a single seed."""
        return self.low > 0


def mean(values: Sequence[float]) -> Mean:
    """Of one number a seed."""
    n = len(values)
    value = sum(values) / n
    if n == 1:
        return Mean(value, math.nan, tuple(values))
    deviation = math.sqrt(sum((v - value) ** 2 for v in values) / (n - 1))
    quantile = T_975[n - 2] if n - 2 < len(T_975) else NORMAL_975
    return Mean(value, quantile * deviation / math.sqrt(n), tuple(values))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Mean:
    """Of the differences, seed by seed: both saw the same data in the same order."""
    return mean([a - b for a, b in zip(ours, theirs, strict=True)])
