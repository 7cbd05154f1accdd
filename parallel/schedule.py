"""When each pipeline stage does what: the order of units and messages in one step of a model that
sleeps.

The blocks are split over P stages. A unit of work is one pass of one microbatch over one window (a
`Leg`), as far as it concerns one stage. The hidden states h of a pass go from stage to stage, and
passes 2..N of a window take h from the stage with the end of the core back to the one with its
begin, a ring. The state S never leaves its stage, so a stage does the passes of one microbatch in
order; their backwards it does in the opposite order.

    forward    needs   the stage's forward of the microbatch's pass before (S), and h:
                       from the stage before, or round the ring, or, in a wake pass, from the data
    backward   needs   its forward, the stage's backwards of the later passes of the same segment (dS), and
                       dh from the stage after and round the ring, where there is one

`schedule` is a pure function of facts that every rank has, so that all ranks compute the same
schedule and need not talk about it. It plays a step on a clock of integer ticks; no stage idles
while something is ready for it.

Of what is ready, a stage takes the work of the oldest group of microbatches (`_groups`). While h is
on its way round the ring its microbatch has nothing for a stage to do, for about P ticks; P others
fill that time, but only if none of them gets ahead. So microbatches that sleep go in groups of P or
a few more, in lockstep: within a segment first forwards, the earliest pass first, then backwards,
the latest pass first. Younger groups fill the gaps where a group turns round from forward to
backward. Where nothing loops, each microbatch is a group of its own, and what comes of the same
rule is the usual one-forward-one-backward. Memory is bounded: a microbatch is ready for a stage
only when that is through with the one 5/2 P places before, or P places where nothing loops
(`_most`). Where all stages are alike, a forward takes a tick, a backward two and M >= P, a step in
one group idles 3 (P - 1) ticks, the least that can be, whatever N, and each further group adds 2 (P
- 1) at most (measured; `benchmarks.timeline` has a table).

A value that changes stage is a message. Sender and receiver post it in the batch that belongs to
the tick at which it is made; what a stage sends and receives at one tick is one batch. No deadlock
can follow, even where a batch holds its stage up until every peer has posted its part: all stages
go through their batches in the order of one clock, so those of the earliest tick that is not over
yet wait for nothing else, and the messages of a pair of stages come in the same order on both
sides. `parallel.simulator` checks this, and all the rest, of any schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple


@dataclass(frozen=True)
class Leg:
    """One pass of one microbatch over one window: a way through the stages first..last."""

    window: int
    number: int  # of the pass, from 1
    first: int  # stage where it begins
    turn: int  # stage that holds the end of the core: the next pass's h comes from here
    last: int  # stage where it ends; those from `turn` on run the coda and the head
    loops: bool  # the microbatch's next leg is the window's next pass and takes its h from `turn`
    # backward goes through the stages first..graph_to of those up to `turn`; -1: through none
    graph_to: int
    read_graph: bool  # backward goes through the stages turn..last, by what is read of the pass
    # the gradient of the h that comes in goes back round the ring, into the leg before
    returns: bool
    # gradients of the state do not cross from one segment to the next; never decreasing
    segment: int

    def visits(self, stage: int) -> bool:
        """Whether a stage has a part in it."""
        return self.first <= stage <= self.last

    def goes_back(self, stage: int) -> bool:
        """Whether a stage that it visits has a backward."""
        return stage <= self.graph_to or (self.read_graph and stage >= self.turn)

    def comes_back(self, stage: int) -> bool:
        """Whether the next stage gives this one the gradient of what it was handed."""
        return stage < self.graph_to or (self.read_graph and self.turn <= stage < self.last)


class Action(NamedTuple):
    """What a stage computes: its part of a leg, forward or backward."""

    backward: bool
    microbatch: int
    leg: int  # place in the microbatch's list of legs


class Message(NamedTuple):
    """A hidden state, or the gradient of one, that goes from stage to stage."""

    source: int
    target: int
    backward: bool
    microbatch: int
    leg: int  # the one whose forward, or backward, takes it at `target`
    ring: bool  # from one pass to the next, or back; a stage may get two gradients for one leg


class Step(NamedTuple):
    """What a stage does next: it computes, then posts sends and receives as one batch."""

    action: Action | None  # None: there is only something to receive
    messages: tuple[Message, ...]  # sorted; those with this stage as their source are sends


@dataclass(frozen=True)
class Schedule:
    """The order of everything in one step."""

    steps: tuple[tuple[Step, ...], ...]  # by stage


class ScheduleError(ValueError):
    """Legs that make no sense, or a schedule that cannot be carried out."""


Cost = Callable[[Action, int], int]


def default_cost(action: Action, stage: int) -> int:
    """Ticks of an action: a backward is two forwards, all stages are alike."""
    return 2 if action.backward else 1


def schedule(
    legs: Sequence[Sequence[Leg]],
    stages: int,
    forward_only: bool = False,
    cost: Cost = default_cost,
) -> Schedule:
    """Orders the units of a step.

    Args:
        legs: of each microbatch, in order; microbatches may differ.
        stages: P.
        forward_only: an evaluation; nothing goes back.
        cost: ticks, at least 1, that an action takes at a stage. Any costs give a schedule that can
            be carried out; true ones give one with little idleness.
    Raises:
        ScheduleError: for legs that make no sense, naming the microbatch and the leg, and for a
            cost below 1.
    """
    check(legs, stages)
    waits: dict[_Unit, int] = {}  # for how many things
    # who waits for it, and whether round the ring
    feeds: dict[_Unit, list[tuple[_Unit, bool]]] = defaultdict(list)
    for unit, needs in _units(legs, stages, forward_only):
        waits[unit] = len(needs)
        for source, ring in needs:
            feeds[source].append((unit, ring))

    groups = _groups(legs, stages)
    # heaps, most urgent first
    ready: list[list[tuple[tuple[int, ...], Action]]] = [[] for _ in range(stages)]
    running: list[tuple[int, _Unit]] = []  # heap, by the tick at which they end
    ended: list[dict[int, Action]] = [{} for _ in range(stages)]  # by tick
    posted: list[dict[int, list[Message]]] = [defaultdict(list) for _ in range(stages)]  # by tick

    def is_ready(unit: _Unit) -> None:
        m, leg = unit.action.microbatch, unit.action.leg
        heappush(
            ready[unit.stage], (_urgency(unit.action, groups[m], legs[m][leg].segment), unit.action)
        )

    def begin(stage: int, tick: int) -> None:
        action = heappop(ready[stage])[1]
        ticks = cost(action, stage)
        if ticks < 1:
            raise ScheduleError(
                f"an action takes at least one tick, not {ticks}: stage {stage}, {action}"
            )
        heappush(running, (tick + ticks, _Unit(stage, action)))

    def end(unit: _Unit, tick: int) -> None:
        ended[unit.stage][tick] = unit.action
        for other, ring in feeds[unit]:
            waits[other] -= 1
            if waits[other] == 0:
                is_ready(other)
            if other.stage != unit.stage:
                message = Message(unit.stage, other.stage, *other.action, ring)
                posted[unit.stage][tick].append(message)
                posted[other.stage][tick].append(message)

    for unit, missing in waits.items():
        if missing == 0:
            is_ready(unit)
    idle, tick = set(range(stages)), 0
    while True:
        for stage in sorted(idle):
            if ready[stage]:
                begin(stage, tick)
                idle.remove(stage)
        if not running:
            break
        tick = running[0][0]
        while running and running[0][0] == tick:
            unit = heappop(running)[1]
            end(unit, tick)
            idle.add(unit.stage)
    return Schedule(
        tuple(
            tuple(
                Step(ended[s].get(t), tuple(sorted(posted[s][t])))
                for t in sorted({*ended[s], *posted[s]})
            )
            for s in range(stages)
        )
    )


def _urgency(action: Action, group: int, segment: int) -> tuple[int, ...]:
    """Of two actions that are ready at a stage, the one that sorts first is done first."""
    return (
        group,
        segment,
        action.backward,
        -action.leg if action.backward else action.leg,
        action.microbatch,
    )


def _loop(legs: Sequence[Sequence[Leg]]) -> bool:
    return any(leg.loops for way in legs for leg in way)


def _groups(legs: Sequence[Sequence[Leg]], stages: int) -> list[int]:
    """The group of each microbatch: as many of at least P as there can be, all of about the same
    size.
    """
    M = len(legs)
    return [m * max(1, M // stages) // M for m in range(M)] if _loop(legs) else list(range(M))


def _most(legs: Sequence[Sequence[Leg]], stages: int) -> int:
    """How many microbatches may be under way at a stage.

    P are what the pipeline needs. Groups need the next ones to fill the gaps where they turn round:
    with 2 P the idleness grows with M, with 3 P more is kept than those gaps are worth.
    """
    return 2 * stages + stages // 2 if _loop(legs) else stages


class _Unit(NamedTuple):
    """An action at a stage."""

    stage: int
    action: Action


def _units(
    legs: Sequence[Sequence[Leg]], stages: int, forward_only: bool
) -> Iterator[tuple[_Unit, list[tuple[_Unit, bool]]]]:
    """All actions at all stages, with what each of them needs and whether that comes round the
    ring.
    """
    most = _most(legs, stages)
    # by (microbatch, stage): when they are done it keeps nothing of it
    over: dict[tuple[int, int], list[_Unit]] = {}
    for m, way in enumerate(legs):

        def unit(stage: int, leg: int, backward: bool = False, m: int = m) -> _Unit:
            return _Unit(stage, Action(backward, m, leg))

        for s in range(stages):
            here = [n for n, leg in enumerate(way) if leg.visits(s)]
            for before, n in zip([None, *here], here, strict=False):
                leg = way[n]
                if before is None:
                    needs = [(last, False) for last in over.get((m - most, s), [])]
                else:
                    needs = [(unit(s, before), False)]
                if s > leg.first:
                    needs.append((unit(s - 1, n), False))
                elif n and way[n - 1].loops:
                    needs.append((unit(way[n - 1].turn, n - 1), True))
                yield unit(s, n), needs
            back = [] if forward_only else [n for n in reversed(here) if way[n].goes_back(s)]
            ends: dict[int, _Unit] = {}  # by segment, the backward that comes last
            for n in back:
                leg = way[n]
                needs = [(unit(s, n), False)]
                if leg.segment in ends:
                    needs.append((ends[leg.segment], False))
                if leg.comes_back(s):
                    needs.append((unit(s + 1, n, True), False))
                if s == leg.turn and n + 1 < len(way) and way[n + 1].returns:
                    needs.append((unit(way[n + 1].first, n + 1, True), True))
                ends[leg.segment] = unit(s, n, True)
                yield ends[leg.segment], needs
            over[m, s] = list(ends.values())


def check(legs: Sequence[Sequence[Leg]], stages: int) -> None:
    """Makes sure that legs are ways through the stages.

    Raises:
        ScheduleError: naming the microbatch, the leg and what is wrong with it.
    """
    for m, way in enumerate(legs):
        for n, leg in enumerate(way):
            for fault in _faults(leg, way[n - 1] if n else None, n + 1 == len(way), stages):
                raise ScheduleError(f"microbatch {m}, leg {n} {fault}: {leg}")


def _faults(leg: Leg, before: Leg | None, is_last: bool, stages: int) -> Iterator[str]:
    """What is wrong with a leg, given the one before."""
    looped = before is not None and before.loops
    if not 0 <= leg.first <= leg.turn <= leg.last < stages:
        yield f"does not go by 0 <= first <= turn <= last < {stages} stages"
    if leg.graph_to != -1 and not leg.first <= leg.graph_to <= leg.turn:
        yield "goes back through stages beyond first..turn"
    if looped != (leg.number > 1):
        yield (
            "sleeps, but the leg before does not loop"
            if leg.number > 1
            else "wakes, but the leg before loops"
        )
    if (
        before is not None
        and looped
        and (leg.window, leg.number) != (before.window, before.number + 1)
    ):
        yield "is not the next pass of the window, but the leg before loops"
    if leg.loops and is_last:
        yield "loops, but there is no next leg"
    if leg.returns and not (
        before is not None and looped and before.graph_to == before.turn and leg.graph_to >= 0
    ):
        yield "returns a gradient, but has none or the leg before takes none"
    if before is not None and leg.segment < before.segment:
        yield "is of an earlier segment than the leg before"
