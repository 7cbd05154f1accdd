"""One unit of work, a run of blocks over one (window, pass), and what is kept of it for backward.

Policies: "none" keeps every activation; "block" keeps each block's inputs; "unit" keeps only the
unit's inputs (h, S) and recomputes the rest in backward. The gradients are the same bit for bit.
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


def kept(function: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """function(*inputs), of which backward keeps only the inputs if `recompute`."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)


def run_unit(
    blocks: Sequence[Block],
    h: Tensor,
    states: Sequence[BlockState],
    window: Window,
    policy: str,
    write_only: bool = False,
) -> tuple[Tensor, tuple[BlockState, ...]]:
    """Runs h [B, T, D] through the blocks, updating their states.

    Args:
        policy: "none" | "unit" | "block".
        write_only: nothing reads the h that comes out, so whatever follows the last write into a
            memory that outlives the window (fast weights; keys under sliding eviction) is not
            computed.
    Returns:
        h (meaningless at a dead end) and the states.
    """
    writers = [i for i, block in enumerate(blocks) if block.kind == "delta" or window.keeps_keys]
    last = (writers[-1] if writers else -1) if write_only else len(blocks)

    def unit(h: Tensor, *states: BlockState) -> tuple[Tensor, tuple[BlockState, ...]]:
        done = list(states)
        for i, block in enumerate(blocks[: last + 1]):
            h, done[i] = kept(block, h, states[i], window, i == last, recompute=policy == "block")
        return h, tuple(done)

    return kept(unit, h, *states, recompute=policy == "unit")
