"""Hand-written gradients, against autograd's gradients of the plain formula."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel import attention, norms
from parallel.layers import _JointLinear
from parallel.short_convolution import cuda_convolution, short_convolution


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def convolved_by_torch(before: Tensor, weight: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    x = torch.cat([before, VALID[..., None] * torch.cat([k, v], dim=2)], dim=1).transpose(1, 2)
    y = F.silu(F.conv1d(x, weight[:, None], groups=len(weight))).transpose(1, 2)
    return y.split([k.shape[2], v.shape[2]], dim=2)


ANGLE = torch.linspace(0, 3, 10, dtype=torch.float64).view(1, 1, 5, 2)


def angles(x: Tensor) -> tuple[Tensor, Tensor]:
    angle = ANGLE.to(norms.at_least_fp32(x).dtype)
    return angle.cos(), angle.sin()


VALID = torch.tensor([[True, True, False, True, True], [True, False, True, True, False]])
CASES: dict[str, tuple[Callable, Callable, list[tuple[int, ...]]]] = {
    "norm": (
        lambda x, w: norms.fused_norm(x, w, 1e-2),
        lambda x, w: norms.rms_norm(x, w, 1e-2),
        [(2, 5, 6), (6,)],
    ),
    "sum and norm": (
        lambda x, y, w: norms.fused_add_norm(x, y, w, 1e-2),
        lambda x, y, w: (x + y, norms.rms_norm(x + y, w, 1e-2)),
        [(2, 5, 6), (2, 5, 6), (6,)],
    ),
    "gated norm": (
        lambda x, g, w: norms.fused_gated_norm(x, g, w, 1e-2),
        lambda x, g, w: F.rms_norm(x, w.shape, w, 1e-2) * F.silu(g),
        [(2, 5, 3, 6), (2, 5, 3, 6), (6,)],
    ),
    "unit length": (norms.l2_normalized, norms.l2_norm, [(2, 5, 6)]),
    "rotation": (
        lambda x: attention.norm_and_rotate(x, None, 0.0, *angles(x)),
        lambda x: attention.rotate(x.transpose(1, 2), *angles(x)),
        [(2, 5, 3, 6)],
    ),
    "norm and rotation": (
        lambda x, w: attention.norm_and_rotate(x, w, 1e-2, *angles(x)),
        lambda x, w: attention.rotate(norms.rms_norm(x, w, 1e-2).transpose(1, 2), *angles(x)),
        [(2, 5, 3, 6), (6,)],
    ),
    "convolution on CUDA": (  # without a kernel
        lambda before, weight, k: cuda_convolution(k, before, weight, VALID),
        lambda before, weight, k: convolved_by_torch(before, weight, k, k[..., :0])[0],
        [(2, 3, 4), (4, 4), (2, 5, 4)],
    ),
    "projections as one": (
        _JointLinear.apply,
        lambda x, *weights: tuple(F.linear(x, w) for w in weights),
        [(2, 5, 6), (3, 6), (1, 6), (4, 6)],
    ),
    "convolution": (
        lambda before, w, k, v: short_convolution(before, w, VALID, [k, v]),
        convolved_by_torch,
        [(2, 3, 10), (10, 4), (2, 5, 4), (2, 5, 6)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_as_autograd_finds_them(case: str) -> None:
    by_hand, plain, shapes = CASES[case]
    torch.manual_seed(0)
    inputs = [draw(*shape) for shape in shapes]
    found = []
    for function in (by_hand, plain):
        results = function(*inputs)
        results = results if isinstance(results, tuple | list) else (results,)
        torch.manual_seed(1)  # the loss weights every number of every result
        loss = sum((r * torch.randn(r.shape, dtype=r.dtype)).sum() for r in results)
        found.append([*results, *torch.autograd.grad(loss, inputs)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"convolution", "projections as one"}))
def test_half_precision_is_rounded_once(case: str) -> None:
    """Inside, it is fp32: bf16 results differ from exact ones only by their own rounding."""
    by_hand, plain, shapes = CASES[case]
    torch.manual_seed(0)
    half = [draw(*shape, dtype=torch.bfloat16) for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in half]
    found = []
    for function, inputs in ((by_hand, half), (plain, exact)):
        results = function(*inputs)
        results = results if isinstance(results, tuple | list) else (results,)
        loss = sum(r.double().square().sum() for r in results)
        found.append([*results, *torch.autograd.grad(loss, inputs)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0.03, atol=0.03)
