"""The CUDA kernel of the gated delta rule against the recurrence in fp64, and all its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel import delta_rule

# bf16 rounds to 2^-9, and products of several numbers have slightly larger errors
TOLERANCE = 1.5e-2


def inputs(T: int, heads: tuple[int, int], width: tuple[int, int], pad: bool) -> list[Tensor]:
    """q, k, v rounded to bf16; log decay, beta and the incoming state; all in fp64."""
    B, (Hk, H), (K, V) = 2, heads, width
    g = torch.Generator("cuda").manual_seed(T)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda", dtype=torch.float64)

    q, k = (F.normalize(draw(B, T, Hk, K), dim=-1).bfloat16().double() for _ in range(2))
    v = draw(B, T, H, V).bfloat16().double()
    log_decay = -F.softplus(draw(B, T, H)) * torch.logspace(-3, -0.5, H, device="cuda")
    beta = draw(B, T, H).sigmoid()
    if pad:
        real = torch.ones(B, T, 1, device="cuda")
        real[0, : T // 3] = 0
        real[1, -T // 4 :] = 0
        log_decay, beta = log_decay * real, beta * real
    return [q, k, v, log_decay, beta, draw(B, H, K, V) * 0.3]


def lowered(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors as in a bf16 model; leaves that require gradients."""
    kinds = [torch.bfloat16] * 3 + [torch.float32] * 3
    return [t.to(kind).requires_grad_() for t, kind in zip(tensors, kinds, strict=True)]


@pytest.mark.cuda
@pytest.mark.parametrize("reads", [True, False], ids=["read", "write only"])
@pytest.mark.parametrize(
    "T, heads, width, pad",
    [
        (128, (2, 2), (128, 128), False),
        (200, (2, 4), (128, 128), True),
        (24, (4, 4), (64, 64), False),  # less than a chunk
        (77, (1, 3), (32, 64), True),
        (4, (2, 2), (64, 64), False),
    ],
)
def test_against_the_recurrence(
    T: int, heads: tuple[int, int], width: tuple[int, int], pad: bool, reads: bool
) -> None:
    exact = [t.requires_grad_() for t in inputs(T, heads, width, pad)]
    low = lowered([t.detach() for t in exact])
    assert delta_rule.has_kernel(low[2])
    wanted = delta_rule.recurrent_delta_rule(exact[0] if reads else None, *exact[1:])
    found = delta_rule.delta_rule(low[0] if reads else None, *low[1:])
    assert found[1].dtype == torch.float32
    g = torch.Generator("cuda").manual_seed(0)
    of = slice(None) if reads else slice(1, None)  # outputs, and inputs that have a gradient
    weights = [
        torch.randn(o.shape, generator=g, device="cuda").bfloat16().double() for o in wanted[of]
    ]
    names = ["q", "k", "v", "log_decay", "beta", "S"][of]
    expected = torch.autograd.grad(wanted[of], exact[of], weights)
    got = torch.autograd.grad(
        found[of], low[of], [w.to(o.dtype) for w, o in zip(weights, found[of], strict=True)]
    )
    errors = {
        name: float((a.double() - b).norm() / b.norm())
        for name, a, b in zip(
            [*["o", "S'"][of], *names], [*found[of], *got], [*wanted[of], *expected], strict=True
        )
    }
    print(errors)
    assert all(error < TOLERANCE for error in errors.values()), errors
