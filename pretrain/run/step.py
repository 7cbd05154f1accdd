"""Forward and backward of one step's microbatches, at any layout of ranks.

On one stage the sleep loop runs from end to end and autograd sees all of it. On several, every
stage reads the same rows, plans the same windows and passes, and does its part of each in the order
of one schedule.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh, watchdog
from parallel.engine import Engine
from parallel.layers import empty_stream
from parallel.pipeline import Pipeline
from parallel.schedule import Leg, Schedule, schedule
from parallel.state import State
from pretrain.config.schema import ParallelConfig
from pretrain.data.batch import Batch
from pretrain.errors import UserError
from pretrain.model.hybrid import HybridLM
from pretrain.model.probe import Probe
from pretrain.model.sleep import (
    Agree,
    Head,
    Output,
    Reading,
    UnitOutput,
    WindowPlan,
    alone,
    plan,
    route,
)


def accumulate(
    engine: Engine, model: HybridLM, parts: Sequence[Batch], states: Sequence[State | None], scored: Tensor | int,
    parallel: ParallelConfig, probe: Probe | None = None,
) -> list[Output]:  # fmt: skip
    """Adds the gradient of every microbatch to the engine's.

    Args:
        parts: this data-parallel rank's microbatches. states: the memory of each from the batch
            before.
        scored: what the sum of losses over all ranks and microbatches is divided by.
    Returns:
        An output for each, detached. On a pipeline stage: its own memory; the losses are on the
        last stage.
    """
    check_same_rows(parts)
    if mesh.pp_size() > 1:
        readings = [
            Reading(model, part, plan(part, model.sleep), state, parallel.recompute, probe, None)
            for part, state in zip(parts, states, strict=True)
        ]
        with engine.accumulating():
            run_stage(readings, parallel.recompute, engine.loss_scale(scored))
        return [reading.output() for reading in readings]
    outputs = []
    for m, (part, state) in enumerate(zip(parts, states, strict=True)):
        watchdog.doing("reads microbatch", m)
        out = engine(
            part, state, recompute=parallel.recompute, probe=probe, agree=agreement(parallel.zero)
        )
        watchdog.doing("goes back through microbatch", m)
        engine.backward(out.loss, scored)
        outputs.append(out._replace(loss=out.loss.detach()))
    return outputs


@torch.no_grad()
def read(
    model: HybridLM,
    parts: Sequence[Batch],
    heads: Sequence[Head],
    passes: int | None = None,
    zero: int = 0,
) -> None:
    """Reads microbatches with N = passes (the model's own if None); what comes of it each head
    keeps for itself.

    Args:
        heads: of each microbatch, see `pretrain.model.sleep.run`; called on the last stage only.
        zero: the ZeRO stage that the weights are sharded with.
    """
    check_same_rows(parts)
    if mesh.pp_size() > 1:
        run_stage(
            [
                Reading(model, part, plan(part, model.sleep, passes), None, "none", None, head)
                for part, head in zip(parts, heads, strict=True)
            ]
        )
        return
    for m, (part, head) in enumerate(zip(parts, heads, strict=True)):
        watchdog.doing("evaluates microbatch", m)
        model(part, passes=passes, head=head, agree=agreement(zero))


def agreement(zero: int) -> Agree:
    """How data-parallel ranks agree on what to run: ZeRO 2 and 3 reduce and gather in the order of
    the layers.
    """
    return _over_data_parallel_ranks if zero >= 2 and mesh.dp_size() > 1 else alone


def _over_data_parallel_ranks(bits: Tensor) -> Tensor:
    dist.all_reduce(bits, op=dist.ReduceOp.MAX, group=mesh.dp_group())
    return bits


def check_same_rows(parts: Sequence[Batch]) -> None:
    """Ranks that hold one model together must read the same rows, or they would wait for each other
    for ever.

    Raises:
        UserError: on every one of them, naming those that differ from the first.
    """
    group = mesh.model_group()
    if dist.get_world_size(group) == 1:
        return
    watchdog.doing("compares its rows with the other ranks of its model")
    content = 0
    for part in parts:
        for tensor in (part.tokens, part.targets, part.valid, part.starts, part.carries):
            content = zlib.crc32(tensor.contiguous().numpy().tobytes(), content)
    mine = torch.tensor([len(parts), *parts[0].size, content])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    ranks = dist.get_process_group_ranks(group)
    others = [
        rank
        for rank, seen in zip(ranks, everyone, strict=True)
        if not torch.equal(seen, everyone[0])
    ]
    if others:
        shapes = {
            rank: " x ".join(map(str, seen[:3].tolist()))
            for rank, seen in zip(ranks, everyone, strict=True)
        }
        raise UserError(
            f"{mesh.place()}: rank {others[0]} reads other rows than rank {ranks[0]}, with which it shares a model: "
            f"{shapes[others[0]]} against {shapes[ranks[0]]} (microbatches x rows x tokens); give all ranks the same "
            "configuration and data"
        )


def legs(plans: Sequence[WindowPlan], model: HybridLM) -> tuple[Leg, ...]:
    """The passes of a microbatch as the pipeline's schedule sees them."""
    found = []
    for p in plans:
        for number in range(1, p.passes + 1):
            way = route(p, number, model.config, model.sleep, model.stage)
            graph_to = way.turn if p.core_graph(number) else -1
            if graph_to < 0 and number == 1 and model.sleep.prelude and p.keeps_graph:
                # the prelude has a gradient through its own memory
                graph_to = model.stage.of(model.sleep.prelude - 1)
            is_read = number == p.reads_at and (p.has_coda or p.any_scored)
            goes_back = number > 1 and p.core_graph(number) and p.core_graph(number - 1)
            found.append(
                Leg(
                    window=p.index,
                    number=number,
                    first=way.first,
                    turn=way.turn,
                    last=way.last,
                    loops=number < p.passes,
                    graph_to=graph_to,
                    read_graph=is_read and p.keeps_graph,
                    returns=goes_back and not p.detaches(number),
                    segment=p.segment,
                )
            )
    return tuple(found)


class ReadingStream:
    """A microbatch that is being read, for `parallel.pipeline`."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.legs = legs(reading.plans, reading.model)
        self._units = [(p, number) for p in reading.plans for number in range(1, p.passes + 1)]

    def forward(self, leg: int, x: Tensor | None) -> UnitOutput:
        return self.reading.one_pass(*self._units[leg], x)

    def replace_memory(self, f: Callable[[Tensor], Tensor]) -> None:
        self.reading.memory = self.reading.memory.map(f)

    def message(self, leg: int) -> Tensor:
        p, model = self._units[leg][0], self.reading.model
        return empty_stream(self.reading.batch.size[0], p.width, model.config.d_model, model.dtype)


def run_stage(
    readings: Sequence[Reading], recompute: str = "none", loss_scale: Tensor | float | None = None
) -> None:
    """This stage's part of all microbatches: forward and, given a `loss_scale`, backward."""
    streams = [ReadingStream(reading) for reading in readings]
    legs = tuple(stream.legs for stream in streams)
    Pipeline(streams, order(legs, mesh.pp_size(), recompute, loss_scale is None), loss_scale).run()


@lru_cache(maxsize=16)
def order(
    legs: tuple[tuple[Leg, ...], ...], stages: int, recompute: str, forward_only: bool = False
) -> Schedule:
    """The schedule of a step. legs: of each microbatch."""
    backward_cost = 2 if recompute == "none" else 3  # in forwards
    return schedule(
        legs, stages, forward_only, lambda action, _: backward_cost if action.backward else 1
    )
