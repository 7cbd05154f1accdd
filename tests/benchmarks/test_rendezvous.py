"""How many messages each rank sends during a start, however many ranks there are, and rank 0."""

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
    # one message for many ranks; one for each late rank when it lists those
    assert result.first["messages"] <= 40 + 2 * ranks and result.first["bytes"] < 2000 * (ranks + 8)
    assert result.others["connections"] == 0 and result.first["connections"] == 1


def test_messages_of_groups() -> None:
    """Gloo with lazy connections does not look up all others; Megatron's grid sends nothing."""
    at_once, _ = rendezvous.gloo(8, lazy=False)
    lazily, _ = rendezvous.gloo(8, lazy=True)
    assert at_once["messages"] == 17 and lazily["messages"] == 1
