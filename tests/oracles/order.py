"""The order of documents computed one draw at a time, with Python's own integers, where
pretrain/data/order.py computes arrays of draws at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pretrain.data.order import BLOCK, ROUNDS, drawn_before, quotas

STEP = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1


def splitmix64(key: int, counter: int) -> int:
    z = ((counter + 1) * STEP + key) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def key(*labels: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(repr(labels).encode(), digest_size=8).digest(), "little")


def permuted(place: int, size: int, seed: int) -> int:
    """What a permutation of 0..size-1 maps `place` to."""
    bits = max(2, (size - 1).bit_length())
    low = bits - bits // 2
    while True:
        left, right = place >> low, place & ((1 << low) - 1)
        for number in range(ROUNDS):
            round_key = splitmix64(seed, number)  # output `number` of splitmix64 from this seed
            if number % 2:
                right ^= splitmix64(round_key, left) & ((1 << low) - 1)
            else:
                left ^= splitmix64(round_key, right) & ((1 << bits // 2) - 1)
        place = left << low | right
        if place < size:
            return place


def drawn(sizes: Sequence[int], shares: Sequence[float], seed: int, draw: int) -> tuple[int, int]:
    """(corpus, document) at position `draw`."""
    block, place = divmod(draw, BLOCK)
    before = drawn_before(block * BLOCK, quotas(shares))
    after = drawn_before((block + 1) * BLOCK, quotas(shares))
    mix = key(seed, "mix", block)
    numbers = [(splitmix64(mix, n) // BLOCK, n) for n in range(BLOCK)]
    corpora = [0] * BLOCK
    in_turn = np.repeat(np.arange(len(sizes)), np.subtract(after, before)).tolist()
    for corpus, at in zip(in_turn, sorted(range(BLOCK), key=numbers.__getitem__), strict=True):
        corpora[at] = corpus
    corpus = corpora[place]
    number = before[corpus] + corpora[:place].count(corpus)
    epoch, i = divmod(number, sizes[corpus])
    return corpus, permuted(i, sizes[corpus], key(seed, "documents", corpus, epoch))
