"""Which document is drawn at position j: a pure function of (seed, j), in O(1) memory per corpus.

Several corpora are mixed in blocks of BLOCK draws. How many of the first k blocks' draws fall on a
corpus is given by `drawn_before`: its share of them, rounded, so that the share is kept over every
long stretch, however small it is. Within a block the draws are placed by hashed numbers. So from j
it follows, without counting from the start, that this is the n-th draw from a corpus. A corpus is
read in epochs: draw n is document permutation_e(i) with (e, i) = divmod(n, documents).

The permutation is a Feistel network (Luby and Rackoff 1988) over the smallest power of two that
holds all documents, with cycle walking (Black and Rogaway 2002): a number outside the range is
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

from pretrain.data.splitmix import STEP, Words, mix, splitmix64

Integers = NDArray[np.int64]

BLOCK = 4096  # draws that are mixed together
PLACES = np.arange(BLOCK, dtype=np.uint64)
WHOLE = 1 << 96  # denominator that shares are rounded to, fine enough for any share that matters
ROUNDS = 6


def key(*labels: int | str) -> int:
    """A 64-bit key for a seed and its purpose."""
    return int.from_bytes(hashlib.blake2b(repr(labels).encode(), digest_size=8).digest(), "little")


class Order:
    """The order of a run's documents.

    sizes    documents of each corpus
    shares   of the draws, summing to 1; `token_shares` turns weights by tokens into these
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self._sizes = np.array(sizes, np.int64)
        self._quotas = quotas(shares)
        self._seed = seed
        # The lanes of a batch draw at their own pace, so several blocks and epochs are in use.
        self._block = lru_cache(maxsize=1024)(self._make_block)
        self._keys = lru_cache(maxsize=1024)(self._make_keys)

    def __call__(self, draws: Integers) -> tuple[Integers, Integers]:
        """[n] the corpus of each draw (any position >= 0), and [n] the number of its document."""
        corpora, drawn = self._place(draws)
        epochs, places = np.divmod(drawn, self._sizes[corpora])
        names, which = np.unique(epochs * len(self._sizes) + corpora, return_inverse=True)
        keys = np.array([self._keys(name) for name in names.tolist()])  # [names, ROUNDS]
        return corpora, permute(places, self._sizes[corpora], keys[which])

    def _place(self, draws: Integers) -> tuple[Integers, Integers]:
        """[n] the corpus of each draw, and [n] how many draws of that corpus come before it."""
        if len(self._sizes) == 1:
            return np.zeros_like(draws), draws
        blocks, places = np.divmod(draws, BLOCK)
        corpora, drawn = np.empty_like(draws), np.empty_like(draws)
        by_block = np.argsort(blocks, kind="stable")
        names, firsts = np.unique(blocks[by_block], return_index=True)
        for name, mine in zip(names.tolist(), np.split(by_block, firsts[1:]), strict=True):
            before, of_block, ranks = self._block(name)
            corpora[mine] = of_block[places[mine]]
            drawn[mine] = before[corpora[mine]] + ranks[places[mine]]
        return corpora, drawn

    def _make_block(self, block: int) -> tuple[Integers, NDArray[np.int16], NDArray[np.int16]]:
        """[corpora] how many draws of each come before a block; [BLOCK] the corpus of each of its
        draws; [BLOCK] how many draws of that corpus come before it in the block.
        """
        before = np.array(drawn_before(block * BLOCK, self._quotas))
        counts = np.array(drawn_before((block + 1) * BLOCK, self._quotas)) - before
        numbers = splitmix64(key(self._seed, "mix", block), PLACES)
        numbers = numbers - numbers % BLOCK + PLACES  # makes them distinct
        ends = np.cumsum(counts)
        firsts = np.sort(numbers)[ends[ends < BLOCK]]  # where each corpus but the first starts
        corpora = np.searchsorted(firsts, numbers, side="right").astype(np.int16)
        ranks = np.empty(BLOCK, np.int16)
        in_order = np.argsort(corpora, kind="stable")  # the draws of each corpus, in their order
        ranks[in_order] = np.arange(BLOCK) - np.repeat(ends - counts, counts)
        return before, corpora, ranks

    def _make_keys(self, name: int) -> Words:
        """[ROUNDS] for one corpus in one epoch."""
        epoch, corpus = divmod(name, len(self._sizes))
        return round_keys(key(self._seed, "documents", corpus, epoch))


def round_keys(seed: int) -> Words:
    """[ROUNDS] keys of one permutation."""
    return splitmix64(seed, np.arange(ROUNDS, dtype=np.uint64)) + np.uint64(STEP)


def permute(places: Integers, sizes: Integers, keys: Words) -> Integers:
    """[n] the image of each place, each under its own permutation of 0..size-1.

    Args:
        sizes: [n] or []. keys: [n, ROUNDS] or [ROUNDS], of `round_keys`.
    """
    bits = np.maximum(2, np.frexp((sizes - 1).astype(np.float64))[1])
    out = np.array(places, np.uint64)
    low = np.broadcast_to((bits - bits // 2).astype(np.uint64), out.shape)  # of the right half
    high = np.broadcast_to((bits // 2).astype(np.uint64), out.shape)
    sizes, keys = np.broadcast_to(sizes, out.shape), np.broadcast_to(keys, (*out.shape, ROUNDS))
    outside = np.arange(len(out))
    while outside.size:
        out[outside] = _encrypt(out[outside], high[outside], low[outside], keys[outside])
        outside = outside[out[outside] >= sizes[outside].astype(np.uint64)]
    return out.astype(np.int64)


def _encrypt(places: Words, high: Words, low: Words, keys: Words) -> Words:
    """[n] encrypted by a Feistel network whose halves have `high` and `low` bits."""
    one, step = np.uint64(1), np.uint64(STEP)
    left_mask, right_mask = (one << high) - one, (one << low) - one
    left, right = places >> low, places & right_mask
    for number in range(ROUNDS):
        if number % 2:
            right = right ^ mix(left * step + keys[:, number]) & right_mask
        else:
            left = left ^ mix(right * step + keys[:, number]) & left_mask
    return left << low | right


def token_shares(weights: Sequence[float], mean_tokens: Sequence[float]) -> list[float]:
    """The shares of draws that give each corpus its `weight` as a share of tokens: weight / mean
    length, normalised.
    """
    draws = [weight / mean for weight, mean in zip(weights, mean_tokens, strict=True)]
    return [draw / sum(draws) for draw in draws]


def quotas(shares: Sequence[float]) -> list[int]:
    """Each corpus's share of WHOLE draws, as integers, so that all machines get the same result."""
    return [max(int(share * WHOLE), 1) for share in shares]


def drawn_before(draw: int, quotas: Sequence[int]) -> list[int]:
    """How many of the first `draw` draws fall on each corpus; they sum to `draw`.

    The list of corpora is halved recursively, and each half gets its rounded share of its parent's
    draws. No corpus's count ever decreases as `draw` grows, and it is off by at most half a draw
    per halving: half a draw for two corpora, four for 200.
    """
    if len(quotas) == 1:
        return [draw]
    middle = len(quotas) // 2
    left, whole = sum(quotas[:middle]), sum(quotas)
    mine = (2 * draw * left + whole) // (2 * whole)
    return drawn_before(mine, quotas[:middle]) + drawn_before(draw - mine, quotas[middle:])
