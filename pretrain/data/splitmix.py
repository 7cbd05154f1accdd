"""SplitMix64: stateless random numbers, as a function of a key and a counter.

Steele, Lea and Flood 2014. Its output is part of the format of runs: other numbers would change the
order of documents and the rows of tasks.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
W = TypeVar("W", int, Words)  # one number, or all of an array at once

STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def splitmix64(key: int | Words, counter: W) -> W:
    """The counter-th 64-bit number of the stream `key`; counters may be an array."""
    z: Any = counter
    return mix((z + 1) * STEP + key)


def mix(x: W) -> W:
    """The finaliser: a bijection of 64-bit words that hides the structure of a counter."""
    z: Any = x & _MASK  # truncates a Python int to 64 bits; array elements wrap by themselves
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
