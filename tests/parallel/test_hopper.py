"""The gradients that fla leaves to us on Hopper, against autograd of the plain computation."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from parallel.hopper import gradients_of_chunks

SCALE = 0.3


def read_and_write(
    q: Tensor, k: Tensor, u: Tensor, w: Tensor, g: Tensor, S: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk by the docstring's formulas, [B, H, C, ...] each: O, S' and U, which equals `u`."""
    U = (u + w @ S).detach() - w @ S
    U.retain_grad()
    later = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool).triu(1)
    D = (g[..., :, None] - g[..., None, :]).masked_fill(later, float("-inf")).exp2()
    out = SCALE * (g.exp2()[..., None] * (q @ S) + (q @ k.transpose(-1, -2) * D) @ U)
    decayed = (g[..., -1:] - g).exp2()[..., None] * k
    return out, g[..., -1, None, None].exp2() * S + decayed.transpose(-1, -2) @ U, U


@pytest.mark.parametrize("T, heads", [(64, (2, 2)), (41, (1, 3)), (5, (2, 4))])
def test_against_autograd(T: int, heads: tuple[int, int]) -> None:
    torch.manual_seed(T)
    B, (Hk, H), K, V, C = 2, heads, 8, 6, 16
    n = -(-T // C)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    q, k, u, w = draw(B, T, Hk, K), draw(B, T, Hk, K), draw(B, T, H, V), draw(B, T, H, K)
    S, do, dS = draw(B, n, H, K, V), draw(B, T, H, V), draw(B, n, H, K, V)
    g = torch.cat([part.cumsum(1) for part in (-torch.rand(B, T, H).double()).split(C, 1)], 1)
    leaves = [t.requires_grad_() for t in (q, k, w, g)]
    score, values = torch.zeros(()), []
    for c in range(n):
        here = slice(c * C, min(T, (c + 1) * C))
        repeated = (t[:, here].repeat_interleave(H // Hk, 2) for t in (q, k))
        parts = [t.transpose(1, 2) for t in (*repeated, u[:, here], w[:, here], g[:, here])]
        out, after, U = read_and_write(*parts, S[:, c])
        score = score + (out * do[:, here].transpose(1, 2)).sum() + (after * dS[:, c]).sum()
        values.append(U)
    score.backward()
    dv = torch.cat([U.grad.transpose(1, 2) for U in values], 1)
    q, k, w, g = (t.detach() for t in leaves)
    found = gradients_of_chunks(q, k, u, do, S, dS, g, dv, SCALE, C)
    expected = [t.grad for t in leaves]
    expected[-1] = expected[-1] / log(2)  # fla's gradient is that of the decay in powers of e
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-6 * b.norm()  # part of it is computed in fp32
