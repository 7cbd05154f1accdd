"""Context parallelism: ranks split each window by tokens, and inside mixers by heads.

Between mixers, positions are independent, so a rank holds the residual stream of its own tokens
only. A mixer runs along the sequence, but its heads are independent: an all-to-all at its entry
gives a rank all tokens of its own heads, and one at its exit all heads of its own tokens.

                        rank 0            rank 1                      rank 0     rank 1
    to_heads     [B, t0, all heads]  [B, t1, all heads]    ->      [B, T, own heads] each
    to_tokens                                              <-

So inside a mixer a rank sees whole windows, masks, positions and memory (S, keys) of 1/C of the
heads, and nothing has to be merged. (DeepSpeed-Ulysses, arXiv 2309.14509.) The delta rule may
instead stay split by tokens (`parallel.delta_merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel import mesh


def token_share(width: int, rank: int, ranks: int) -> slice:
    """Which tokens of a window one rank has; shares are as even as possible."""
    return slice(width * rank // ranks, width * (rank + 1) // ranks)


def token_counts(width: int) -> list[int]:
    """How many tokens of a window each rank of the group has."""
    shares = (token_share(width, rank, mesh.cp_size()) for rank in range(mesh.cp_size()))
    return [share.stop - share.start for share in shares]


def own_tokens(width: int) -> int:
    """How many tokens of a window this rank has."""
    return token_counts(width)[mesh.cp_rank()]


def of_own_tokens(x: Tensor) -> Tensor:
    """[B, T, ..] of a window -> [B, t, ..] of this rank's tokens."""
    return x[:, token_share(x.shape[1], mesh.cp_rank(), mesh.cp_size())]


def own_heads(x: Tensor, dim: int = 0) -> Tensor:
    """The part for this rank's own heads of a tensor indexed by its tensor-parallel rank's heads or
    channels.
    """
    return x if mesh.cp_size() == 1 else x.chunk(mesh.cp_size(), dim)[mesh.cp_rank()]


def to_heads(size: tuple[int, int], *xs: Tensor) -> list[Tensor]:
    """All heads of this rank's tokens -> its own heads of all tokens, in one exchange.

    Args:
        size: (B, T) of the window.
        xs: of the same dtype, B * t * channels elements each; channels are ordered head by head.
    Returns:
        [B, T, channels / C] of each; without context parallelism, xs unchanged.
    """
    (B, T), C = size, mesh.cp_size()
    if C == 1:
        return list(xs)
    t = own_tokens(T)
    parts = [x.reshape(B, t, C, x.shape[-1] // C) for x in xs]
    outgoing = torch.cat(parts, dim=-1).permute(2, 0, 1, 3).flatten(0, 2)  # [C * B * t, channels]
    counts = [B * n for n in token_counts(T)]
    arrived = _exchange(outgoing, [B * t] * C, counts).split(counts)
    whole = torch.cat([part.view(B, -1, part.shape[-1]) for part in arrived], dim=1)
    return list(whole.split([part.shape[-1] for part in parts], dim=-1))


def to_tokens(size: tuple[int, int], x: Tensor) -> Tensor:
    """This rank's heads of all tokens -> all heads of its own tokens; the inverse of `to_heads`.

    Args:
        size: (B, T) of the window. x: [B, T, heads / C, width].
    Returns:
        [B, t, heads, width].
    """
    (B, T), C = size, mesh.cp_size()
    if C == 1:
        return x
    t, counts = own_tokens(T), token_counts(T)
    outgoing = torch.cat([part.flatten(0, 1) for part in x.split(counts, dim=1)])
    arrived = _exchange(outgoing, [B * n for n in counts], [B * t] * C)  # [C * B * t, heads, width]
    return arrived.view(C, B, t, *x.shape[2:]).permute(1, 2, 0, 3, 4).flatten(2, 3)


def before_own_tokens(size: tuple[int, int], x: Tensor, count: int) -> Tensor:
    """The `count` positions just before this rank's tokens: [B, t, channels] of each rank ->
    [B, count, channels].

    Zeros before the window's first token. size: (B, T) of the window.
    """
    (B, T), me = size, mesh.cp_rank()
    shares = [token_share(T, rank, mesh.cp_size()) for rank in range(mesh.cp_size())]

    def needed(of: slice, by: slice) -> slice:
        """Which of rank `of`'s tokens rank `by` needs, as indices into `of`'s own tokens."""
        begin = max(of.start, by.start - count)
        return slice(begin - of.start, max(begin, min(of.stop, by.start)) - of.start)

    parts = [x[:, needed(shares[me], share)] for share in shares]
    comes = [needed(share, shares[me]) for share in shares]
    send = [B * part.shape[1] for part in parts]
    receive = [B * (part.stop - part.start) for part in comes]
    outgoing = torch.cat([part.flatten(0, 1) for part in parts])
    arrived = _exchange(outgoing, send, receive).split(receive)
    before = torch.cat([part.view(B, len(part) // B, x.shape[-1]) for part in arrived], dim=1)
    return F.pad(before, (0, 0, count - before.shape[1], 0))


def _exchange(x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    arrived: Tensor = _Exchange.apply(x, send, receive)
    return arrived


class _Exchange(torch.autograd.Function):
    """All-to-all of runs of rows over the context-parallel group; backward is the reverse one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        ctx.send, ctx.receive = send, receive
        arrived = x.new_empty(sum(receive), *x.shape[1:])
        dist.all_to_all_single(
            arrived, x.contiguous(), list(receive), list(send), group=mesh.cp_group()
        )
        return arrived

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(gradients[0], ctx.receive, ctx.send), None, None
