"""bf16: the fast weights stay fp32, and the result stays close to fp32."""

import pytest
import torch

from parallel.state import DeltaState
from tests.model.tiny import L, build, change, gradients, sequences


@pytest.mark.parametrize("eviction", ["hard", "sliding"])
def test_bf16_is_close_to_fp32(eviction: str) -> None:
    """bf16 keeps 8 bits. The loss is within 0.1 %, each gradient within 15 % in norm, all gradients
    together within 3 %.
    """
    sleep, batch = change(passes=3, eviction=eviction), sequences(3 * L, rows=8)
    batch.carries[:] = True
    exact, rounded = build(sleep, dtype=torch.float32), build(sleep, dtype=torch.bfloat16)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), rounded.parameters(), strict=True):
            p.copy_(q)  # the same weights: only the arithmetic differs
    a, b = exact(batch), rounded(batch)
    assert b.loss.dtype == torch.float32
    assert b.loss.item() == pytest.approx(a.loss.item(), rel=1e-3)
    for block in b.state.blocks:
        assert not isinstance(block, DeltaState) or block.S.dtype == torch.float32
    want, got = gradients(exact, a.loss), gradients(rounded, b.loss)
    error = {name: (got[name].float() - g).norm() / g.norm() for name, g in want.items()}
    assert max(error.values()) < 0.15, error
    whole = sum((got[name].float() - g).square().sum() for name, g in want.items())
    assert whole < 0.03**2 * sum(g.square().sum() for g in want.values())
