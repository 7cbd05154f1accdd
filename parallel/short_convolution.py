"""The short convolution before the delta rule: causal, depthwise, over a few tokens; and SiLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _ShortConvolution(torch.autograd.Function):
    """SiLU(y), y_t = sum_j w_j x_(t+j), channel by channel, in the layout [B, T, C] that
    projections read and write; its gradient is written out.

    torch's conv1d wants [B, C, T]: the transposes, there and in backward, cost more than the
    convolution.
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


def short_convolution(
    before: Tensor, weight: Tensor, valid: Tensor | None, streams: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """A causal depthwise convolution over streams of channels, and SiLU.

    Args:
        before: [B, taps - 1, C], the inputs before the first token, of all streams' channels.
        weight: [C, taps], as torch.nn.Conv1d's: the last tap is for the current token.
        valid: [B, T], False where a token counts as zeros; None: all count.
        streams: [B, T, channels] each, C together.
    Returns:
        The same of each.
    """
    y: tuple[Tensor, ...] = _ShortConvolution.apply(before, weight, valid, *streams)
    return y
