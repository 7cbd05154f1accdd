"""Units replayed as CUDA graphs against the same units run kernel by kernel."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.problem import assert_same_bits, batch, build, loss_and_gradients

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bit_for_bit(
    device: torch.device, dtype: torch.dtype, eviction: str
) -> None:
    model, graphed = (build(device, dtype, eviction) for _ in range(2))
    graphed.graph_units()
    # sliding keys fill three blocks of the fused kernels, which sum gradients in no fixed order
    with sdpa_kernel(SDPBackend.MATH) if eviction == "sliding" else nullcontext():
        assert_same_bits(model, graphed)


def test_weights_that_are_updated_are_read(device: torch.device) -> None:
    model, data = build(device, torch.bfloat16).graph_units(), batch(False)
    before = loss_and_gradients(model, data, "unit")
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.sign(p)
    after = loss_and_gradients(model, data, "unit")
    model.graphs = None
    expected = loss_and_gradients(model, data, "unit")
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[0], expected[0])
