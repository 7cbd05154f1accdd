"""N of each training step: fixed, drawn at random, or rising over the first steps (curriculum)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pretrain.config.schema import Config, SleepConfig
from pretrain.data.splitmix import splitmix64

BLOCK = 1 << 20  # how many steps' N are drawn at once


def _fewest(sleep: SleepConfig) -> int:
    """The smallest N that a training step may have; the largest is sleep.passes."""
    return sleep.min_passes or (1 if sleep.curriculum else sleep.passes)


def draw_passes(config: Config, step: int) -> int:
    """N of the step that follows `step` steps: the same on all ranks, and in a resumed run."""
    sleep, fewest = config.sleep, _fewest(config.sleep)
    kinds = sleep.passes - fewest + 1
    if sleep.curriculum:
        return min(sleep.passes, fewest + step * kinds // sleep.curriculum)
    return fewest + splitmix64(config.run.seed, step) % kinds


def drawn_passes(config: Config) -> Counter[int]:
    """How many steps of a whole run have each N; there may be a hundred million steps."""
    sleep, fewest, steps = config.sleep, _fewest(config.sleep), config.train.steps
    kinds = sleep.passes - fewest + 1
    if kinds == 1:
        return Counter({fewest: steps})
    if sleep.curriculum:
        begins = [min(steps, -(-i * sleep.curriculum // kinds)) for i in range(kinds)]
        ends = [*begins[1:], steps]
        return Counter({fewest + i: end - begins[i] for i, end in enumerate(ends)})
    drawn: Counter[int] = Counter()
    for begin in range(0, steps, BLOCK):
        block = np.arange(begin, min(steps, begin + BLOCK), dtype=np.uint64)
        often = np.bincount((splitmix64(config.run.seed, block) % kinds).astype(int))
        drawn.update({fewest + i: int(count) for i, count in enumerate(often)})
    return drawn
