"""Gated causal attention, layer for layer that of Qwen3.5's dense hybrid.

Per-head RMSNorm on queries and keys, rotary embedding of the first part of each head, grouped
key/value heads, and a sigmoid gate on each head's output before the output projection.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from parallel import mesh
from parallel.context import to_heads, to_tokens
from parallel.fused import fused
from parallel.layers import ColumnLinear, RowLinear, gather_tokens, project, split_parameter
from parallel.norms import RMSNorm, at_least_fp32, normalize, normalize_backward, rms_norm
from parallel.shape import BlockShape
from parallel.state import AttentionState
from parallel.window import Window


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of the first 2 * cos.shape[-1] features of each head.

    Args:
        x: [B, H, T, head_dim]. cos, sin: [B or 1, 1, T, half], shared by all heads.
    """
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def _norm(shape: BlockShape) -> RMSNorm | nn.Identity:
    """The per-head norm of queries or keys; the identity if the shape has none."""
    if not shape.attention_qk_norm:
        return nn.Identity()
    return RMSNorm(shape.attention_head_dim, shape.norm_eps, partial_grad=True)


def _norm_and_rotate(
    x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor
) -> Tensor:
    """[B, T, H, head_dim] -> [B, H, T, head_dim]; without a weight there is no norm."""
    normed = x if weight is None else rms_norm(x, weight, eps)
    return rotate(normed.transpose(1, 2), cos, sin).type_as(x)


def _rotated_copy(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` in fewer, in-place operations, which autograd could not differentiate."""
    half = cos.shape[-1]
    y = x.clone()
    y[..., : 2 * half] *= torch.cat([cos, cos], dim=-1)
    y[..., :half].addcmul_(x[..., half : 2 * half], sin, value=-1)
    y[..., half : 2 * half].addcmul_(x[..., :half], sin)
    return y


class _NormAndRotate(torch.autograd.Function):
    """(x, scale or None, eps, cos, sin), `_norm_and_rotate` with its gradient written out."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, eps: float, cos: Tensor, sin: Tensor
    ) -> Tensor:
        y, r = (x, None) if scale is None else normalize(x, eps)
        if scale is not None:
            y = y.mul_(scale).type_as(x)
        ctx.save_for_backward(x if scale is not None else None, scale, r, cos, sin)
        return _rotated_copy(at_least_fp32(y).transpose(1, 2), cos, sin).type_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, r, cos, sin = ctx.saved_tensors
        dy = _rotated_copy(at_least_fp32(gradients[0]), cos, -sin).transpose(1, 2)
        if scale is None:
            return dy.type_as(gradients[0]), None, None, None, None
        dx, d_scale = normalize_backward(at_least_fp32(dy), x, r, scale)
        return dx.type_as(x), d_scale, None, None, None


def _norm_and_rotate_by_hand(
    x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor
) -> Tensor:
    scale = None if weight is None else 1.0 + at_least_fp32(weight)
    y: Tensor = _NormAndRotate.apply(x, scale, eps, cos, sin)
    return y


norm_and_rotate = fused(_norm_and_rotate, _norm_and_rotate_by_hand)


@fused
def _gate(y: Tensor, gate: Tensor) -> Tensor:
    """y * sigmoid(gate): [B, T, H * head_dim].

    Args:
        y: [B, T, H, head_dim]. gate: [.., H * head_dim], with as many elements.
    """
    y = y.flatten(2)
    return y * torch.sigmoid(gate).view_as(y)


class Attention(nn.Module):
    """forward(x, state, window) -> (y, state), with x and y the residual stream
    (`parallel.layers`).
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        D, head = shape.d_model, shape.attention_head_dim
        self.head_dim = head
        self.heads = shape.attention_heads // mesh.head_ranks()
        self.kv_heads = shape.attention_kv_heads // mesh.head_ranks()
        self.q = ColumnLinear(D, shape.attention_heads * head)
        self.gate = ColumnLinear(D, shape.attention_heads * head)
        self.k = ColumnLinear(D, shape.attention_kv_heads * head)
        self.v = ColumnLinear(D, shape.attention_kv_heads * head)
        self.has_bias = shape.attention_qkv_bias
        if self.has_bias:
            self.q_bias = split_parameter(shape.attention_heads * head)
            self.k_bias = split_parameter(shape.attention_kv_heads * head)
            self.v_bias = split_parameter(shape.attention_kv_heads * head)
        self.q_norm, self.k_norm = (_norm(shape), _norm(shape))
        self.out = RowLinear(shape.attention_heads * head, D)

    def forward(
        self, x: Tensor, state: AttentionState, window: Window, write_only: bool = False
    ) -> tuple[Tensor | None, AttentionState]:
        """Attends to the state's keys and causally to x's own.

        Args:
            x: [B, t, D], or the sequence-parallel stream; so is y.
            write_only: nothing downstream reads y (as in the last pass of a window that only
                sleeps): compute only the keys and values that outlive it, and return None for y.
        """
        B, T = window.size
        x = gather_tokens(x)
        reads = [] if write_only else [self.q, self.gate]
        k, v, *rest = project(x, self.k, self.v, *reads)
        gate = rest.pop() if rest else None
        if self.has_bias:
            k, v, rest = k + self.k_bias, v + self.v_bias, [q + self.q_bias for q in rest]
        k, v, *q = to_heads(window.size, k, v, *rest)
        # [B, Hkv, T, head]
        k = self._rotated(k.view(B, T, self.kv_heads, self.head_dim), self.k_norm, window)
        v = v.view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        if state.k.shape[2]:
            k, v = torch.cat([state.k, k], dim=2), torch.cat([state.v, v], dim=2)
        if window.keeps_keys:
            state = AttentionState(k, v)
        if gate is None:
            return None, state

        # [B, H, T, head]
        queries = self._rotated(q[0].view(B, T, self.heads, self.head_dim), self.q_norm, window)
        groups = self.heads // self.kv_heads
        if window.mask is not None and groups > 1 and k.is_cuda:
            # With a mask, only the kernel for equal head counts avoids materialising T x T scores.
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(
            queries,
            k,
            v,
            attn_mask=window.mask,
            is_causal=window.mask is None,
            enable_gqa=queries.shape[1] != k.shape[1],
        )
        return self.out(_gate(to_tokens(window.size, y.transpose(1, 2)), gate)), state

    @staticmethod
    def _rotated(x: Tensor, norm: RMSNorm | nn.Identity, window: Window) -> Tensor:
        """Queries or keys, normalised and rotated: [B, T, H, head_dim] -> [B, H, T, head_dim]."""
        weight, eps = (norm.weight, norm.eps) if isinstance(norm, RMSNorm) else (None, 0.0)
        return norm_and_rotate(x, weight, eps, window.cos, window.sin)
