"""Units replayed as graphs give the same gradients, whatever windows and passes share a graph.

Here a graph is a stand-in that calls the captured function and writes into the same tensors; real
CUDA graphs are compared with eager kernels in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from parallel import graphs
from pretrain.model.probe import Probe
from tests.marks import slow
from tests.model.test_documents import padded
from tests.model.test_recompute import SETTINGS
from tests.model.tiny import L, build, equal, gradients

T = TypeVar("T")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The functions that have been captured."""
    captured: list[Callable[[], object]] = []

    def capture(function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        captured.append(function)
        results = function()

        @torch.enable_grad()
        def replay() -> None:
            for static, new in zip(results, function(), strict=True):  # type: ignore[call-overload]
                if static is not None:
                    static.detach().copy_(new.detach())

        return replay, results

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "warm_up", lambda function: function())
    return captured


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, slow(torch.bfloat16)])
def test_gradients_are_the_same(
    setting: str, dtype: torch.dtype, captures: list[Callable[[], object]]
) -> None:
    config, unscored = SETTINGS[setting]
    model = build(config, dtype=dtype)
    batch = padded(4 * L, [(3, 4 * L), (0, 4 * L - 2)], unscored)
    expected = model(batch, recompute="unit")
    gradient = gradients(model, expected.loss)
    model.graph_units()
    for _ in range(2):  # nothing is captured the second time
        out = model(batch, recompute="unit")
        assert torch.equal(out.loss, expected.loss)
        assert equal(gradients(model, out.loss), gradient)
        count = len(captures)
    assert 0 < count == len(captures)


def test_what_is_looked_into_or_has_no_backward_is_run(
    captures: list[Callable[[], object]],
) -> None:
    model = build(SETTINGS["always"][0], dtype=torch.float32).graph_units()
    batch = padded(2 * L, [(0, 2 * L)], {})
    with torch.no_grad():
        model(batch, recompute="unit")
    model(batch, recompute="none")
    assert not captures
    probe = Probe()
    model(batch, recompute="unit", probe=probe).loss.backward()
    assert probe.summary(model)["retention"] < 1  # seen in the wake pass, which was not replayed
    assert captures  # the sleep was replayed


def test_weights_that_move_are_captured_again(captures: list[Callable[[], object]]) -> None:
    model = build(dtype=torch.float32).graph_units()
    batch = padded(2 * L, [(0, 2 * L)], {})
    model(batch, recompute="unit").loss.backward()
    count = len(captures)
    weight = model.blocks["0"].mlp.up.weight
    weight.data = 2 * weight.data
    moved = model(batch, recompute="unit").loss
    assert len(captures) == 2 * count
    assert torch.equal(moved, model(batch).loss)
