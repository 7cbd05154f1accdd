"""Schedules of looping pipelines: checked by a simulator with its own rules, by hand, and for their
idle time and memory.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import parallel.passes
import parallel.schedule
import parallel.simulator
from parallel.passes import Pass, ScheduleError
from parallel.schedule import Action, Message, Schedule, Step, make_schedule, step_schedule
from parallel.simulator import Timeline, simulate
from tests.marks import slow

Passes = Sequence[Sequence[Pass]]


def window(
    w: int, N: int, P: int, scored: bool, ends: tuple[int, int] | None = None,
    segment: int = 0, graph: bool = True, truncated: int = 0, reads_at: int = 1,
    write_only_end: int | None = None, coda: int | None = None,
    prelude: int = -1,
) -> list[Pass]:  # fmt: skip
    """The passes of one window, as planned for a model with a prelude, a core and a coda.

    Args:
        ends: the stages where the core begins and ends; None: all blocks loop.
        graph: some loss depends on it. truncated: how many passes backpropagation does not reach.
        reads_at: the pass that coda and head read, if the window is scored or has a coda.
        write_only_end: where the last pass ends if nothing reads it.
        coda: where the coda ends in a window that is not scored; None: no coda.
        prelude: the stage where it ends; -1: there is none.
    """
    a, b = ends or (0, P - 1)
    passes = []
    for number in range(1, N + 1):
        reads = number == reads_at and (scored or coda is not None)
        turn = b if number < N or reads or write_only_end is None else write_only_end

        def core_graph(n: int) -> bool:
            return graph and (n > truncated or (n == 1 and scored))

        passes.append(
            Pass(
                window=w,
                number=number,
                first_stage=0 if number == 1 else a,
                core_end=turn,
                last_stage=(P - 1 if scored or coda is None else max(turn, coda))
                if reads
                else turn,
                loops=number < N,
                core_grad_until=turn
                if core_graph(number)
                else prelude
                if number == 1 and graph
                else -1,
                head_has_grad=reads and graph,
                sends_grad_to_previous_pass=number > 1
                and core_graph(number)
                and core_graph(number - 1)
                and number != truncated + 1,
                segment=segment,
            )
        )
    return passes


def story(P: int, W: int, N: int, segments: bool = False) -> list[Pass]:
    """W - 1 windows that are read once and slept over N - 1 times, then one more; all are
    predicted.
    """
    return [
        p for w in range(W) for p in window(w, N if w < W - 1 else 1, P, True, segment=w * segments)
    ]


@st.composite
def planned(draw: st.DrawFn) -> tuple[list[list[Pass]], int]:
    """Microbatches of one model, which differ in which windows are scored, sleep, have a graph."""
    P = draw(st.integers(1, 8))
    a = draw(st.integers(0, P - 1))
    b, prelude = draw(st.integers(a, P - 1)), draw(st.sampled_from([a - 1, a]))
    has_coda, N, W = draw(st.booleans()), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    truncated, windows_apart = draw(st.integers(0, 2)), draw(st.integers(1, 4))
    microbatches = []
    for _ in range(draw(st.integers(1, 9))):
        way: list[Pass] = []
        for w in range(W):
            scored, n = draw(st.booleans()), draw(st.sampled_from([1, N]))
            way += window(
                w, n, P, scored, (a, b), w // windows_apart, draw(st.booleans()),
                min(truncated, n - 1),
                reads_at=draw(st.sampled_from([1, n])), write_only_end=draw(st.integers(a, b)),
                coda=draw(st.integers(b, P - 1)) if has_coda else None, prelude=prelude,
            )  # fmt: skip
        microbatches.append(way)
    return microbatches, P


@st.composite
def anything(draw: st.DrawFn) -> tuple[list[list[Pass]], int]:
    """Passes that no model has, but that follow the rules."""
    P = draw(st.integers(1, 5))
    microbatches = []
    for _ in range(draw(st.integers(0, 4))):
        way: list[Pass] = []
        for n in reversed(range(draw(st.integers(0, 5)))):  # passes still to come
            before = way[-1] if way else None
            first, turn, last = sorted(draw(st.tuples(*[st.integers(0, P - 1)] * 3)))
            looped = before is not None and before.loops
            core_grad_until = draw(st.sampled_from([-1, *range(first, turn + 1)]))
            passes_on = (
                before is not None
                and looped
                and before.core_grad_until == before.core_end
                and core_grad_until >= 0
            )
            way.append(
                Pass(
                    window=(before.window + (not looped)) if before else 0,
                    number=before.number + 1 if before and looped else 1,
                    first_stage=first,
                    core_end=turn,
                    last_stage=last,
                    loops=n > 0 and draw(st.booleans()),
                    core_grad_until=core_grad_until,
                    head_has_grad=draw(st.booleans()),
                    sends_grad_to_previous_pass=passes_on and draw(st.booleans()),
                    segment=(before.segment if before else 0) + draw(st.integers(0, 1)),
                )
            )
        microbatches.append(way)
    return microbatches, P


def uneven(action: Action, stage: int) -> int:
    """An arbitrary cost from 1 to 6."""
    return 1 + (7 * stage + 5 * action.unit + 3 * action.microbatch + 2 * action.backward) % 6


def unplanned(action: Action, stage: int) -> float:
    """An arbitrary duration that differs from every cost."""
    return 0.1 + (5 * stage + 3 * action.unit + 11 * action.microbatch + 13 * action.backward) % 7


@settings(max_examples=100, deadline=None)
@given(planned(), st.booleans())
def test_all_stages_take_part_in_their_first_batch(
    case: tuple[list[list[Pass]], int], forward_only: bool
) -> None:
    """NCCL connects a group in its first batch, where every rank waits for all others: so none may
    first need something from them.
    """
    passes, P = case
    assume(P > 1 and any(p.last_stage == P - 1 for mine in passes for p in mine))
    for stage, steps in enumerate(make_schedule(passes, P, forward_only).steps):
        first = next(n for n, step in enumerate(steps) if step.messages)
        assert stage == 0 or not any(step.action for step in steps[: first + 1])


@settings(max_examples=200, deadline=None)
@given(st.one_of(planned(), anything()), st.booleans())
def test_every_schedule_can_be_carried_out(
    case: tuple[list[list[Pass]], int], forward_only: bool
) -> None:
    passes, P = case
    plan = make_schedule(passes, P, forward_only)
    assert plan == make_schedule(passes, P, forward_only)
    timeline = simulate(plan, passes, P, unplanned, forward_only)
    assert sum(map(len, timeline.spans)) == sum(
        step.action is not None for steps in plan.steps for step in steps
    )
    simulate(make_schedule(passes, P, forward_only, uneven), passes, P, forward_only=forward_only)
    most = max((len(way) for way in passes), default=0) * (2 * P + P // 2)
    assert all(0 <= peak <= most for peak in timeline.peak)
    if forward_only:
        assert not any(timeline.peak)


# ---- by hand


def written(timeline: Timeline) -> list[str]:
    """By stage: begin, F or B, microbatch.unit of every action."""
    return [
        " ".join(
            f"{s.begin:g}{'FB'[s.action.backward]}{s.action.microbatch}.{s.action.unit}"
            for s in spans
        )
        for spans in timeline.spans
    ]


def test_two_stages_by_hand() -> None:
    """P = M = W = N = 2: a window with a sleep, then one without. A forward takes one tick, a
    backward two.
    """
    passes = [window(0, 2, 2, True) + window(1, 1, 2, True)] * 2
    plan = make_schedule(passes, 2)
    timeline = simulate(plan, passes, 2)
    assert written(timeline) == [
        "0F0.0 1F1.0 2F0.1 3F1.1 4F0.2 5F1.2 9B0.2 11B1.2 13B0.1 15B1.1 17B0.0 19B1.0",
        "1F0.0 2F1.0 3F0.1 4F1.1 5F0.2 6F1.2 7B0.2 9B1.2 11B0.1 13B1.1 15B0.0 17B1.0",
    ]
    assert (
        timeline.makespan == 21
        and timeline.busy == (18, 18)
        and timeline.bubble == pytest.approx(1 / 7)
    )
    assert timeline.peak == (6, 6)

    def onward(m: int, unit: int) -> Message:
        return Message(0, 1, False, m, unit, False)

    def back(m: int, unit: int) -> Message:
        return Message(1, 0, True, m, unit, False)

    def ring(m: int, unit: int) -> Message:
        return Message(1, 0, False, m, unit, True)

    def ring_back(m: int, unit: int) -> Message:
        return Message(0, 1, True, m, unit, True)

    # ticks 1, 2, 3
    forward = [(onward(0, 0),), (onward(1, 0), ring(0, 1)), (onward(0, 1), ring(1, 1))]
    forward += [(onward(1, 1),), (onward(0, 2),), (onward(1, 2),)]  # 4, 5, 6
    backward = [(back(0, 2),), (back(1, 2),), (back(0, 1),)]  # 9, 11, 13
    # 15, 17, 19
    backward += [(ring_back(0, 0), back(1, 1)), (ring_back(1, 0), back(0, 0)), (back(1, 0),)]
    for steps in plan.steps:
        assert [step.messages for step in steps if step.messages] == forward + backward
    # Stage 1 has no computation that ends when its first input arrives, nor has stage 0 when its
    # first gradient does.
    assert [n for n, step in enumerate(plan.steps[0]) if step.action is None] == [6]
    assert [n for n, step in enumerate(plan.steps[1]) if step.action is None] == [0]


def test_turn_before_the_last_stage_by_hand() -> None:
    """The core is on stage 0, the head on stage 1: the wake pass gets a gradient from the head and
    one from the sleep.
    """
    passes = [window(0, 2, 2, True, (0, 0)) + window(1, 1, 2, True, (0, 0))]
    plan = make_schedule(passes, 2)
    timeline = simulate(plan, passes, 2)
    assert written(timeline) == ["0F0.0 1F0.1 2F0.2 6B0.2 8B0.1 10B0.0", "1F0.0 3F0.2 4B0.2 6B0.0"]
    assert timeline.peak == (3, 2)
    assert not any(
        message.ring for steps in plan.steps for step in steps for message in step.messages
    )
    # If cut between windows, the first one's backward need not wait for the second one's forward.
    passes = [window(0, 2, 2, True, (0, 0)) + window(1, 1, 2, True, (0, 0), segment=1)]
    timeline = simulate(make_schedule(passes, 2), passes, 2)
    assert written(timeline) == ["0F0.0 1F0.1 2B0.1 4B0.0 6F0.2 10B0.2", "1F0.0 2B0.0 7F0.2 8B0.2"]
    assert timeline.peak == (2, 1)


def test_without_loops_it_is_one_forward_one_backward() -> None:
    passes = [window(0, 1, 2, True)] * 3
    assert written(simulate(make_schedule(passes, 2), passes, 2)) == [
        "0F0.0 1F1.0 4B0.0 6F2.0 7B1.0 10B2.0",
        "1F0.0 2B0.0 4F1.0 5B1.0 7F2.0 8B2.0",
    ]


def test_forward_only_goes_once_through_everything() -> None:
    passes = [story(4, 2, 3)] * 4
    plan = make_schedule(passes, 4, forward_only=True)
    assert not any(step.action and step.action.backward for steps in plan.steps for step in steps)
    timeline = simulate(plan, passes, 4, forward_only=True)
    assert timeline.makespan == 4 * 4 + 3 and timeline.peak == (0, 0, 0, 0)


def test_passes_without_a_graph_have_no_backward() -> None:
    passes = [window(0, 3, 2, False, graph=False) + window(1, 1, 2, True)]
    done = [step.action for step in make_schedule(passes, 2).steps[0] if step.action]
    assert [action.unit for action in done if action.backward] == [3]


# ---- idle time and memory


@pytest.mark.parametrize("P", [2, 4, slow(8)])
@pytest.mark.parametrize(("W", "N"), [(1, 1), (4, 1), (2, 2), (2, 8), (4, 2), (4, 4)])
def test_bubble_and_memory(P: int, W: int, N: int) -> None:
    """A step is idle for little more than filling and draining once, and memory does not grow with
    M.
    """
    peaks = {}
    for M in (P, P + 1, 2 * P - 1, 2 * P, 4 * P, 6 * P):
        passes = [story(P, W, N)] * M
        timeline = simulate(make_schedule(passes, P), passes, P)
        idle = timeline.makespan - max(timeline.busy)
        turns = M // P - 1 if N > 1 else 0  # from one group of P microbatches to the next
        assert 3 * (P - 1) <= idle <= 3 * (P - 1) + 2 * (P - 1) * turns, M
        peaks[M] = max(timeline.peak)
    units = len(story(P, W, N))
    assert max(peaks.values()) <= (P if N == 1 else 2 * P) * units
    assert peaks[6 * P] == peaks[4 * P]


@pytest.mark.parametrize(("P", "N"), [(2, 1), (4, 1), (4, 3), (8, 2)])
def test_segments_lower_the_peak(P: int, N: int) -> None:
    def peak(segments: bool) -> int:
        passes = [story(P, 6, N, segments)] * P
        return max(simulate(make_schedule(passes, P), passes, P).peak)

    assert peak(True) < peak(False) * (0.5 if N > 1 else 1)


def test_each_kind_of_recomputation_has_the_shorter_step_by_its_own_schedule() -> None:
    """Without recomputation a backward takes as long as two forwards, else as three."""
    passes = ((*story(3, 2, 2),),) * 9

    def makespan(recompute: str, backward: int) -> float:
        schedule = step_schedule(passes, 3, recompute)
        return simulate(schedule, passes, 3, lambda a, _: backward if a.backward else 1).makespan

    assert makespan("none", 2) < makespan("unit", 2)
    assert makespan("unit", 3) < makespan("none", 3)


# ---- errors that the simulator notices


CORE_AND_CODA = [
    window(0, 3, 3, True, (0, 1)) + window(1, 2, 3, True, (0, 1)) + window(2, 1, 3, True, (0, 1))
] * 3


@pytest.fixture(scope="module")
def plan() -> Schedule:
    plan = make_schedule(CORE_AND_CODA, 3)
    simulate(plan, CORE_AND_CODA, 3)
    return plan


def changed(plan: Schedule, stage: int, n: int, step: Step | None) -> Schedule:
    """The same schedule with another n-th step, or without it."""
    steps = list(plan.steps[stage])
    steps[n : n + 1] = [] if step is None else [step]
    return Schedule(plan.steps[:stage] + (tuple(steps),) + plan.steps[stage + 1 :])


def every_step(plan: Schedule) -> Iterator[tuple[int, int, Step]]:
    for stage, steps in enumerate(plan.steps):
        for n, step in enumerate(steps):
            yield stage, n, step


def refused(plans: Iterator[Schedule], match: str) -> None:
    """The simulator refuses each of them."""
    count = 0
    for plan in plans:
        with pytest.raises(ScheduleError, match=match):
            simulate(plan, CORE_AND_CODA, 3)
        count += 1
    assert count > 5


def without(messages: tuple[Message, ...], gone: Message) -> tuple[Message, ...]:
    return tuple(message for message in messages if message != gone)


def test_a_message_dropped_at_one_end(plan: Schedule) -> None:
    refused(
        (
            changed(plan, s, n, step._replace(messages=without(step.messages, message)))
            for s, n, step in every_step(plan)
            for message in step.messages
        ),
        match="but next stage . expects",
    )


def test_a_message_dropped_at_both_ends(plan: Schedule) -> None:
    refused(
        (
            Schedule(
                tuple(
                    tuple(s._replace(messages=without(s.messages, gone)) for s in steps)
                    for steps in plan.steps
                )
            )
            for gone in {message for _, _, step in every_step(plan) for message in step.messages}
        ),
        match="begins before its input is received",
    )


def test_a_message_received_too_late(plan: Schedule) -> None:
    """All receives of a stage moved into its next step; allowed if none is needed before."""
    bad = 0
    for s, n, step in every_step(plan):
        receives = tuple(message for message in step.messages if message.target == s)
        if not receives or n + 1 == len(plan.steps[s]):
            continue
        after = plan.steps[s][n + 1]
        late = changed(
            plan, s, n, step._replace(messages=tuple(x for x in step.messages if x.source == s))
        )
        late = changed(late, s, n + 1, after._replace(messages=receives + after.messages))
        used = {(x.backward, x.microbatch, x.unit) for x in receives}
        if after.action is not None and tuple(after.action) in used:
            with pytest.raises(ScheduleError, match="begins before its input is received"):
                simulate(late, CORE_AND_CODA, 3)
            bad += 1
    assert bad > 5


def test_two_actions_swapped(plan: Schedule) -> None:
    """On every stage the actions of one microbatch have only one valid order here."""
    refused(
        (
            changed(
                changed(plan, s, n, step._replace(action=other)),
                s,
                k,
                later._replace(action=step.action),
            )
            for s, n, step in every_step(plan)
            for k, later in enumerate(plan.steps[s])
            if (other := later.action) is not None and step.action is not None and k > n
            if other.microbatch == step.action.microbatch
        ),
        match="comes before|is received|before it is made",
    )


def test_an_action_removed(plan: Schedule) -> None:
    refused(
        (
            changed(plan, s, n, step._replace(action=None) if step.messages else None)
            for s, n, step in every_step(plan)
            if step.action is not None
        ),
        match="before it is made|is never done|comes before",
    )


def test_an_action_done_twice(plan: Schedule) -> None:
    def plans() -> Iterator[Schedule]:
        for s, n, step in every_step(plan):
            if step.action is not None:
                steps = plan.steps[s][: n + 1] + (Step(step.action, ()),) + plan.steps[s][n + 1 :]
                yield Schedule(plan.steps[:s] + (steps,) + plan.steps[s + 1 :])

    refused(plans(), match="is done twice")


def test_an_action_that_is_not_called_for(plan: Schedule) -> None:
    # sleep passes do not reach stage 2
    for unit in (Action(False, 3, 0), Action(False, 0, 9), Action(True, 0, 1)):
        with pytest.raises(ScheduleError, match=r"no such unit|not called for"):
            simulate(changed(plan, 2, 0, Step(unit, plan.steps[2][0].messages)), CORE_AND_CODA, 3)


def test_messages_of_a_pair_in_another_order(plan: Schedule) -> None:
    """At one end, messages of two batches to the same stage are swapped."""

    def plans() -> Iterator[Schedule]:
        for s, n, step in every_step(plan):
            for k in range(n + 1, len(plan.steps[s])):
                later = plan.steps[s][k]
                pair = [(x, y) for x in step.messages for y in later.messages if x[:2] == y[:2]]
                for x, y in pair[:1]:
                    one = changed(
                        plan, s, n, step._replace(messages=without(step.messages, x) + (y,))
                    )
                    yield changed(
                        one, s, k, later._replace(messages=without(later.messages, y) + (x,))
                    )
                    break

    refused(plans(), match="but next stage . expects")


def test_batches_that_wait_for_each_other() -> None:
    """Buffered sends get through; a batch that waits for its peer does not."""
    passes = [window(0, 2, 2, True)] * 2
    plan = make_schedule(passes, 2)
    n = next(n for n, step in enumerate(plan.steps[0]) if len(step.messages) == 2)
    for stage in (0, 1):
        step = plan.steps[stage][n]
        out, into = step.messages if stage == 0 else step.messages[::-1]
        assert out.source == stage and into.target == stage
        steps = (
            plan.steps[stage][:n]
            + (Step(step.action, (out,)), Step(None, (into,)))
            + plan.steps[stage][n + 1 :]
        )
        plan = Schedule(plan.steps[:stage] + (steps,) + plan.steps[stage + 1 :])
        if stage == 0:
            simulate(plan, passes, 2)  # a single split batch waits for nothing that will not come
    with pytest.raises(ScheduleError, match=r"deadlock.*stage 0 for .*stage 1 for "):
        simulate(plan, passes, 2)


def test_a_schedule_of_something_else(plan: Schedule) -> None:
    with pytest.raises(ScheduleError, match="for 3 stages, not 4"):
        simulate(plan, CORE_AND_CODA, 4)
    with pytest.raises(ScheduleError, match="is not called for"):
        simulate(plan, CORE_AND_CODA, 3, forward_only=True)
    with pytest.raises(ScheduleError, match="is never done"):
        simulate(make_schedule(CORE_AND_CODA, 3, forward_only=True), CORE_AND_CODA, 3)
    with pytest.raises(ScheduleError, match="never done"):
        simulate(plan, [*CORE_AND_CODA, CORE_AND_CODA[0]], 3)


# ---- refused passes


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda a, b: [replace(a, last_stage=2), b],
            "0 <= first_stage <= core_end <= last_stage < 2",
        ),
        (lambda a, b: [replace(a, core_end=0, first_stage=1), b], "0 <= first"),
        (lambda a, b: [replace(a, first_stage=-1), b], "0 <= first"),
        (lambda a, b: [replace(a, loops=False), b], "microbatch 0, unit 1 sleeps"),
        (lambda a, b: [a, replace(b, number=1)], "unit 1 wakes"),
        (lambda a, b: [a, replace(b, window=1)], "not the next pass"),
        (lambda a, b: [a, replace(b, loops=True)], "no next pass"),
        (lambda a, b: [replace(a, core_grad_until=-1), b], "unit 1 sends a gradient"),
        (lambda a, b: [replace(a, core_grad_until=0), b], "unit 1 sends a gradient"),
        (lambda a, b: [a, replace(b, core_grad_until=2)], "unit 1 goes back through stages beyond"),
        (lambda a, b: [replace(a, segment=1), b], "earlier segment"),
    ],
)
def test_passes_that_make_no_sense(change: Callable[[Pass, Pass], list[Pass]], match: str) -> None:
    with pytest.raises(ScheduleError, match=match):
        make_schedule([change(*window(0, 2, 2, True))], 2)


def test_a_cost_of_nothing() -> None:
    with pytest.raises(ScheduleError, match="at least one tick, not 0"):
        make_schedule([window(0, 1, 2, True)], 2, cost=lambda action, stage: 0)


def test_nothing_to_do() -> None:
    assert make_schedule([], 2) == Schedule(((), ()))
    assert simulate(make_schedule([[]], 2), [[]], 2).bubble == 0


@pytest.mark.parametrize("module", [parallel.passes, parallel.schedule, parallel.simulator])
def test_pure(module: object) -> None:
    """No torch, no random numbers, no clock: every rank gets the same schedule."""
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))
    assert imported <= {
        "__future__", "collections", "collections.abc", "dataclasses", "functools", "heapq",
        "itertools", "typing",
        "parallel.passes", "parallel.schedule",
    }  # fmt: skip
