"""Random numbers that depend only on (seed, stream, row): a row is the same in any batch or rank.

SplitMix64 with a hash of the row as its key, vectorised over rows: a counter replaces a generator's
state.
"""

from __future__ import annotations

import hashlib
import random
import zlib

import numpy as np
from numpy.typing import NDArray

from pretrain.data.splitmix import STEP, Words, mix, splitmix64

Ints = NDArray[np.int64]


class Rows:
    """The random numbers of rows position..position+rows-1 of a stream.

    Every draw has a name: the same name gives the same numbers again, other names independent ones.
    """

    def __init__(self, seed: int, stream: str, position: int, rows: int) -> None:
        start = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little")
        index = np.arange(position, position + rows, dtype=np.uint64)
        self._keys = mix(index * np.uint64(STEP) + np.uint64(start))  # [B]

    def words(self, name: str, count: int) -> Words:
        """[B, count] uniform 64-bit words."""
        draw = mix(self._keys ^ np.uint64(mix(zlib.crc32(name.encode()))))
        return splitmix64(draw[:, None], np.arange(count, dtype=np.uint64))

    def uniform(self, name: str, count: int) -> NDArray[np.float64]:
        """[B, count] floats in [0, 1)."""
        return np.multiply(self.words(name, count) >> np.uint64(11), 2.0**-53, dtype=np.float64)

    def below(self, name: str, count: int, bound: int) -> Ints:
        """[B, count] integers in 0..bound-1, for bounds far below 2**32."""
        high = self.words(name, count) >> np.uint64(32)
        return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def order(self, name: str, count: int, size: Ints | int | None = None) -> Ints:
        """[B, count] permutations; with `size` ([B] or one), the first size[b] entries permute
        0..size[b]-1.
        """
        words = self.words(name, count)
        if size is not None:
            beyond = np.arange(count) >= np.broadcast_to(size, len(words))[:, None]
            words[beyond] = np.iinfo(np.uint64).max
        return np.argsort(words, axis=1)

    def distinct(self, name: str, count: int, bound: int) -> Ints:
        """[B, count] integers in 0..bound-1, distinct within a row, all choices equally likely."""
        if bound <= 4 * count:
            return self.order(name, bound)[:, :count]
        numbers = self.below(name, count, bound)
        for attempt in range(1000):
            repeated = _repeated(numbers)
            if not repeated.any():
                return numbers
            numbers = np.where(repeated, self.below(f"{name}/{attempt}", count, bound), numbers)
        raise AssertionError(
            "at most a quarter of the numbers is taken, so a thousand attempts do not all fail"
        )

    def generators(self) -> list[random.Random]:
        """One ordinary generator per row, for draws that are not vectorised over rows."""
        return [random.Random(int(key)) for key in self._keys]


def _repeated(numbers: Ints) -> NDArray[np.bool_]:
    """[B, count], True where an entry occurred earlier in its row."""
    order = np.argsort(numbers, axis=1, kind="stable")
    ordered = np.take_along_axis(numbers, order, axis=1)
    again = np.zeros(numbers.shape, dtype=np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated
