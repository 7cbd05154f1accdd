"""How many messages a start takes of each rank, however many there are, and of rank 0."""

from __future__ import annotations

import pytest

from benchmarks import rendezvous


@pytest.mark.parametrize(
    "ranks",
    [8, pytest.param(64, marks=pytest.mark.slow), pytest.param(512, marks=pytest.mark.slow)],
)
def test_messages_of_a_preflight(ranks: int) -> None:
    result = rendezvous.preflight(ranks)
    # here, start (2), report, reported (2), rates, measured (2)
    assert result.others["messages"] == 9 and result.others["bytes"] < 1000
    # a message for many ranks; one for each that is late, when it says who that is
    assert result.first["messages"] <= 40 + 2 * ranks and result.first["bytes"] < 2000 * (ranks + 8)
    assert result.others["connections"] == 0 and result.first["connections"] == 1


def test_messages_of_groups() -> None:
    """Gloo's, with as many ranks as start lazily, does not look for all others; Megatron's grid
    says nothing.
    """
    at_once, _ = rendezvous.gloo(8, lazy=False)
    lazily, _ = rendezvous.gloo(8, lazy=True)
    assert at_once["messages"] == 17 and lazily["messages"] == 1
