"""Who updates what: the slices of the parameters that each data-parallel rank holds in fp32.

DeepSpeed keeps, on every rank, one flat fp32 vector of master weights. What is in it depends on the
ZeRO stage, for parameters a, b, c given in this order and 2 ranks:

    stage 0      rank 0 | a b c |        rank 1 | a b c |         every rank holds and updates everything
    stage 1, 2   rank 0 | a b0  |        rank 1 | b1 c . |        one long vector, cut into equal parts
    stage 3      rank 0 | a0 b0 c0 |     rank 1 | a1 b1 c1 . |    every parameter cut into equal parts

`layout` says where everything is, for every rank, as a pure function. All that needs parameters or
optimiser state by name and whole (Muon, checkpoints, gradient norms) is built on it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Shard(NamedTuple):
    """A run of consecutive elements of one parameter, held by one rank."""

    name: str
    shape: torch.Size  # of the whole parameter
    start: int  # its first element, in the flattened parameter
    length: int
    offset: int  # where it begins in the rank's flat vector

    def of(self, flat: Tensor, base: int = 0) -> Tensor:
        """The slice of a rank's flat vector, or of the part of it that begins at `base`."""
        return flat[self.offset - base : self.offset - base + self.length]


def layout(shapes: dict[str, torch.Size], stage: int, ranks: int, part: int) -> list[list[Shard]]:
    """What each rank holds, in the order of its flat vector.

    Args:
        shapes: the parameters in the order in which they were given to DeepSpeed.
        stage: ZeRO stage 0..3. ranks: data-parallel size.
        part: length of a rank's flat vector, padding included; the same on every rank.
    """
    held: list[list[Shard]] = [[] for _ in range(ranks)]
    begin = 0  # of the parameter: in the long vector of stages 0..2, in each rank's part in stage 3
    for name, shape in shapes.items():
        numel = shape.numel()
        share = -(-numel // ranks)
        for rank, shards in enumerate(held):
            if stage == 0:
                shards.append(Shard(name, shape, 0, numel, begin))
                continue
            if stage == 3:
                first, last, offset = rank * share, min((rank + 1) * share, numel), begin
            else:
                first = max(rank * part - begin, 0)
                last = min((rank + 1) * part - begin, numel)
                offset = max(begin - rank * part, 0)
            if first < last:
                shards.append(Shard(name, shape, first, last - first, offset))
        begin += share if stage == 3 else numel
    return held


@dataclass
class Partition:
    """This rank's master weights and everybody's layout."""

    flat: Tensor  # [n] fp32
    layout: list[list[Shard]]  # by rank of `group`
    rank: int
    group: dist.ProcessGroup
    sharded: bool  # False: every rank holds everything (stage 0)
    gradient: Callable[[], Tensor]  # [n] fp32, reduced over the group; valid while the optimiser steps

    @property
    def shards(self) -> list[Shard]:
        """What this rank holds."""
        return self.layout[self.rank]

    def gather(self, flat: Tensor, names: Collection[str], base: int = 0) -> dict[str, Tensor]:
        """Whole tensors by name on the group's rank 0 (on the CPU), nothing elsewhere. One collective.

        Args:
            flat: laid out as the master weights (they themselves, their gradient), or as the part of them
                that begins at `base` (a moment).
            names: the parameters to take.
        """
        chosen = [[s for s in shards if s.name in names] for shards in self.layout]
        sizes = [sum(s.length for s in shards) for shards in chosen]
        padding = flat.new_zeros(max(sizes) - sizes[self.rank])
        parts = [torch.cat([*(s.of(flat, base) for s in chosen[self.rank]), padding])]
        if self.sharded and len(self.layout) > 1:
            sent, first = parts[0], dist.get_global_rank(self.group, 0)
            parts = [torch.empty_like(sent) for _ in sizes] if self.rank == 0 else []
            dist.gather(sent, parts or None, dst=first, group=self.group)
        whole: dict[str, Tensor] = {}
        if self.rank != 0:
            return whole
        for part, shards in zip(parts, chosen, strict=False):  # of replicas, one is enough
            pieces = part.cpu().split([*(s.length for s in shards), len(part) - sum(s.length for s in shards)])
            for s, piece in zip(shards, pieces, strict=False):
                value = whole.setdefault(s.name, torch.empty(s.shape, dtype=flat.dtype))
                value.view(-1)[s.start : s.start + s.length] = piece
        return whole

    def scatter(self, flat: Tensor, whole: Mapping[str, Callable[[], Tensor]], base: int = 0) -> None:
        """The inverse of `gather`: fills this rank's slices from whole tensors, without communication.

        Args:
            whole: by name, what gives the parameter-shaped tensor; called only for what this rank holds.
        """
        for s in self.shards:
            if s.name in whole:
                s.of(flat, base).copy_(whole[s.name]().reshape(-1)[s.start : s.start + s.length])


class WholeMatrices:
    """Brings scattered matrices together, each on one rank, and their updates back.

    Every matrix has one owner; runs of consecutive matrices are given to the ranks so that the work
    (m n min(m, n) for m x n) is even. Cost for E elements over R ranks: two all-to-alls, in which a
    rank sends and receives about E / R elements, and E / R elements of memory: nothing is computed
    twice and nobody holds all matrices. Without sharding nothing moves.
    """

    def __init__(self, partition: Partition, names: Sequence[str]) -> None:
        chosen = set(names)
        held = [[s for s in shards if s.name in chosen] for shards in partition.layout]
        self.partition, self.mine = partition, held[partition.rank]
        shapes = {s.name: s.shape for shards in held for s in shards}
        self.exchanged = partition.sharded and len(partition.layout) > 1
        owner = self._owners({name: shapes[name] for name in names}, len(held) if self.exchanged else 1)
        me = partition.rank if self.exchanged else 0
        self.owned = [name for name in names if owner[name] == me]
        begins, size = {}, 0
        for name in self.owned:
            begins[name] = size
            size += shapes[name].numel()
        self.size = size
        self.runs = self._runs([shapes[name] for name in self.owned])
        self.send = [sum(s.length for s in self.mine if owner[s.name] == rank) for rank in range(len(held))]
        # Owners do not decrease along the parameters' order, so what is sent to each rank is one run of the
        # local slices, and what comes from a rank is in the order of that rank's slices.
        arriving = [[s for s in shards if owner[s.name] == me] for shards in held]
        self.receive = [sum(s.length for s in shards) for shards in arriving]
        self.places = [(begins[s.name] + s.start, s.length) for shards in arriving for s in shards]

    @staticmethod
    def _owners(shapes: dict[str, torch.Size], ranks: int) -> dict[str, int]:
        work = {name: shape.numel() * min(shape) for name, shape in shapes.items()}
        total, before, owner = max(sum(work.values()), 1), 0, {}
        for name, cost in work.items():
            owner[name] = ranks * (2 * before + cost) // (2 * total)  # by the middle of its share of the work
            before += cost
        return owner

    @staticmethod
    def _runs(shapes: list[torch.Size]) -> list[tuple[int, int, int]]:
        """Consecutive matrices of the same shape: (how many, rows, columns)."""
        runs: list[tuple[int, int, int]] = []
        for rows, columns in shapes:
            if runs and runs[-1][1:] == (rows, columns):
                runs[-1] = (runs[-1][0] + 1, rows, columns)
            else:
                runs.append((1, rows, columns))
        return runs

    def gather(self, values: list[Tensor]) -> list[Tensor]:
        """Local slices (in the order of `mine`) -> the owned matrices, in batches [k, rows, columns]."""
        flat = torch.cat(values) if values else self.partition.flat.new_zeros(0)
        if self.exchanged:
            arrived = flat.new_empty(sum(self.receive))
            dist.all_to_all_single(arrived, flat, self.receive, self.send, group=self.partition.group)
            flat = flat.new_empty(self.size)
            for (place, length), part in zip(self.places, arrived.split([n for _, n in self.places]), strict=True):
                flat[place : place + length] = part
        parts = flat.split([k * rows * columns for k, rows, columns in self.runs])
        return [part.view(run) for part, run in zip(parts, self.runs, strict=True)]

    def scatter(self, batches: list[Tensor]) -> list[Tensor]:
        """The inverse of `gather`."""
        flat = torch.cat([b.reshape(-1) for b in batches]) if batches else self.partition.flat.new_zeros(0)
        if self.exchanged:
            sent = torch.cat([flat[:0]] + [flat[place : place + length] for place, length in self.places])
            flat = flat.new_empty(sum(self.send))
            dist.all_to_all_single(flat, sent, self.send, self.receive, group=self.partition.group)
        return list(flat.split([s.length for s in self.mine]))
