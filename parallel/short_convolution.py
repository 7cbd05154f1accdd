"""The short convolution before the delta rule: causal, depthwise, over a few tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class _ShortConvolution(torch.autograd.Function):
    """y_t = sum_j w_j x_(t+j), channel by channel, in the layout [B, T, C] that projections read
    and write.

    torch's conv1d wants [B, C, T]: the transposes, there and in backward, cost more than the
    convolution.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        T = x.shape[1] - weight.shape[1] + 1
        y = x[:, :T] * weight[:, 0]
        for j in range(1, weight.shape[1]):
            y.addcmul_(x[:, j : j + T], weight[:, j])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        dy = gradients[0]
        T = dy.shape[1]
        dx, dw = torch.zeros_like(x), torch.empty_like(weight)
        for j in range(weight.shape[1]):
            dx[:, j : j + T].addcmul_(dy, weight[:, j])
            dw[:, j] = (dy * x[:, j : j + T]).sum(
                dim=(0, 1), dtype=torch.promote_types(x.dtype, torch.float32)
            )
        return dx, dw


def short_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """A causal depthwise convolution.

    Args:
        x: [B, taps - 1 + T, C], the inputs before the first token in front.
        weight: [C, taps], as torch.nn.Conv1d's: the last tap is for the current token.
    Returns:
        [B, T, C].
    """
    y: Tensor = _ShortConvolution.apply(x, weight)
    return y
