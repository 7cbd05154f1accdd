"""The mixer that owns the fast weights: projections, convolutions, gates and the delta rule.

Layer for layer Qwen3.5's gated delta net, but with every projection a parameter of its own, so that
a split by head is a split of each of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel import mesh
from parallel.context import before_own_tokens, of_own_tokens, own_heads, to_heads, to_tokens
from parallel.delta_merge import merged_delta_rule
from parallel.delta_rule import delta_rule
from parallel.fused import fused
from parallel.layers import ColumnLinear, RowLinear, gather_tokens, project, split_parameter
from parallel.norms import GatedRMSNorm, at_least_fp32, l2_norm, l2_normalized
from parallel.shape import BlockShape
from parallel.short_convolution import cuda_convolution, masked, short_convolution
from parallel.state import DeltaState
from parallel.window import Window


def _write_strength(x: Tensor, negative_eigenvalues: bool) -> Tensor:
    """b_t of W_b x_t: in (0, 1), or (0, 2) where eigenvalues may be negative."""
    strength = torch.sigmoid(at_least_fp32(x))
    return 2 * strength if negative_eigenvalues else strength


@fused
def _gates(
    beta: Tensor,
    alpha: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    valid: Tensor | None,
    negative_eigenvalues: bool,
) -> tuple[Tensor, Tensor]:
    """b_t, and log a_t = -exp(A_log) * softplus(W_a x_t + dt_bias) <= 0, of each token and head
    [B, T, H]; both are 0 at PAD, which neither writes nor decays S.
    """
    step = F.softplus(at_least_fp32(alpha) + at_least_fp32(dt_bias))
    log_decay = -at_least_fp32(A_log).exp() * step
    beta = _write_strength(beta, negative_eigenvalues)
    return masked(beta, valid), masked(log_decay, valid)


@fused
def _unit_length(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in x's dtype."""
    return l2_norm(x).type_as(x)


class GatedDeltaNet(nn.Module):
    """forward(x, state, window) -> (y, state), with x and y the residual stream
    (`parallel.layers`).
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        D, taps, self.by_tokens = shape.d_model, shape.delta_conv_width, mesh.delta_by_tokens()
        ranks = mesh.tp_size() if self.by_tokens else mesh.head_ranks()
        keys, values = shape.delta_keys, shape.delta_values
        self.key_heads = shape.delta_key_heads // ranks
        self.value_heads = shape.delta_value_heads // ranks
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

    def write_strength(self, x: Tensor) -> Tensor:
        """b_t of W_b x_t."""
        return _write_strength(x, self.negative_eigenvalues)

    def _mine(self, parameter: Tensor) -> Tensor:
        """The part that this rank uses of a parameter indexed by head or channel."""
        return parameter if self.by_tokens else own_heads(parameter)

    def _convolve(
        self, mixed: list[Tensor], tail: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Causal depthwise convolution and SiLU; keys and queries get unit length.

        Args:
            mixed: k, v and, unless write_only, q, [B, T, channels] each.
            tail: [B, <= taps - 1, all channels], the inputs before these, in the same order.
        Returns:
            k, v and q or None, [B, T, heads, width] each.
        """
        (B, T, _), widths = mixed[0].shape, [m.shape[-1] for m in mixed]
        heads = [self.key_heads, self.value_heads, self.key_heads]
        weights = [self._mine(w) for w in (self.conv_k, self.conv_v, self.conv_q)[: len(mixed)]]
        before = F.pad(tail, (0, 0, self.taps - 1 - tail.shape[1], 0))
        if tail.is_cuda:
            tails = before.split(widths, dim=-1) if tail.shape[1] else [None] * len(mixed)
            parts = tuple(map(cuda_convolution, mixed, tails, weights, [valid] * len(mixed)))
        else:
            parts = short_convolution(before, torch.cat(weights), valid, mixed)
        k, v, *q = (part.view(B, T, h, -1) for part, h in zip(parts, heads, strict=False))
        unit = _unit_length if tail.is_cuda else l2_normalized
        return unit(k), v, unit(q[0]) if q else None

    def forward(
        self, x: Tensor, state: DeltaState, window: Window, write_only: bool = False
    ) -> tuple[Tensor | None, DeltaState]:
        """Writes x into the fast weights by the delta rule, and reads from them.

        Args:
            x: [B, t, D], or the sequence-parallel stream; so is y.
            write_only: nothing downstream reads y (as in the last pass of a window that only
                sleeps): skip queries, gate and read-out, and return None for y.
        """
        B, valid = window.size[0], window.valid
        x = gather_tokens(x)
        reads = [] if write_only else [self.q, self.gate]
        beta, alpha, k, v, *rest = project(x, self.beta, self.alpha, self.k, self.v, *reads)
        gate = rest.pop() if rest else None
        read = [beta, alpha, k, v, *rest]
        if not self.by_tokens:
            read = to_heads(window.size, *read)
        elif valid is not None:
            valid = of_own_tokens(valid)
        beta, alpha, *mixed = (channels.view(B, -1, channels.shape[-1]) for channels in read)
        beta, log_decay = _gates(
            beta, alpha, self._mine(self.A_log), self._mine(self.dt_bias),
            valid, self.negative_eigenvalues,
        )  # fmt: skip
        if window.record_decay is not None:
            by_head = to_heads(window.size, log_decay) if self.by_tokens else [log_decay]
            window.record_decay(by_head[0])
        tail = state.tail[..., : sum(m.shape[-1] for m in mixed)]
        if self.by_tokens:
            streams = masked(torch.cat(mixed, dim=-1), valid)
            tail = before_own_tokens(window.size, streams, self.taps - 1)
        k, v, q = self._convolve(mixed, tail, valid)
        rule = merged_delta_rule if self.by_tokens else delta_rule
        o, S = rule(q, k, v, log_decay, beta, state.S, self.chunk)
        state = state._replace(S=S)
        if window.keeps_tail:
            streams = masked(torch.cat(mixed, dim=-1), window.valid)
            state = state._replace(tail=torch.cat([tail, streams], dim=1)[:, 1 - self.taps :])
        if o is None or gate is None:
            return None, state
        o = o if self.by_tokens else to_tokens(window.size, o)
        y = self.norm(o, gate.view(o.shape))
        return self.out(y.flatten(2)), state
