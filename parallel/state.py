"""What blocks keep: fast weights across windows, keys and convolution inputs within a pass.

Under hard eviction only S outlives a window. Under sliding eviction the keys and values of the last
L-1 tokens, as the window's last pass left them, stay attendable as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class DeltaState(NamedTuple):
    """A delta-rule block's memory."""

    S: Tensor  # [B, H, K, V] at least fp32, the fast weights
    tail: Tensor  # [B, <= conv_width - 1, channels] the convolutions' last inputs in this pass


class AttentionState(NamedTuple):
    """An attention block's memory: rotated keys and values, of earlier windows and of this pass."""

    k: Tensor  # [B, Hkv, P + t, head_dim]
    v: Tensor  # [B, Hkv, P + t, head_dim]


BlockState = DeltaState | AttentionState


def map_blocks(
    f: Callable[..., Tensor], blocks: Sequence[BlockState], *others: Sequence[BlockState]
) -> tuple[BlockState, ...]:
    """Applies f tensor by tensor to blocks' memory, and to other memories of the same blocks."""
    return tuple(
        type(b)(*(f(*tensors) for tensors in zip(b, *same, strict=True)))
        for b, *same in zip(blocks, *others, strict=True)
    )


class State(NamedTuple):
    """The memory of a whole model (or of one stage's blocks) for B rows."""

    blocks: tuple[BlockState, ...]
    attendable: Tensor  # [B, P + t] bool, False where a key belongs to PAD or to another document
    position: Tensor  # [B] int64, tokens of the row's document before its oldest unread token
    past: int = 0  # P, keys kept from earlier windows

    def map(self, f: Callable[[Tensor], Tensor]) -> State:
        """f applied tensor by tensor."""
        blocks = map_blocks(f, self.blocks)
        return State(blocks, f(self.attendable), f(self.position), self.past)

    def with_blocks(self, part: slice, blocks: Sequence[BlockState]) -> State:
        """This state with the memory of the blocks in `part` replaced."""
        replaced = list(self.blocks)
        replaced[part] = blocks
        return self._replace(blocks=tuple(replaced))

    def detach(self, part: slice = slice(None)) -> State:
        """The same values, with the blocks of `part` detached from the autograd graph."""
        return self.with_blocks(part, map_blocks(Tensor.detach, self.blocks[part]))

    def begin_pass(self, part: slice) -> State:
        """Drops the keys and convolution inputs that the previous pass left in `part`'s blocks."""
        begun = [_kept(b, slice(self.past)) for b in self.blocks[part]]
        attendable = self.attendable[:, : self.past]
        return self.with_blocks(part, begun)._replace(attendable=attendable)

    def end_window(self, keep: int, read: int) -> State:
        """Ends a window of `read` tokens: keeps only S and the newest `keep` keys."""
        keys = self.attendable.shape[1]
        past = min(keep, keys)
        newest = slice(keys - past, keys)
        blocks = tuple(_kept(b, newest) for b in self.blocks)
        return State(blocks, self.attendable[:, newest], self.position + read, past)

    def begin_documents(self, starts: Tensor) -> State:
        """Forgets everything in the rows where a document starts. starts: [B] bool."""
        blocks = tuple(
            b._replace(S=b.S.masked_fill(starts[:, None, None, None], 0.0))
            if isinstance(b, DeltaState)
            else b
            for b in self.blocks
        )
        attendable = self.attendable & ~starts[:, None]
        return self._replace(
            blocks=blocks, attendable=attendable, position=self.position.masked_fill(starts, 0)
        )

    def named_tensors(self, first: int = 0) -> dict[str, Tensor]:
        """Every tensor by name (`blocks.1.S`, `position`, ...), for a checkpoint.

        Args:
            first: the number of the first of these blocks in the whole model.
        """
        named = {
            f"blocks.{i}.{n}": t
            for i, b in enumerate(self.blocks, first)
            for n, t in b._asdict().items()
        }
        return named | {"attendable": self.attendable, "position": self.position}

    @staticmethod
    def from_named(named: dict[str, Tensor], blocks: range) -> State:
        """The inverse of `named_tensors`, for the given blocks of a state between two windows."""
        found: list[BlockState] = []
        for i in blocks:
            kind = DeltaState if f"blocks.{i}.S" in named else AttentionState
            found.append(kind(*(named[f"blocks.{i}.{field}"] for field in kind._fields)))
        attendable = named["attendable"]
        return State(tuple(found), attendable, named["position"], attendable.shape[1])


def _kept(block: BlockState, keys: slice) -> BlockState:
    """What outlives a pass: S without the convolutions' inputs, or these keys and values."""
    if isinstance(block, DeltaState):
        return block._replace(tail=block.tail[:, :0])
    return AttentionState(block.k[:, :, keys], block.v[:, :, keys])


def shared_dim(name: str) -> int | None:
    """The dimension (heads or channels) along which ranks (`mesh.head_rank`) split a tensor of
    `State.named_tensors`; None if it is not split.
    """
    if not name.startswith("blocks."):
        return None
    return {"S": 1, "tail": 2, "k": 1, "v": 1}[name.rsplit(".", 1)[-1]]


def choose_rows(
    rows: Tensor, yes: Sequence[BlockState], no: Sequence[BlockState]
) -> tuple[BlockState, ...]:
    """Chooses between two memories of the same blocks: `yes` where rows [B] is True, else `no`."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b)

    return map_blocks(choose, yes, no)
