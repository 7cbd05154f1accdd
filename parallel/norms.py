"""RMS and L2 norms, with hand-written gradients for the CPU.

For x of width W, scale s and r = 1 / sqrt(mean(x^2) + eps), y = s r x, and with t = dy r x:

    ds = sum of t over tokens          dx = r (s dy - r x (s . t) / W)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from parallel.fused import fused
from parallel.shape import UNIT_EPS


def at_least_fp32(x: Tensor) -> Tensor:
    """bf16 and fp16 become fp32; fp64, which the tests use, stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """r x [..., W] and r [..., 1], in at least fp32."""
    x = at_least_fp32(x)
    r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    r = r.add_(eps).rsqrt_()
    return x * r, r


def normalize_backward(dy: Tensor, x: Tensor, r: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """dx and ds of y = scale * r * x, in at least fp32."""
    unit = at_least_fp32(x) * r
    t = dy * unit
    along = (t @ scale).div_(x.shape[-1]).unsqueeze(-1)
    dx = (dy * scale).addcmul_(unit, along, value=-1).mul_(r)
    return dx, t.flatten(0, -2).sum(0)


class _RMSNorm(torch.autograd.Function):
    """(x, scale, eps) -> y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        y, r = normalize(x, eps)
        ctx.save_for_backward(x, scale, r)
        return y.mul_(scale).type_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, r = ctx.saved_tensors
        dx, d_scale = normalize_backward(at_least_fp32(gradients[0]), x, r, scale)
        return dx.type_as(x), d_scale, None


class _AddRMSNorm(torch.autograd.Function):
    """(x, y, scale, eps) -> x + y, and the norm of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x + y
        normed, r = normalize(x, eps)
        ctx.save_for_backward(x, scale, r)
        return x, normed.mul_(scale).type_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, r = ctx.saved_tensors
        dx, d_scale = normalize_backward(at_least_fp32(gradients[1]), x, r, scale)
        dx = dx.type_as(x).add_(gradients[0])
        return dx, dx, d_scale, None


class _GatedRMSNorm(torch.autograd.Function):
    """(x, gate, scale, eps) -> norm(x) * SiLU(gate)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, scale: Tensor, eps: float) -> Tensor:
        normed, r = normalize(x, eps)
        ctx.save_for_backward(x, gate, scale, r)
        normed = normed.mul_(scale).type_as(gate)
        return (normed * F.silu(at_least_fp32(gate))).type_as(gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, scale, r = ctx.saved_tensors
        dy, wide = at_least_fp32(gradients[0]), at_least_fp32(gate)
        normed = (at_least_fp32(x) * r).mul_(scale)
        d_gate = torch.ops.aten.silu_backward(normed.mul_(dy), wide)
        dx, d_scale = normalize_backward(dy * F.silu(wide), x, r, scale)
        return dx.type_as(x), d_gate.type_as(gate), d_scale, None


class _L2Norm(torch.autograd.Function):
    """x -> x / |x|, in at least fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = at_least_fp32(x)
        r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().add_(UNIT_EPS).rsqrt_()
        unit = wide * r
        ctx.save_for_backward(unit, r)
        ctx.dtype = x.dtype
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (unit, r), dy = ctx.saved_tensors, gradients[0]
        along = (dy * unit).sum(-1, keepdim=True)
        dx: Tensor = torch.addcmul(dy, unit, along, value=-1).mul_(r)
        return dx.to(ctx.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * (1 + weight) over the last dimension, computed in at least fp32."""
    scale = 1.0 + at_least_fp32(weight)
    return F.rms_norm(at_least_fp32(x), scale.shape, scale, eps).type_as(x)


def l2_norm(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in at least fp32."""
    x = at_least_fp32(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPS)


def _add_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + y
    return x, rms_norm(x, weight, eps)


def _gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    weight = at_least_fp32(weight)
    normed = F.rms_norm(at_least_fp32(x), weight.shape, weight, eps).type_as(gate)
    return (normed * F.silu(at_least_fp32(gate))).type_as(gate)


def _norm_by_hand(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y: Tensor = _RMSNorm.apply(x, 1.0 + at_least_fp32(weight), eps)
    return y


def _add_norm_by_hand(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, normed = _AddRMSNorm.apply(x, y, 1.0 + at_least_fp32(weight), eps)
    return x, normed


def _gated_norm_by_hand(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    y: Tensor = _GatedRMSNorm.apply(x, gate, at_least_fp32(weight), eps)
    return y


fused_norm = fused(rms_norm, _norm_by_hand)
fused_add_norm = fused(_add_norm, _add_norm_by_hand)
fused_gated_norm = fused(_gated_norm, _gated_norm_by_hand)
l2_normalized = fused(l2_norm, _L2Norm.apply)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) of x [..., W] over W, as in Qwen3.5: weight 0 is scale 1.

    Args:
        partial_grad: each tensor-parallel rank's gradient covers only its own heads or tokens.
    """

    def __init__(self, width: int, eps: float, partial_grad: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.weight.partial_grad = partial_grad  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return fused_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x + y, and the norm of it."""
        return fused_add_norm(x, y, self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """x / rms(x) * weight * SiLU(gate) of x, gate [..., W] over W: the norm of a head's output."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.weight.partial_grad = True  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return fused_gated_norm(x, gate, self.weight, self.eps)
