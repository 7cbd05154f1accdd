"""All that a session remembers, in tensors that are allocated once and updated in place.

    S            of each delta block, across windows
    keys         of each attention block: the open window's; under sliding eviction, after at most
                 L - 1 of earlier windows
    tail         of each delta block: the last inputs of its convolutions in the open window
    hidden       the open window's hidden states, which sleep starts from

So the memory is as large after a million tokens as after one: keys and values of L tokens under
hard eviction, of 2 L - 1 under sliding eviction, where in sleep the window's first token still
attends to the L - 1 before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.state import AttentionState, BlockState, DeltaState, State, map_blocks
from pretrain.model.hybrid import HybridLM


class SessionMemory:
    """One row's memory of a model, between any two tokens or passes.

    blocks    S and tail, or keys and values, with room for a window
    hidden    [1, L, D], of the tokens read in the open window
    past      how many keys of earlier windows it holds
    filled    how many tokens the open window has
    position  how many tokens came before the open window
    """

    def __init__(self, model: HybridLM) -> None:
        config, sleep = model.config, model.sleep
        self.keeps = sleep.window - 1 if sleep.slides else 0
        self.blocks = tuple(
            AttentionState(*(_room(keys, 2, self.keeps + sleep.window) for keys in block))
            if isinstance(block, AttentionState)
            else DeltaState(block.S, _room(block.tail, 1, config.delta_conv_width - 1))
            for block in model.empty_state(1).blocks
        )
        shape = (1, sleep.window, config.d_model)
        self.hidden = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.past = self.filled = self.position = 0

    def state(self) -> State:
        """The memory as a `State` for `one_pass`: with keys and tails only of what has been
        read.
        """
        blocks = tuple(map(self._read_part, self.blocks))
        device = self.hidden.device
        attendable = torch.ones(1, self.past + self.filled, dtype=torch.bool, device=device)
        return State(blocks, attendable, torch.tensor([self.position], device=device), self.past)

    def _read_part(self, block: BlockState) -> BlockState:
        if isinstance(block, DeltaState):
            room = block.tail.shape[1]
            return DeltaState(block.S, block.tail[:, room - min(self.filled, room) :])
        end = self.past + self.filled
        return AttentionState(block.k[:, :, :end], block.v[:, :, :end])

    def write(self, blocks: Sequence[BlockState]) -> None:
        """Copies in what a pass has left in the blocks; not more keys than there is room for."""
        for mine, left in zip(self.blocks, blocks, strict=True):
            if isinstance(mine, DeltaState) and isinstance(left, DeltaState):
                mine.S.copy_(left.S)
                room, have = mine.tail.shape[1], left.tail.shape[1]
                mine.tail[:, : room - have] = 0  # as at the start of a window
                mine.tail[:, room - have :] = left.tail
            elif isinstance(mine, AttentionState) and isinstance(left, AttentionState):
                have = left.k.shape[2]
                mine.k[:, :, :have] = left.k
                mine.v[:, :, :have] = left.v

    def end_window(self, state: State) -> None:
        """Copies in what `parallel.state.State.end_window` has left."""
        self.write(state.map(torch.clone).blocks)  # cloned, since sliding keys overlap themselves
        self.position += self.filled
        self.past, self.filled = state.past, 0

    def copy(self) -> SessionMemory:
        """An independent copy of this memory."""
        other = object.__new__(SessionMemory)
        other.__dict__.update(self.__dict__)
        other.blocks = map_blocks(torch.clone, self.blocks)
        other.hidden = self.hidden.clone()
        return other

    def named_tensors(self) -> dict[str, Tensor]:
        """The parts in use, by name, as a file stores them. Views."""
        end = self.past + self.filled
        named = {
            f"blocks.{b}.{name}": part[:, :, :end] if isinstance(block, AttentionState) else part
            for b, block in enumerate(self.blocks)
            for name, part in block._asdict().items()
        }
        return named | {"hidden": self.hidden[:, : self.filled]}

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return self.hidden.nbytes + sum(t.nbytes for block in self.blocks for t in block)


def _room(x: Tensor, dim: int, size: int) -> Tensor:
    """Zeros like x, but with another size in one dimension."""
    shape = list(x.shape)
    shape[dim] = size
    return x.new_zeros(shape)
