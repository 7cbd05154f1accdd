"""A single block with random input, for timing a machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parallel import mesh
from parallel.block import Block
from parallel.state import State
from parallel.window import open_window
from pretrain.config.schema import ModelConfig


def one_block(
    model: ModelConfig, kind: str, rows: int, tokens: int, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """A function that runs it on a window of so many rows and tokens; its output has a graph."""
    device = mesh.device()
    block = Block(model, kind).to(device, dtype)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.02)
    h = torch.randn(rows, tokens, model.d_model, device=device, dtype=dtype).requires_grad_()
    memory = block.empty_state(rows, device, dtype)
    nothing = torch.zeros(rows, 0, dtype=torch.bool, device=device)
    state = State((memory,), nothing, torch.zeros(rows, dtype=torch.int64, device=device))
    valid = torch.ones(rows, tokens, dtype=torch.bool, device=device)
    window = open_window(model, state, valid, has_pad=False, width=tokens, sliding=False)
    return lambda: block(h, memory, window)[0]
