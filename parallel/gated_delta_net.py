"""The block part that owns fast weights: projections, convolutions, gates, the delta rule.

Layer for layer Qwen3.5's gated delta net, with every projection its own parameter, so that a split
by head is a split of each of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel import mesh
from parallel.delta_rule import delta_rule
from parallel.layers import (
    ColumnLinear,
    GatedRMSNorm,
    RowLinear,
    at_least_fp32,
    gather_tokens,
    split_parameter,
)
from parallel.shape import BlockShape
from parallel.short_convolution import short_convolution
from parallel.state import DeltaState
from parallel.window import Window


def l2_normalized(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in at least fp32, with flash-linear-attention's epsilon."""
    x = at_least_fp32(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class GatedDeltaNet(nn.Module):
    """forward(x, state, window) -> (y, state), with x and y the residual stream
    (`parallel.layers`).
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        D, taps, tp = shape.d_model, shape.delta_conv_width, mesh.tp_size()
        keys, values = (
            shape.delta_key_heads * shape.delta_key_dim,
            shape.delta_value_heads * shape.delta_value_dim,
        )
        self.key_heads, self.value_heads = (
            shape.delta_key_heads // tp,
            shape.delta_value_heads // tp,
        )
        self.key_dim, self.value_dim = shape.delta_key_dim, shape.delta_value_dim
        self.taps, self.chunk = taps, shape.delta_chunk
        self.negative_eigenvalues = shape.delta_negative_eigenvalues
        self.q = ColumnLinear(D, keys)
        self.k = ColumnLinear(D, keys)
        self.v = ColumnLinear(D, values)
        self.gate = ColumnLinear(D, values)
        self.beta = ColumnLinear(D, shape.delta_value_heads)
        self.alpha = ColumnLinear(D, shape.delta_value_heads)
        self.conv_q = split_parameter(keys, taps)
        self.conv_k = split_parameter(keys, taps)
        self.conv_v = split_parameter(values, taps)
        self.A_log = split_parameter(shape.delta_value_heads)
        self.dt_bias = split_parameter(shape.delta_value_heads)
        self.norm = GatedRMSNorm(shape.delta_value_dim, shape.norm_eps)
        self.out = RowLinear(values, D)

    def log_decay(self, x: Tensor) -> Tensor:
        """log a_t <= 0 of each token, head: -exp(A_log) * softplus(W_a x_t + dt_bias), [.., H]."""
        step = F.softplus(at_least_fp32(self.alpha(x)) + at_least_fp32(self.dt_bias))
        return -at_least_fp32(self.A_log).exp() * step

    def write_strength(self, x: Tensor) -> Tensor:
        """b_t of W_b x_t: in (0, 1), or (0, 2) where eigenvalues may be negative."""
        strength = torch.sigmoid(at_least_fp32(x))
        return 2 * strength if self.negative_eigenvalues else strength

    def _convolve(self, x: Tensor, weight: Tensor, tail: Tensor) -> Tensor:
        """Causal depthwise convolution and SiLU. x: [B, T, C]; weight: [C, taps], the last tap is
        now.
        """
        before = F.pad(tail, (0, 0, self.taps - 1 - tail.shape[1], 0))
        return F.silu(short_convolution(torch.cat([before, x], dim=1), weight))

    def forward(
        self, x: Tensor, state: DeltaState, window: Window, write_only: bool = False
    ) -> tuple[Tensor | None, DeltaState]:
        """Writes x into the fast weights by the delta rule, and reads them.

        Args:
            write_only: nothing downstream reads y (the last pass of a window that only
                consolidates): skip queries, gate and read-out, and return None for y.
        """
        B, T = window.size
        x = gather_tokens(x)
        k, v = self.k(x), self.v(x)
        mixed = [v, k] if write_only else [v, k, self.q(x)]
        beta = self.write_strength(self.beta(x)).view(B, T, self.value_heads)
        log_decay = self.log_decay(x).view(B, T, self.value_heads)
        streams = torch.cat(mixed, dim=-1).view(B, T, -1)  # [B, T, channels]
        if window.valid is not None:  # PAD neither writes nor decays nor enters a convolution
            streams = streams * window.valid[..., None]
            beta, log_decay = beta * window.valid[..., None], log_decay * window.valid[..., None]
        if window.record_decay is not None:
            window.record_decay(log_decay)
        tail = state.tail[..., : streams.shape[-1]]
        taps = torch.cat(
            [self.conv_v, self.conv_k] if write_only else [self.conv_v, self.conv_k, self.conv_q]
        )
        v, k, *rest = self._convolve(streams, taps, tail).split(
            [m.shape[-1] for m in mixed], dim=-1
        )

        k = l2_normalized(k.reshape(B, T, self.key_heads, self.key_dim))
        q = l2_normalized(rest[0].reshape(B, T, self.key_heads, self.key_dim)) if rest else None
        v = v.reshape(B, T, self.value_heads, self.value_dim)
        o, S = delta_rule(q, k, v, log_decay, beta, state.S, self.chunk)
        if window.keeps_tail:
            state = state._replace(tail=torch.cat([tail, streams], dim=1)[:, 1 - self.taps :])
        state = state._replace(S=S)
        if o is None:
            return None, state
        y = self.norm(o, self.gate(x).view(B, T, self.value_heads, self.value_dim))
        return self.out(y.flatten(2)), state
