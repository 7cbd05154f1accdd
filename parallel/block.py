"""The hybrid block: a mixer that reads and writes memory, then an MLP; pre-norm, residual."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from parallel import mesh
from parallel.attention import Attention
from parallel.gated_delta_net import GatedDeltaNet
from parallel.mlp import MLP
from parallel.norms import RMSNorm
from parallel.shape import BlockShape
from parallel.state import AttentionState, BlockState, DeltaState
from parallel.window import Window

MIXERS: dict[str, type[Attention | GatedDeltaNet]] = {
    "attention": Attention,
    "delta": GatedDeltaNet,
}


class Block(nn.Module):
    """forward(x, state, window) -> (y, state): returns the new state, with x written into it.

    x and y are the residual stream (`parallel.layers`) of this rank's tokens: [B, t, D], or
    [B*t/tp, D] with sequence parallelism.
    """

    def __init__(self, shape: BlockShape, kind: str) -> None:
        super().__init__()
        self.shape, self.kind = shape, kind
        norm = partial(RMSNorm, shape.d_model, shape.norm_eps, mesh.sequence_parallel())
        self.mixer_norm = norm()
        self.mixer = MIXERS[kind](shape)
        self.mlp_norm = norm()
        self.mlp = MLP(shape)

    def forward(
        self, x: Tensor, state: BlockState, window: Window, write_only: bool = False
    ) -> tuple[Tensor, BlockState]:
        """With write_only, only the state is updated; x is returned unchanged."""
        y, state = self.mixer(self.mixer_norm(x), state, window, write_only)
        if write_only:
            return x, state
        x, normed = self.mlp_norm.of_sum(x, y)
        return x + self.mlp(normed), state

    def empty_state(
        self, rows: int, device: torch.device, dtype: torch.dtype, past: int = 0
    ) -> BlockState:
        """The memory of rows that have read nothing, all zero.

        Args:
            dtype: that of the activations.
            past: how many keys of earlier windows it holds.
        """
        shape, ranks = self.shape, mesh.head_ranks()
        zeros = partial(torch.zeros, device=device)
        if self.kind == "attention":
            size = rows, shape.attention_kv_heads // ranks, past, shape.attention_head_dim
            return AttentionState(zeros(size, dtype=dtype), zeros(size, dtype=dtype))
        heads, K, V = shape.delta_value_heads // ranks, shape.delta_key_dim, shape.delta_value_dim
        channels = 2 * (shape.delta_key_heads // ranks) * K + heads * V
        S = zeros(rows, heads, K, V, dtype=torch.promote_types(dtype, torch.float32))
        return DeltaState(S, zeros(rows, 0, channels, dtype=dtype))
