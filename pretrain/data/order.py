"""Which document is drawn at position j: a pure function of (seed, j), in O(1) memory per corpus.

Several corpora are mixed in blocks of BLOCK draws. In every block a corpus has the same number of
draws, its quota, placed by hashed numbers; so the n-th draw from a corpus is found from j without
counting from the start. A corpus is gone through in epochs: draw n is document permutation_e(i)
with (e, i) = divmod(n, documents).

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

BLOCK = 4096  # draws; a corpus's share of the draws is a multiple of 1 / BLOCK
ROUNDS = 6
_MASK = (1 << 64) - 1


def key(*labels: int | str) -> int:
    """64 bits for a seed and what it is used for."""
    return int.from_bytes(hashlib.blake2b(repr(labels).encode(), digest_size=8).digest(), "little")


def splitmix64(key: int, counter: int) -> int:
    """The counter-th 64-bit number of the stream `key` (Steele, Lea and Flood 2014)."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Permutation:
    """A permutation of 0..size-1, evaluated one place at a time."""

    def __init__(self, size: int, seed: int) -> None:
        bits = max(2, (size - 1).bit_length())
        self._size = size
        self._low = bits - bits // 2  # bits of the right half
        self._masks = ((1 << bits // 2) - 1, (1 << self._low) - 1)
        self._keys = [splitmix64(seed, n) for n in range(ROUNDS)]

    def __call__(self, place: int) -> int:
        """Where `place` goes."""
        while True:
            place = self._encrypt(place)
            if place < self._size:
                return place

    def _encrypt(self, place: int) -> int:
        left, right = place >> self._low, place & self._masks[1]
        for number, round_key in enumerate(self._keys):
            if number % 2:
                right ^= splitmix64(round_key, left) & self._masks[1]
            else:
                left ^= splitmix64(round_key, right) & self._masks[0]
        return left << self._low | right


class Order:
    """The order of a run's documents.

    sizes    documents of each corpus
    shares   share of the draws of each, summing to 1; `token_shares` turns weights by tokens into these
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self._sizes = sizes
        self._quotas = quotas(shares)
        self._seed = seed
        # The lanes of a batch draw at their own pace, so blocks and epochs in use lie apart.
        self._pattern = lru_cache(maxsize=1024)(self._make_pattern)
        self._permutation = lru_cache(maxsize=256)(self._make_permutation)

    def __call__(self, draw: int) -> tuple[int, int]:
        """(corpus, document of that corpus) at position `draw` >= 0."""
        block, place = divmod(draw, BLOCK)
        corpora, ranks = self._pattern(block)
        corpus = int(corpora[place])
        epoch, i = divmod(block * self._quotas[corpus] + int(ranks[place]), self._sizes[corpus])
        return corpus, self._permutation(corpus, epoch)(i)

    def _make_pattern(self, block: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """[BLOCK] the corpus of every draw of a block, and [BLOCK] how many of that corpus came
        before in it.
        """
        stream = key(self._seed, "mix", block)
        numbers = np.array([splitmix64(stream, n) for n in range(BLOCK)], np.uint64)
        corpora = np.empty(BLOCK, np.int16)
        corpora[np.argsort(numbers, kind="stable")] = np.repeat(
            np.arange(len(self._quotas)), self._quotas
        )
        ranks = np.empty(BLOCK, np.int16)
        for corpus, quota in enumerate(self._quotas):
            ranks[corpora == corpus] = np.arange(quota)
        return corpora, ranks

    def _make_permutation(self, corpus: int, epoch: int) -> Permutation:
        return Permutation(self._sizes[corpus], key(self._seed, "documents", corpus, epoch))


def token_shares(weights: Sequence[float], mean_tokens: Sequence[float]) -> list[float]:
    """Shares of the draws that give each corpus `weight` as its share of the tokens: weight / mean
    length.
    """
    draws = [weight / mean for weight, mean in zip(weights, mean_tokens, strict=True)]
    return [draw / sum(draws) for draw in draws]


def quotas(shares: Sequence[float]) -> list[int]:
    """Draws of each corpus in a block: largest remainders, and at least 1 for a share above 0."""
    exact = [share * BLOCK for share in shares]
    whole = [max(int(x), 1) for x in exact]
    for _ in range(BLOCK - sum(whole)):
        most = max(range(len(whole)), key=lambda c: exact[c] - whole[c])
        whole[most] += 1
    while sum(whole) > BLOCK:
        least = max(
            (c for c in range(len(whole)) if whole[c] > 1), key=lambda c: whole[c] - exact[c]
        )
        whole[least] -= 1
    return whole
