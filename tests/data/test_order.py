"""The order: permutations, epochs, mixing, and no hidden state."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order import (
    BLOCK,
    Order,
    drawn_before,
    permute,
    quotas,
    round_keys,
    token_shares,
)
from tests.oracles import order as oracle


def permutation(size: int, seed: int, places: Iterable[int]) -> list[int]:
    return permute(np.array(list(places)), np.array(size), round_keys(seed)).tolist()


def drawn(order: Order, draws: Iterable[int]) -> list[tuple[int, int]]:
    """(corpus, document) of each draw."""
    corpora, documents = order(np.array(list(draws)))
    return list(zip(corpora.tolist(), documents.tolist(), strict=True))


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_permutation_hits_every_place_once(size: int, seed: int) -> None:
    assert sorted(permutation(size, seed, range(size))) == list(range(size))


def test_permutation_of_many_documents_costs_no_memory_and_has_no_repeats() -> None:
    images = set(permutation(10**12, 3, range(5000)))
    assert len(images) == 5000
    assert 0.48 < sum(images) / 5000 / 10**12 < 0.52


def test_permutations_look_random() -> None:
    """Over many seeds every place is equally likely to come first, and neighbours do not stay
    together.
    """
    first = Counter(permutation(6, seed, [0])[0] for seed in range(6000))
    assert all(850 < first[i] < 1150 for i in range(6))
    neighbours = sum(abs(b - a) == 1 for a, b in pairwise(permutation(1000, 5, range(1000))))
    assert neighbours < 12  # 2 expected


@pytest.mark.parametrize(
    ("sizes", "shares"), [([1], [1.0]), ([1000], [1.0]), ([3, 2**40, 17], [0.2, 0.7, 0.1])]
)
def test_the_order_is_that_of_one_draw_at_a_time(sizes: list[int], shares: list[float]) -> None:
    """Draws in any order, with many repeats, far into the run."""
    rng = random.Random(0)
    draws = [rng.choice([0, 1, BLOCK - 1, BLOCK, 10**12]) + rng.randrange(3) for _ in range(60)]
    expected = {j: oracle.drawn(sizes, shares, 7, j) for j in draws}
    assert drawn(Order(sizes, shares, seed=7), draws) == [expected[j] for j in draws]


def test_one_corpus_is_gone_through_once_per_epoch_in_another_order() -> None:
    order = Order([100], [1.0], seed=7)
    # into the second block of draws
    documents = [document for _, document in drawn(order, range(6000))]
    epochs = [documents[e * 100 : (e + 1) * 100] for e in range(60)]
    assert BLOCK < 60 * 100
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 60


def test_every_corpus_is_gone_through_in_epochs_while_mixed() -> None:
    draws = drawn(Order([37, 500], [0.3, 0.7], seed=1), range(2 * BLOCK + 100))
    for corpus, size in enumerate((37, 500)):
        documents = [document for c, document in draws if c == corpus]
        for epoch in range(len(documents) // size):
            assert sorted(documents[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_order_is_a_function_of_seed_and_position_alone() -> None:
    there, back = Order([50, 60], [0.5, 0.5], seed=4), Order([50, 60], [0.5, 0.5], seed=4)
    places = list(range(0, 20_000, 371))
    assert drawn(there, places) == [drawn(back, [j])[0] for j in reversed(places)][::-1]
    assert drawn(there, places) != drawn(Order([50, 60], [0.5, 0.5], seed=5), places)


def test_order_is_what_it_was() -> None:
    """Fixed numbers: a changed order would silently change every resumed run."""
    order = Order([10, 1000], [0.25, 0.75], seed=0)
    assert drawn(order, range(6)) == [(1, 288), (0, 7), (1, 583), (0, 8), (1, 670), (1, 407)]


MIXTURES = {  # weights, mean tokens per document
    "web and books": ((0.9, 0.1), (40.0, 200_000.0)),
    "few long documents": ((0.99, 0.01), (40.0, 200_000.0)),
    "a millionth": ((1.0, 1e-6), (500.0, 500.0)),
    "a millionth, in documents of ten million": ((1.0, 1e-6), (1.0, 1e7)),
    "a millionth, in documents of one": ((1.0, 1e-6), (1e7, 1.0)),
    "200 small languages": ((60.0, *[0.2] * 200), (700.0, *range(20, 220))),
    "by hundreds": ([10.0**-i for i in range(7)] * 2, [10.0**i for i in (*range(7), *range(7))]),
}


@pytest.mark.parametrize("weights, means", MIXTURES.values(), ids=MIXTURES)
def test_weights_are_kept_over_any_long_stretch(
    weights: Sequence[float], means: Sequence[float]
) -> None:
    """Any stretch in which the rarest corpus is drawn about 1,000 times; with exact fractions."""
    exact = [Fraction(w) / Fraction(m) for w, m in zip(weights, means, strict=True)]
    rarest = min(exact) / sum(exact)
    counts = quotas(token_shares(weights, means))
    length = int(1000 / rarest)
    for start in (0, length // 3, 7 * length + 5, 10**20):
        before, after = drawn_before(start, counts), drawn_before(start + length, counts)
        assert sum(after) == start + length
        tokens = [(b - a) * m for a, b, m in zip(before, after, means, strict=True)]
        for mine, asked in zip(tokens, weights, strict=True):
            assert mine / sum(tokens) == pytest.approx(asked / sum(weights), rel=0.01)


@given(
    shares=st.lists(st.floats(1e-9, 1), min_size=1, max_size=40),
    steps=st.lists(st.integers(1, 5000), max_size=30),
)
def test_what_is_drawn_is_never_taken_back(shares: list[float], steps: list[int]) -> None:
    """Otherwise the n-th draw of a corpus would occur twice."""
    counts, draw = quotas(shares), 0
    last = drawn_before(0, counts)
    assert last == [0] * len(shares)
    for step in steps:
        draw += step
        found = drawn_before(draw, counts)
        assert all(a <= b for a, b in zip(last, found, strict=True))
        last = found


def test_the_order_draws_what_is_counted() -> None:
    """Over whole blocks, also for a corpus that few of them contain; epochs stay whole."""
    shares = [0.7, 0.29999, 0.00001]
    order = Order([1000, 300, 5], shares, seed=3)
    draws = drawn(order, range(60 * BLOCK))
    counted = drawn_before(60 * BLOCK, quotas(shares))
    assert [sum(c == corpus for c, _ in draws) for corpus in range(3)] == counted
    assert counted[2] == 2  # 2.46 expected
    for corpus, size in enumerate((1000, 300, 5)):
        documents = [document for c, document in draws if c == corpus]
        for epoch in range(len(documents) // size):
            assert sorted(documents[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_lanes_of_a_batch_have_every_corpus() -> None:
    """Each corpus has half of the draws, but not in turn: no lane reads only one corpus."""
    order = Order([1000, 1000], [0.5, 0.5], seed=0)
    for lane in range(4):
        share = sum(corpus for corpus, _ in drawn(order, range(lane, 8000, 4))) / 2000
        assert share == pytest.approx(0.5, abs=0.05)


def test_weights_are_shares_of_tokens() -> None:
    """A corpus of long documents is drawn less often for the same weight."""
    lengths, weights = [100.0, 900.0], [3.0, 1.0]
    order = Order([1000, 1000], token_shares(weights, lengths), seed=2)
    counts = Counter(corpus for corpus, _ in drawn(order, range(3000)))
    tokens = [counts[c] * lengths[c] for c in range(2)]
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.03)
