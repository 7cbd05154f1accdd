"""Activation checkpointing of a unit of work: a run of blocks over one (window, pass).

Policies: "none" keeps every activation; "block" keeps each block's inputs; "unit" keeps only the
unit's inputs (h, S) and recomputes the rest in backward. Gradients are bit for bit the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallel.block import Block
from parallel.state import BlockState
from parallel.window import Window


def maybe_checkpoint(function: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """function(*inputs); with `recompute`, only the inputs are kept for backward."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)


def run_unit(
    blocks: Sequence[Block],
    h: Tensor,
    states: Sequence[BlockState],
    window: Window,
    *,
    policy: str,
    write_only: bool,
) -> tuple[Tensor, tuple[BlockState, ...]]:
    """Runs h [B, T, D] through the blocks, updating their states.

    Args:
        policy: "none" | "unit" | "block".
        write_only: nothing reads the outgoing h, so the last block only updates its state.
    Returns:
        h (meaningless if nothing reads it) and the states.
    """

    def unit(h: Tensor, *states: BlockState) -> tuple[Tensor, tuple[BlockState, ...]]:
        done = []
        for block, state in zip(blocks, states, strict=True):
            only_writes = write_only and block is blocks[-1]
            h, state = maybe_checkpoint(
                block, h, state, window, only_writes, recompute=policy == "block"
            )
            done.append(state)
        return h, tuple(done)

    return maybe_checkpoint(unit, h, *states, recompute=policy == "unit")
