"""The hybrid block: a mixer that reads and writes memory, then an MLP; pre-norm, residual."""

from __future__ import annotations

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
        self.mixer_norm = RMSNorm(
            shape.d_model, shape.norm_eps, partial_grad=mesh.sequence_parallel()
        )
        self.mixer = MIXERS[kind](shape)
        self.mlp_norm = RMSNorm(
            shape.d_model, shape.norm_eps, partial_grad=mesh.sequence_parallel()
        )
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

    def empty_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> BlockState:
        """The memory of `batch` rows that have read nothing; dtype is that of the activations."""
        shape, ranks = self.shape, mesh.head_ranks()
        if self.kind == "attention":
            keys = torch.zeros(
                batch,
                shape.attention_kv_heads // ranks,
                0,
                shape.attention_head_dim,
                device=device,
                dtype=dtype,
            )
            return AttentionState(keys, keys)
        heads, K, V = shape.delta_value_heads // ranks, shape.delta_key_dim, shape.delta_value_dim
        channels = 2 * (shape.delta_key_heads // ranks) * K + heads * V
        S = torch.zeros(
            batch, heads, K, V, device=device, dtype=torch.promote_types(dtype, torch.float32)
        )
        return DeltaState(S, torch.zeros(batch, 0, channels, device=device, dtype=dtype))
