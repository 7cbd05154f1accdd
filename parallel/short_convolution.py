"""The short convolution before the delta rule: causal, depthwise, followed by SiLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from parallel.delta_rule import has_kernel
from parallel.fused import fused


class _ShortConvolution(torch.autograd.Function):
    """SiLU(y), y_t = sum_j w_j x_(t+j), channel by channel, in the projections' layout [B, T, C],
    with a hand-written gradient.

    torch's conv1d needs [B, C, T]: the transposes, in forward and backward, would cost more than
    the convolution.
    """

    @staticmethod
    def forward(
        ctx: Any, before: Tensor, weight: Tensor, valid: Tensor | None, *streams: Tensor
    ) -> tuple[Tensor, ...]:
        (B, T, _), taps = streams[0].shape, weight.shape[1]
        ctx.widths = [stream.shape[2] for stream in streams]
        x = before.new_empty(B, taps - 1 + T, len(weight))
        x[:, : taps - 1] = before
        torch.cat(streams, dim=2, out=x[:, taps - 1 :])
        if valid is not None:
            x[:, taps - 1 :] *= valid[..., None]
        w = weight.t().contiguous()
        y = x[:, :T] * w[0]
        for j in range(1, taps):
            y.addcmul_(x[:, j : j + T], w[j])
        ctx.save_for_backward(x, w, y, valid)
        return F.silu(y).split(ctx.widths, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w, y, valid = ctx.saved_tensors
        dy = torch.ops.aten.silu_backward(torch.cat(gradients, dim=2), y)
        (taps, _), T = w.shape, dy.shape[1]
        dx, dw = torch.zeros_like(x), torch.empty_like(w)
        for j in range(taps):
            dx[:, j : j + T].addcmul_(dy, w[j])
            dw[j] = (dy * x[:, j : j + T]).sum(
                dim=(0, 1), dtype=torch.promote_types(x.dtype, torch.float32)
            )
        d_before, d_streams = dx[:, : taps - 1], dx[:, taps - 1 :]
        if valid is not None:
            d_streams *= valid[..., None]
        return d_before, dw.t(), None, *d_streams.split(ctx.widths, dim=2)


def masked(x: Tensor, valid: Tensor | None) -> Tensor:
    """[B, T, C], with zeros at PAD."""
    return x if valid is None else x * valid[..., None]


@fused
def _fused_convolution(
    x: Tensor, tail: Tensor | None, weight: Tensor, valid: Tensor | None
) -> Tensor:
    T, taps = x.shape[1], weight.shape[1]
    x = masked(x, valid)
    x = F.pad(x, (0, 0, taps - 1, 0)) if tail is None else torch.cat([tail, x], dim=1)
    y = x[:, :T] * weight[:, 0]
    for j in range(1, taps):
        y = y + x[:, j : j + T] * weight[:, j]
    return F.silu(y)


def cuda_convolution(
    x: Tensor, tail: Tensor | None, weight: Tensor, valid: Tensor | None
) -> Tensor:
    """`short_convolution` of one stream on CUDA, by flash-linear-attention's kernel if it applies.

    Args:
        tail: [B, taps - 1, C], the inputs before the first token; None: zeros.
    """
    if not has_kernel(x):
        return _fused_convolution(x, tail, weight, valid)
    from fla.modules.causal_conv1d import causal_conv1d

    # the kernel wants [B, C, taps], and reads the last taps - 1
    before = None if tail is None else F.pad(tail.transpose(1, 2), (1, 0))
    y: Tensor = causal_conv1d(masked(x, valid), weight, initial_state=before, activation="silu")[0]
    return y


def short_convolution(
    before: Tensor, weight: Tensor, valid: Tensor | None, streams: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """A causal depthwise convolution over streams of channels, and SiLU.

    Args:
        before: [B, taps - 1, C], the inputs before the first token, for all streams' channels.
        weight: [C, taps], as torch.nn.Conv1d's: the last tap is for the current token.
        valid: [B, T], False where a token is taken as zeros; None: all are valid.
        streams: [B, T, channels] each, C in total.
    Returns:
        The output for each stream, of its shape.
    """
    y: tuple[Tensor, ...] = _ShortConvolution.apply(before, weight, valid, *streams)
    return y
