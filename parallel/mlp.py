"""SwiGLU: down(SiLU(gate(x)) * up(x))."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from parallel.fused import fused
from parallel.layers import ColumnLinear, RowLinear, gather_tokens, project
from parallel.shape import BlockShape


@fused
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up."""
    return F.silu(gate) * up


class MLP(nn.Module):
    """SwiGLU of width F, split over tp ranks: residual stream -> what is added to it."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.gate = ColumnLinear(shape.d_model, shape.mlp_width)
        self.up = ColumnLinear(shape.d_model, shape.mlp_width)
        self.down = RowLinear(shape.mlp_width, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """y, of x's shape: [B, t, D], or the sequence-parallel stream."""
        x = gather_tokens(x)
        return self.down(gated(*project(x, self.gate, self.up)))
