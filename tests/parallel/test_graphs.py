"""Gradients of units replayed as CUDA graphs, on a CPU: here a replay calls the function again and
writes into its first results. On a GPU: tests/gpu/test_graphs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from parallel import graphs
from tests.gpu.problem import assert_same_bits, build


def call_again(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """`graphs.capture` without a GPU."""
    results = function()

    def replay() -> None:
        with torch.enable_grad():  # a replay does not depend on this mode
            again = function()
        for held, found in zip(results, again, strict=True):
            if held is not None:
                held.copy_(found)

    return replay, results


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_gradients_are_those_of_units_run(monkeypatch: pytest.MonkeyPatch, eviction: str) -> None:
    monkeypatch.setattr(graphs, "capture", call_again)
    monkeypatch.setattr(graphs, "warm_up", lambda function: function())
    cpu = torch.device("cpu")
    model, graphed = (build(cpu, torch.float32, eviction) for _ in range(2))
    graphed.graph_units()
    assert_same_bits(model, graphed)
