"""The order: permutations, epochs, mixing, and no hidden state."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order import BLOCK, Order, Permutation, quotas, token_shares


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_permutation_hits_every_place_once(size: int, seed: int) -> None:
    permutation = Permutation(size, seed)
    assert sorted(permutation(i) for i in range(size)) == list(range(size))


def test_permutation_of_many_documents_costs_no_memory_and_has_no_repeats() -> None:
    permutation = Permutation(10**12, seed=3)
    images = {permutation(i) for i in range(5000)}
    assert len(images) == 5000
    assert 0.48 < sum(images) / 5000 / 10**12 < 0.52


def test_permutations_look_random() -> None:
    """Over many seeds every place is as likely as any other to come first, and neighbours are not
    kept.
    """
    first = Counter(Permutation(6, seed)(0) for seed in range(6000))
    assert all(850 < first[i] < 1150 for i in range(6))
    neighbours = sum(abs(p(i + 1) - p(i)) == 1 for p in [Permutation(1000, 5)] for i in range(999))
    assert neighbours < 12  # 2 expected


def test_one_corpus_is_gone_through_once_per_epoch_in_another_order() -> None:
    order = Order([100], [1.0], seed=7)
    # into the second block of draws
    epochs = [[order(e * 100 + i)[1] for i in range(100)] for e in range(60)]
    assert BLOCK < 60 * 100
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 60


def test_every_corpus_is_gone_through_in_epochs_while_mixed() -> None:
    order = Order([37, 500], [0.3, 0.7], seed=1)
    draws = [order(j) for j in range(2 * BLOCK + 100)]
    for corpus, size in enumerate((37, 500)):
        drawn = [document for c, document in draws if c == corpus]
        for epoch in range(len(drawn) // size):
            assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_order_is_a_function_of_seed_and_position_alone() -> None:
    there, back = Order([50, 60], [0.5, 0.5], seed=4), Order([50, 60], [0.5, 0.5], seed=4)
    places = list(range(0, 20_000, 371))
    assert [there(j) for j in places] == [back(j) for j in reversed(places)][::-1]
    assert [there(j) for j in places] != [Order([50, 60], [0.5, 0.5], seed=5)(j) for j in places]


def test_order_is_what_it_was() -> None:
    """Fixed numbers: a change of the order would silently change every resumed run."""
    order = Order([10, 1000], [0.25, 0.75], seed=0)
    assert [order(j) for j in range(6)] == [(1, 288), (0, 7), (1, 583), (0, 8), (1, 670), (1, 407)]


@pytest.mark.parametrize(
    "shares", [[1.0], [0.5, 0.5], [0.9999, 0.0001], [1 / 3] * 3, [1e-9] * 5 + [1 - 5e-9]]
)
def test_quotas_fill_a_block_and_follow_the_shares(shares: list[float]) -> None:
    found = quotas(shares)
    assert sum(found) == BLOCK
    assert all(
        quota >= 1 and abs(quota - share * BLOCK) <= len(shares)
        for quota, share in zip(found, shares, strict=True)
    )


def test_weights_are_shares_of_tokens() -> None:
    """A corpus of long documents is drawn less often for the same weight."""
    lengths, weights = [100.0, 900.0], [3.0, 1.0]
    order = Order([1000, 1000], token_shares(weights, lengths), seed=2)
    counts = Counter(order(j)[0] for j in range(3000))
    tokens = [counts[c] * lengths[c] for c in range(2)]
    assert tokens[0] / sum(tokens) == pytest.approx(0.75, abs=0.03)
