"""Which slices of the fp32 master weights each rank holds and updates under ZeRO.

DeepSpeed keeps one flat fp32 vector of master weights on every rank. Its content depends on the
ZeRO stage; for parameters a, b, c, given in this order, and 2 ranks:

    stage 0      rank 0 | a b c |      rank 1 | a b c |        each rank holds and updates all
    stage 1, 2   rank 0 | a b0  |      rank 1 | b1 c . |       one long vector, cut in equal parts
    stage 3      rank 0 | a0 b0 c0 |   rank 1 | a1 b1 c1 . |   every parameter cut in equal parts

`shard_layout`, a pure function, says where everything is, for every rank. All code that needs whole
parameters or optimiser state by name (Muon, checkpoints, gradient norms) is built on it alone. A
"parameter" here is the part that this pipeline stage and tensor-parallel rank has; all ranks of a
stage have the same layout. "Ranks" are those that hold the same weights: data and context parallel
(dp x cp).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.layers import share
from parallel.slices import Piece, Slice


class Shard(NamedTuple):
    """A run of consecutive elements of one parameter, held by one rank."""

    name: str
    shape: torch.Size  # of the parameter
    start: int  # index of its first element in the flattened parameter
    length: int
    offset: int  # where it starts in the rank's flat vector

    def of(self, flat: Tensor, base: int = 0) -> Tensor:
        """This slice of a rank's flat vector, or of the part of it that starts at `base`."""
        return flat[self.offset - base : self.offset - base + self.length]


def shard_layout(
    shapes: dict[str, torch.Size], *, stage: int, ranks: int, part: int
) -> list[list[Shard]]:
    """What each rank holds, in the order of its flat vector.

    Args:
        shapes: the parameters, in the order in which DeepSpeed was given them.
        stage: ZeRO stage 0..3. ranks: dp x cp.
        part: length of a rank's flat vector, padding included; the same on every rank.
    """
    held: list[list[Shard]] = [[] for _ in range(ranks)]
    begin = 0  # where the parameter starts: in the long vector; in stage 3, in each rank's vector
    for name, shape in shapes.items():
        numel = shape.numel()
        per_rank = -(-numel // ranks)
        for rank, shards in enumerate(held):
            if stage == 0:
                shards.append(Shard(name, shape, 0, numel, begin))
                continue
            if stage == 3:
                first, last, offset = rank * per_rank, min((rank + 1) * per_rank, numel), begin
            else:
                first = max(rank * part - begin, 0)
                last = min((rank + 1) * part - begin, numel)
                offset = max(begin - rank * part, 0)
            if first < last:
                shards.append(Shard(name, shape, first, last - first, offset))
        begin += per_rank if stage == 3 else numel
    return held


@dataclass
class Partition:
    """This rank's master weights, and the layout of all ranks."""

    flat: Tensor  # [n] fp32
    layout: list[list[Shard]]  # by dp x cp rank
    sharded: bool  # False: every rank holds everything (stage 0)
    # [n] fp32, reduced over dp x cp; valid while the optimiser steps
    gradient: Callable[[], Tensor]
    # the dimension along which tensor-parallel ranks split a parameter; None: replicated
    splits: Mapping[str, int | None]
    # replicated over tp, but each rank's gradient covers only its own heads or tokens
    partial_grad: Collection[str]
    # the parameters that this rank counts in the norm, so that each is counted once
    counted: Collection[str]

    @property
    def shards(self) -> list[Shard]:
        """The shards that this rank holds."""
        return self.layout[mesh.dp_cp_rank()]

    @property
    def holders(self) -> list[tuple[int, int]]:
        """(tp, dp x cp) of the ranks of `group`, in its order."""
        if self.sharded:
            return [(t, d) for d in range(mesh.dp_cp_size()) for t in range(mesh.tp_size())]
        return [(t, mesh.dp_cp_rank()) for t in range(mesh.tp_size())]

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks over which this stage's parameters are split, each element on one of them."""
        return mesh.stage_group() if self.sharded else mesh.tp_group()

    def complete(self, gradient: Tensor) -> None:
        """Sums partial gradients over tp, in place, by one collective."""
        slices = [s.of(gradient) for s in self.shards if s.name in self.partial_grad]
        if slices:
            summed = torch.cat(slices).to(mesh.device())
            dist.all_reduce(summed, group=mesh.tp_group())
            for place, value in zip(slices, summed.split([len(s) for s in slices]), strict=True):
                place.copy_(value)

    def square(self, gradient: Tensor) -> Tensor:
        """Sum of squares of the whole model's gradient: [], the same on every rank."""
        norms = torch._foreach_norm([s.of(gradient) for s in self.shards if s.name in self.counted])
        square = torch.stack([*norms, gradient.new_zeros(())]).square().sum().to(mesh.device())
        dist.all_reduce(square, group=None if self.sharded else mesh.model_group())
        return square.to(gradient.device)

    def pieces(self, flat: Tensor, names: Collection[str], base: int = 0) -> dict[str, Piece]:
        """The pieces that this rank owns, by name: each element of the model has one owner.

        Args:
            flat: laid out like the master weights (the weights, their gradient), or like the part
                of them that starts at `base` (a moment). The pieces are views of it.
            names: the parameters to take.
        """
        if not self.sharded and mesh.dp_cp_rank() > 0:  # a replica
            return {}
        mine = {}
        for s in self.shards:
            if s.name in names and s.name in self.counted:
                dim, run = self.splits[s.name], (s.start, s.start + s.length)
                places = {} if dim is None else {dim: (mesh.tp_rank(), mesh.tp_size())}
                mine[s.name] = Piece(Slice.share(tuple(s.shape), places, run), s.of(flat, base))
        return mine

    def scatter(
        self, flat: Tensor, whole: Mapping[str, Callable[[], Tensor]], base: int = 0
    ) -> None:
        """The inverse of `pieces`: fills this rank's slices from whole tensors, no communication.

        Args:
            whole: by name, a function that returns the whole tensor; called only for parameters
                of which this rank holds a part.
        """
        for s in self.shards:
            if s.name in whole:
                value = share(whole[s.name](), self.splits[s.name])
                s.of(flat, base).copy_(value.reshape(-1)[s.start : s.start + s.length])


class WholeMatrices:
    """Gathers scattered matrices, each on one rank, and scatters their updates back.

    A matrix may be cut twice: into tensor-parallel shares, by rows or by columns, and each share
    into runs of elements by ZeRO. A plan says who sends what to whom, here for matrices A, B, C on
    2 ranks:

        layout          rank 0 | A B0    |          rank 1 | B1 C    |
        owners          A: rank 0                   B, C: rank 1
        send plan       A -> 0, B0 -> 1             B1 C -> 1           one run of slices per owner
        receive plan    A <- 0                      B0 <- 0, B1 C <- 1  a place for each that comes
        gathered        rank 0 | A |                rank 1 | B0 B1 C |
        scattered       the same way back, with the owners' results

    Owners are chosen among all ranks of the stage (tp x cp x dp) so that the work (m n min(m, n)
    for m x n) is even. For E elements over R ranks this costs two all-to-alls, in which a rank
    sends and receives about E / R elements, and memory for E / R elements: nothing is computed
    twice and no rank holds all matrices. What is not cut does not move.
    """

    def __init__(self, partition: Partition, names: Sequence[str]) -> None:
        chosen, holders = set(names), partition.holders
        held = [[s for s in shards if s.name in chosen] for shards in partition.layout]
        self.group, self.exchanged = partition.group, len(holders) > 1
        self.mine = held[mesh.dp_cp_rank()]
        self._empty = partition.flat.new_zeros(0)
        shapes = {s.name: s.shape for shards in held for s in shards}
        me = holders.index((mesh.tp_rank(), mesh.dp_cp_rank())) if self.exchanged else 0

        owner = self._owners({name: shapes[name] for name in names}, len(holders))
        self.owned = [name for name in names if owner[name] == me]
        self.runs = self._runs([(*shapes[name], partition.splits[name]) for name in self.owned])

        # Send plan: how many elements go to each rank. Owners never decrease in the order of the
        # parameters, so what goes to one rank is one run of the local slices.
        self.send = [
            sum(s.length for s in self.mine if owner[s.name] == rank)
            for rank in range(len(holders))
        ]

        # Receive plan: how many elements come from each rank, and where they go. They come in the
        # order of the sender's slices; an owned matrix is stored as its tp shares, one by one.
        begins, self.size = {}, 0
        for name in self.owned:
            begins[name] = self.size
            self.size += shapes[name].numel() * mesh.tp_size()
        arriving = [[s for s in held[d] if owner[s.name] == me] for _, d in holders]
        self.receive = [sum(s.length for s in shards) for shards in arriving]
        self.places = [
            (begins[s.name] + t * s.shape.numel() + s.start, s.length)
            for (t, _), shards in zip(holders, arriving, strict=True)
            for s in shards
        ]

    @staticmethod
    def _owners(shapes: dict[str, torch.Size], ranks: int) -> dict[str, int]:
        """Assigns each rank a run of consecutive matrices, so that the work is even."""
        work = {name: shape.numel() * min(shape) for name, shape in shapes.items()}
        total, before, owner = max(sum(work.values()), 1), 0, {}
        for name, cost in work.items():
            # by the middle of its share of the work
            owner[name] = ranks * (2 * before + cost) // (2 * total)
            before += cost
        return owner

    @staticmethod
    def _runs(shapes: list[tuple[int, int, int | None]]) -> list[tuple[int, int, int, int | None]]:
        """Groups consecutive matrices of equal shape and split: (count, rows, columns, split)."""
        runs: list[tuple[int, int, int, int | None]] = []
        for shape in shapes:
            if runs and runs[-1][1:] == shape:
                runs[-1] = (runs[-1][0] + 1, *shape)
            else:
                runs.append((1, *shape))
        return runs

    def gather(self, values: list[Tensor]) -> list[Tensor]:
        """Local slices in the order of `mine` -> owned matrices, in batches [k, rows, columns]."""
        # offloaded optimiser state is on the host
        flat = torch.cat([self._empty, *values]).to(mesh.device())
        if self.exchanged:
            arrived = flat.new_empty(sum(self.receive))
            dist.all_to_all_single(arrived, flat, self.receive, self.send, group=self.group)
            flat = flat.new_empty(self.size)
            for (place, length), part in zip(
                self.places, arrived.split([n for _, n in self.places]), strict=True
            ):
                flat[place : place + length] = part
        tp = mesh.tp_size()
        parts = flat.split([k * tp * rows * columns for k, rows, columns, _ in self.runs])
        batches = []
        for part, (k, rows, columns, split) in zip(parts, self.runs, strict=True):
            shares = part.view(k, tp, rows, columns)
            batches.append(
                shares.transpose(1, 2).flatten(2) if split == 1 else shares.flatten(1, 2)
            )
        return batches

    def scatter(self, batches: list[Tensor]) -> list[Tensor]:
        """The inverse of `gather`."""
        tp, parts = mesh.tp_size(), [self._empty.to(mesh.device())]
        for batch, (k, rows, columns, split) in zip(batches, self.runs, strict=True):
            shares = batch.view(k, rows, tp, columns).transpose(1, 2) if split == 1 else batch
            parts.append(shares.reshape(-1))
        flat = torch.cat(parts)
        if self.exchanged:
            sent = torch.cat(
                [flat[:0]] + [flat[place : place + length] for place, length in self.places]
            )
            flat = flat.new_empty(sum(self.send))
            dist.all_to_all_single(flat, sent, self.send, self.receive, group=self.group)
        return list(flat.to(self._empty.device).split([s.length for s in self.mine]))
