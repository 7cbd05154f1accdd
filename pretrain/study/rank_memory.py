"""The peak memory of a rank in a step: weights, gradients, optimiser state and activations.

What persists between steps follows from how DeepSpeed's ZeRO lays out a stage's parameters
(`parallel/engine.py`), activations from the order of the stage's units and from what each keeps
(`parallel/recompute.py`). All in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from parallel.combinations import MAX_BUCKET, MAX_WHOLE, Layout
from pretrain.config.memory import FP32
from pretrain.study.block_work import BlockBytes


@dataclass(frozen=True)
class RankMemory:
    """The memory of one rank at its peak."""

    weights: float
    gradients: float
    optimizer: float  # fp32 master weights and moments
    buffers: float  # in which gradients are reduced
    activations: float
    update: float  # temporary memory of the optimiser, when there are no activations

    @property
    def total(self) -> float:
        """Bytes."""
        held = self.weights + self.gradients + self.optimizer + self.buffers
        return held + max(self.activations, self.update)


class Parameters(NamedTuple):
    """Numbers of parameters of one rank: its tensor-parallel share of its stage's."""

    blocks: float  # of its blocks
    ends: float  # of embedding, norm and head
    matrices: float  # how many of these Muon updates

    @property
    def all(self) -> float:
        """All of them."""
        return self.blocks + self.ends


def memory_of_rank(
    p: Parameters, x: Layout, weight_ranks: int, activations: float, on_host: bool
) -> RankMemory:
    """What a rank holds, given its activations.

    Args:
        weight_ranks: over which ZeRO shards: data- and context-parallel.
        on_host: the device is the host, so offloading frees nothing.
    """
    size = 2 if x.precision == "bf16" else FP32
    shard = p.all / weight_ranks if x.zero else p.all
    weights, gradients = size * p.all, size * p.all
    if x.zero == 3:
        whole = min(p.blocks, MAX_WHOLE) + p.ends
        weights = size * (min(p.all, whole) + p.all / weight_ranks)
    if x.precision == "bf16" and x.zero == 1:
        gradients = FP32 * p.all  # every backward is added up in fp32
    elif x.zero >= 2:
        gradients += FP32 * shard  # what is left when all ranks' are summed
    # Masters (ZeRO 0 in fp32 has the weights themselves), Muon's momentum, AdamW's two moments.
    masters = 0.0 if x.zero == 0 and x.precision == "fp32" else FP32 * shard
    moments = FP32 * shard * (2 - p.matrices / p.all)
    bucket = size * min(p.all, MAX_BUCKET) if x.zero in (2, 3) or size == FP32 else 0.0
    optimizer = masters + moments
    if x.offload and not on_host:
        optimizer = 0.0
    # Muon: two copies of the next momentum, whole matrices, their updates, and the updates sent
    # back. Tensor-parallel ranks own different whole matrices, not parts of them.
    whole = p.matrices / (weight_ranks if x.zero else 1)
    update = FP32 * (2 * shard * p.matrices / p.all + 4 * whole)
    return RankMemory(weights, gradients, optimizer, bucket, activations, update)


class UnitBytes(NamedTuple):
    """Bytes of one unit on one stage."""

    kept: float  # from its forward to the end of its backward
    again: float  # in addition during its backward: recomputed activations, gradients


def unit_bytes(policy: str, blocks: Sequence[BlockBytes]) -> UnitBytes:
    """What a unit of these blocks keeps.

    none     all that backward reads
    unit     h of the first block, S of all      recomputed: the rest
    block    h and S of every block              recomputed: the rest of one block
    """
    if not blocks:
        return UnitBytes(0.0, 0.0)
    everything, gradients = sum(b.kept for b in blocks), max(b.gradients for b in blocks)
    states = sum(b.S for b in blocks)
    if policy == "none":
        return UnitBytes(everything, gradients)
    if policy == "unit":
        kept = blocks[0].h + states
        return UnitBytes(kept, everything - kept + gradients)
    kept = sum(b.h for b in blocks) + states
    return UnitBytes(kept, max(b.kept - b.h - b.S for b in blocks) + gradients)


def peak(order: Sequence[tuple[bool, int]], units: Sequence[UnitBytes]) -> float:
    """The peak of what lives at once on a stage.

    Args:
        order: the stage's actions: whether it is a backward, and of which unit.
        units: of a microbatch; all are alike.
    """
    live = most = 0.0
    for backward, n in order:
        if backward:
            most = max(most, live + units[n].again)
            live -= units[n].kept
        else:
            live += units[n].kept
            most = max(most, live)
    return most
