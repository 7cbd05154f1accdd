"""The pipeline schedule: the order of units and messages on each stage in one step.

The blocks are split over P stages. A unit of work is one stage's part of one pass of one microbatch
over one window (a `Pass`). The hidden states h of a pass go from stage to stage; for passes 2..N of
a window, h goes from the stage with the end of the core back to the stage with its beginning: a
ring. The state S never leaves its stage, so a stage does the passes of a microbatch in order, and
their backwards in reverse order.

    forward    needs   this stage's forward of the microbatch's previous pass (S), and h: from the
                       previous stage, or around the ring, or, in a wake pass, from the data
    backward   needs   its forward, this stage's backwards of the later passes of the same segment
                       (dS), and dh from the next stage and around the ring, where there is one

`make_schedule` is a pure function of facts that every rank has, so all ranks compute the same
schedule without communication. It simulates a step on a clock of integer ticks; no stage idles
while it has a unit that is ready.

Among ready units, a stage takes one of the oldest group of microbatches (`_groups`). While h goes
around the ring, for about P ticks, its microbatch has no work for a stage; P other microbatches
fill that time, but only if none of them gets ahead. So microbatches that sleep go in lockstep, in
groups of P or a few more: within a segment, first forwards, the earliest pass first, then
backwards, the latest pass first. Younger groups fill the gaps where a group turns from forward to
backward. If nothing loops, each microbatch is a group of its own, and the same rule gives the usual
1F1B. Memory is bounded: a stage may begin a microbatch only when it has finished the one 5/2 P
places before, or P places before if nothing loops (`_most`). If all stages are alike, a forward
takes one tick, a backward two, and M >= P, then a step in one group idles 3 (P - 1) ticks, the
minimum, whatever N is, and each further group adds at most 2 (P - 1) (measured;
`benchmarks.timeline` has a table).

A value that goes to another stage is a message. Sender and receiver post it in the batch of the
tick at which it is computed; all that a stage sends and receives at one tick is one batch. This
cannot deadlock, even if a batch blocks its stage until every peer has posted its part: all stages
go through their batches in the order of one clock, so the batches of the earliest unfinished tick
wait for nothing else, and both ends of a pair of stages post their messages in the same order.
`parallel.simulator` checks this, and everything else, for any schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush
from typing import NamedTuple

from parallel.passes import Pass, ScheduleError, check

# How many sends may be in flight: enough that a stage does not wait until its neighbour has
# received the latest ones.
SENDS_UNDER_WAY = 8


class Action(NamedTuple):
    """What a stage computes: its part of a pass, forward or backward."""

    backward: bool
    microbatch: int
    unit: int  # index in the microbatch's list of passes


class Message(NamedTuple):
    """A hidden state, or the gradient of one, that goes from stage to stage."""

    source: int
    target: int
    backward: bool
    microbatch: int
    unit: int  # the one whose forward, or backward, needs it at `target`
    ring: bool  # between passes, not within one; a stage may get two gradients for one pass

    @property
    def made_by(self) -> int:
        """The unit whose forward, or backward, produces it at `source`."""
        if not self.ring:
            return self.unit
        return self.unit + 1 if self.backward else self.unit - 1


class Step(NamedTuple):
    """One step of a stage: it computes, then posts sends and receives as one batch."""

    action: Action | None  # None: it only receives
    messages: tuple[Message, ...]  # sorted; those with this stage as their source are sends


@dataclass(frozen=True)
class Schedule:
    """The order of everything in one step."""

    steps: tuple[tuple[Step, ...], ...]  # by stage


Cost = Callable[[Action, int], int]


def default_cost(action: Action, stage: int) -> int:
    """Ticks of an action: a backward is two forwards, all stages are alike."""
    return 2 if action.backward else 1


def make_schedule(
    passes: Sequence[Sequence[Pass]],
    stages: int,
    forward_only: bool = False,
    cost: Cost = default_cost,
) -> Schedule:
    """Orders the units of a step.

    Args:
        passes: of each microbatch, in order; microbatches may differ.
        stages: P.
        forward_only: an evaluation; there are no backwards.
        cost: ticks, at least 1, that an action takes at a stage. Any costs give a valid schedule;
            realistic ones give one with little idle time.
    Raises:
        ScheduleError: inconsistent passes, named by microbatch and unit; a cost below 1.
    """
    check(passes, stages)
    needs = _dependencies(passes, stages, forward_only)
    groups = _groups(passes, stages)

    def urgency(unit: _Unit) -> tuple[int, ...]:
        """A sort key: of the actions ready at a stage, the smallest goes first."""
        backward, m, n = unit.action
        return groups[m], passes[m][n].segment, backward, -n if backward else n, m

    ended = _list_schedule(needs, stages, urgency=urgency, cost=cost)
    return Schedule(_with_messages(ended, needs, stages))


@lru_cache(maxsize=16)
def step_schedule(
    passes: tuple[tuple[Pass, ...], ...], stages: int, recompute: str, forward_only: bool = False
) -> Schedule:
    """The schedule of a step. passes: of each microbatch."""
    backward_cost = 2 if recompute == "none" else 3  # in forwards
    return make_schedule(
        passes, stages, forward_only, lambda action, _: backward_cost if action.backward else 1
    )


class _Unit(NamedTuple):
    """An action at a stage."""

    stage: int
    action: Action


# For each unit, the units that it needs, and whether their result comes around the ring.
_Needs = dict[_Unit, list[tuple[_Unit, bool]]]


def _list_schedule(
    needs: _Needs, stages: int, *, urgency: Callable[[_Unit], tuple[int, ...]], cost: Cost
) -> dict[_Unit, int]:
    """List scheduling on a clock of ticks: a free stage begins its most urgent ready unit.

    Returns:
        the tick at which each unit ends.
    """
    waits = {unit: len(sources) for unit, sources in needs.items()}  # how many it still waits for
    waiting: dict[_Unit, list[_Unit]] = defaultdict(list)  # the units that wait for it
    for unit, sources in needs.items():
        for source, _ in sources:
            waiting[source].append(unit)
    # heaps, most urgent first
    ready: list[list[tuple[tuple[int, ...], Action]]] = [[] for _ in range(stages)]
    running: list[tuple[int, _Unit]] = []  # heap, by the tick at which they end
    ended: dict[_Unit, int] = {}
    for unit in needs:
        if waits[unit] == 0:
            heappush(ready[unit.stage], (urgency(unit), unit.action))
    idle, tick = set(range(stages)), 0
    while True:
        for stage in [stage for stage in sorted(idle) if ready[stage]]:
            action = heappop(ready[stage])[1]
            if (ticks := cost(action, stage)) < 1:
                what = f"an action takes at least one tick, not {ticks}"
                raise ScheduleError(f"{what}: stage {stage}, {action}")
            heappush(running, (tick + ticks, _Unit(stage, action)))
            idle.remove(stage)
        if not running:
            return ended
        tick = running[0][0]
        while running and running[0][0] == tick:  # all that end now, before any other begins
            unit = heappop(running)[1]
            ended[unit] = tick
            idle.add(unit.stage)
            for other in waiting[unit]:
                waits[other] -= 1
                if waits[other] == 0:
                    heappush(ready[other.stage], (urgency(other), other.action))


def _with_messages(
    ended: dict[_Unit, int], needs: _Needs, stages: int
) -> tuple[tuple[Step, ...], ...]:
    """Each stage's steps; both ends post a message at the tick at which it is computed."""
    actions: list[dict[int, Action]] = [{} for _ in range(stages)]  # by tick
    messages: list[dict[int, list[Message]]] = [defaultdict(list) for _ in range(stages)]
    for unit, tick in ended.items():
        actions[unit.stage][tick] = unit.action
        for source, ring in needs[unit]:
            if source.stage != unit.stage:
                message = Message(source.stage, unit.stage, *unit.action, ring)
                messages[source.stage][ended[source]].append(message)
                messages[unit.stage][ended[source]].append(message)
    return tuple(
        tuple(
            Step(actions[s].get(tick), tuple(sorted(messages[s][tick])))
            for tick in sorted({*actions[s], *messages[s]})
        )
        for s in range(stages)
    )


def _loop(passes: Sequence[Sequence[Pass]]) -> bool:
    return any(p.loops for mine in passes for p in mine)


def _groups(passes: Sequence[Sequence[Pass]], stages: int) -> list[int]:
    """The group of each microbatch: as many groups of at least P as possible, of about equal size;
    if nothing loops, one group per microbatch.
    """
    M = len(passes)
    return [m * max(1, M // stages) // M for m in range(M)] if _loop(passes) else list(range(M))


def _most(passes: Sequence[Sequence[Pass]], stages: int) -> int:
    """How many microbatches may be in flight at a stage.

    The pipeline needs P. A group also needs the next ones to fill the gap where it turns from
    forward to backward: with 2 P the idle time grows with M, with 3 P more memory is kept than
    those gaps are worth.
    """
    return 2 * stages + stages // 2 if _loop(passes) else stages


def _dependencies(passes: Sequence[Sequence[Pass]], stages: int, forward_only: bool) -> _Needs:
    """All units, with the units that each needs."""
    most = _most(passes, stages)
    needs: _Needs = {}
    # By (microbatch, stage): once these are done, the stage keeps nothing of the microbatch.
    over: dict[tuple[int, int], list[_Unit]] = {}
    for m, mine in enumerate(passes):
        for s in range(stages):
            needs |= _forwards(m, mine, s, begins_after=over.get((m - most, s), []))
            backwards, over[m, s] = ({}, []) if forward_only else _backwards(m, mine, s)
            needs |= backwards
    return needs


def _forwards(m: int, passes: Sequence[Pass], s: int, begins_after: Sequence[_Unit]) -> _Needs:
    """The forwards of a microbatch at a stage.

    Args:
        begins_after: units that must be done before the stage begins the microbatch.
    """
    needs: _Needs = {}
    before = list(begins_after)  # then the stage's previous unit, which leaves S
    for n, p in enumerate(passes):
        if not p.visits(s):
            continue
        unit = _Unit(s, Action(False, m, n))
        needs[unit] = [(source, False) for source in before]
        if s > p.first_stage:
            needs[unit].append((_Unit(s - 1, Action(False, m, n)), False))
        elif n and passes[n - 1].loops:
            needs[unit].append((_Unit(passes[n - 1].core_end, Action(False, m, n - 1)), True))
        before = [unit]
    return needs


def _backwards(m: int, passes: Sequence[Pass], s: int) -> tuple[_Needs, list[_Unit]]:
    """The backwards of a microbatch at a stage, and the last one of each segment."""
    needs: _Needs = {}
    ends: dict[int, _Unit] = {}  # by segment
    for n, p in reversed(list(enumerate(passes))):
        if not (p.visits(s) and p.has_backward(s)):
            continue
        unit = _Unit(s, Action(True, m, n))
        needs[unit] = [(_Unit(s, Action(False, m, n)), False)]
        if p.segment in ends:  # gives the gradient of the S that this unit left
            needs[unit].append((ends[p.segment], False))
        if p.receives_grad(s):
            needs[unit].append((_Unit(s + 1, Action(True, m, n)), False))
        following = passes[n + 1] if n + 1 < len(passes) else None
        if following and s == p.core_end and following.sends_grad_to_previous_pass:
            needs[unit].append((_Unit(following.first_stage, Action(True, m, n + 1)), True))
        ends[p.segment] = unit
    return needs, list(ends.values())
