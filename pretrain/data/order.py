"""Which document is drawn at position j: a pure function of (seed, j), in O(1) memory per corpus.

Several corpora are mixed in blocks of BLOCK draws. How many of the first k blocks' draws are a
corpus's is `drawn_before`: its share of them, rounded, so that the share is kept over every long
stretch, however small it is. Within a block the draws are placed by hashed numbers. So the n-th
draw from a corpus is found from j without counting from the start. A corpus is gone through in
epochs: draw n is document permutation_e(i) with (e, i) = divmod(n, documents).

The permutation is a Feistel network (Luby and Rackoff 1988) over the smallest power of two that
holds all documents, with cycle walking (Black and Rogaway 2002): a number that falls outside is
encrypted again.

All numbers come from splitmix64 of a key and a counter. They are part of the format: changing them
changes the order of every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pretrain.data.splitmix import STEP, mix, splitmix64

BLOCK = 4096  # draws that are placed together
WHOLE = 1 << 96  # draws that shares are rounded to: the smallest kept is far below any that matters
ROUNDS = 6


def key(*labels: int | str) -> int:
    """64 bits for a seed and what it is used for."""
    return int.from_bytes(hashlib.blake2b(repr(labels).encode(), digest_size=8).digest(), "little")


class Permutation:
    """A permutation of 0..size-1, evaluated one place at a time."""

    def __init__(self, size: int, seed: int) -> None:
        bits = max(2, (size - 1).bit_length())
        self._size = size
        self._low = bits - bits // 2  # bits of the right half
        self._masks = ((1 << bits // 2) - 1, (1 << self._low) - 1)
        self._keys = [splitmix64(seed, n) + STEP for n in range(ROUNDS)]

    def __call__(self, place: int) -> int:
        """Where `place` goes."""
        while True:
            place = self._encrypt(place)
            if place < self._size:
                return place

    def _encrypt(self, place: int) -> int:
        left, right = place >> self._low, place & self._masks[1]
        for number, round_key in enumerate(self._keys):  # splitmix64, without a call in between
            if number % 2:
                right ^= mix(left * STEP + round_key) & self._masks[1]
            else:
                left ^= mix(right * STEP + round_key) & self._masks[0]
        return left << self._low | right


class Order:
    """The order of a run's documents.

    sizes    documents of each corpus
    shares   of the draws, summing to 1; `token_shares` turns weights by tokens into these
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self._sizes = sizes
        self._quotas = quotas(shares)
        self._seed = seed
        # The lanes of a batch draw at their own pace, so blocks and epochs in use lie apart.
        self._block = lru_cache(maxsize=1024)(self._make_block)
        self._permutation = lru_cache(maxsize=256)(self._make_permutation)

    def __call__(self, draw: int) -> tuple[int, int]:
        """(corpus, document of that corpus) at position `draw` >= 0."""
        block, place = divmod(draw, BLOCK)
        before, corpora, ranks = self._block(block)
        corpus = int(corpora[place])
        epoch, i = divmod(before[corpus] + int(ranks[place]), self._sizes[corpus])
        return corpus, self._permutation(corpus, epoch)(i)

    def _make_block(self, block: int) -> tuple[list[int], NDArray[np.int16], NDArray[np.int16]]:
        """Draws of each corpus before a block; [BLOCK] the corpus of each draw of it, and [BLOCK]
        how many draws of that corpus come before in it.
        """
        before = drawn_before(block * BLOCK, self._quotas)
        after = drawn_before((block + 1) * BLOCK, self._quotas)
        counts = np.subtract(after, before, dtype=object).astype(np.int64)
        numbers = splitmix64(key(self._seed, "mix", block), np.arange(BLOCK, dtype=np.uint64))
        corpora, ranks = np.empty((2, BLOCK), np.int16)
        corpora[np.argsort(numbers, kind="stable")] = np.repeat(np.arange(len(counts)), counts)
        firsts = np.repeat(np.cumsum(counts) - counts, counts)  # of each corpus, when sorted
        ranks[np.argsort(corpora, kind="stable")] = np.arange(BLOCK) - firsts
        return before, corpora, ranks

    def _make_permutation(self, corpus: int, epoch: int) -> Permutation:
        return Permutation(self._sizes[corpus], key(self._seed, "documents", corpus, epoch))


def token_shares(weights: Sequence[float], mean_tokens: Sequence[float]) -> list[float]:
    """Shares of the draws that give each corpus `weight` as its share of the tokens: weight / mean
    length.
    """
    draws = [weight / mean for weight, mean in zip(weights, mean_tokens, strict=True)]
    return [draw / sum(draws) for draw in draws]


def quotas(shares: Sequence[float]) -> list[int]:
    """Draws of each corpus among WHOLE of them: whole, so that every machine counts alike."""
    return [max(int(share * WHOLE), 1) for share in shares]


def drawn_before(draw: int, quotas: Sequence[int]) -> list[int]:
    """How many of the first `draw` draws are each corpus's; they sum to `draw`.

    The corpora are halved again and again, and each half gets its share of what its parent has,
    rounded. No corpus's number ever falls as `draw` grows, and it is off by half a draw at most for
    each halving: half a draw for two corpora, four for 200.
    """
    if len(quotas) == 1:
        return [draw]
    middle = len(quotas) // 2
    left, whole = sum(quotas[:middle]), sum(quotas)
    mine = (2 * draw * left + whole) // (2 * whole)
    return drawn_before(mine, quotas[:middle]) + drawn_before(draw - mine, quotas[middle:])
