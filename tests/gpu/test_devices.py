"""The whole model on the GPU against the same model on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.problem import batch, build, difference, loss_and_gradients

CPU = torch.device("cpu")


@pytest.mark.parametrize("pad", [False, True], ids=["", "PAD"])
@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_fp32(device: torch.device, eviction: str, pad: bool) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    data = batch(pad)
    expected = loss_and_gradients(build(CPU, torch.float32, eviction), data)
    found = loss_and_gradients(build(device, torch.float32, eviction), data)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    assert difference(found[1], expected[1]) < 1e-4


def test_sleep_matters(device: torch.device) -> None:
    """Otherwise no test here would say anything about sleep."""
    model, data = build(device, torch.float32), batch(False)
    with torch.no_grad():
        once, often = (model(data, passes=n).loss for n in (1, 3))
    assert abs(once - often) > 1e-3 * once


@pytest.mark.parametrize("pad", [False, True], ids=["", "PAD"])
@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_bf16(device: torch.device, eviction: str, pad: bool) -> None:
    """Kernels and fused operations are about as close to fp32 as plain ones in bf16."""
    data = batch(pad)
    exact = loss_and_gradients(build(CPU, torch.float32, eviction), data)
    plain = loss_and_gradients(build(CPU, torch.bfloat16, eviction), data)
    found = loss_and_gradients(build(device, torch.bfloat16, eviction), data)
    bound = 1.5 * difference(plain[1], exact[1])
    print(f"gradients: {difference(found[1], exact[1]):.4f} of at most {bound:.4f}")
    assert 0 < difference(found[1], exact[1]) < bound
    torch.testing.assert_close(found[0].float(), exact[0], rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputation_changes_no_bit(device: torch.device, dtype: torch.dtype) -> None:
    model, data = build(device, dtype), batch(True)
    expected = loss_and_gradients(model, data)
    for policy in ("none", "unit", "block"):  # none: kernels are deterministic
        found = loss_and_gradients(model, data, policy)
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(found[1][name], g) for name, g in expected[1].items()), policy


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_parameters_may_begin_anywhere(
    device: torch.device, dtype: torch.dtype, bound: float
) -> None:
    """As in ZeRO's flat vector: kernels compiled for 16-byte alignment still work."""
    model, data = build(device, dtype), batch(False)
    expected = loss_and_gradients(model, data)
    named = list(model.parameters())
    flat = torch.zeros(sum(p.numel() + 1 for p in named) + 16, device=device, dtype=dtype)
    begin = 1
    for p in named:
        held = flat[begin : begin + p.numel()].view_as(p)
        held.copy_(p.detach())
        p.data = held
        begin += p.numel() + p.numel() % 2  # all begin at odd positions
    assert all(p.data_ptr() % 16 for p in named)
    found = loss_and_gradients(model, data)
    torch.testing.assert_close(found[0], expected[0], rtol=5e-3, atol=0)
    assert difference(found[1], expected[1]) < bound
