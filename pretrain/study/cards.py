"""Assigns GPUs to the runs of a study: those that the fewest other runs use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

import torch


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; [] without any."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def least_used(cards: Sequence[str], used: Iterable[Sequence[str]], count: int) -> tuple[str, ...]:
    """`count` of the cards, the first of those that the fewest runs use.

    Args:
        used: the cards of each run in progress.
    """
    times = Counter(card for each in used for card in each)
    return tuple(sorted(cards, key=lambda card: times[card])[:count])
