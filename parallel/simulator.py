"""Simulates a schedule without computing: checks that it is valid, and how long it takes.

It knows nothing of how schedules are made. Each stage goes through its own list of steps, as
`parallel.pipeline` does, and before each action checks that everything the unit needs is there.
The rules are those of `parallel.schedule`, implemented independently.

Two semantics of messages are simulated at once:

    rendezvous   decides what can happen: a batch blocks its stage until every peer has posted
                 its part of every message in it. This is the strictest way to execute a batch, so
                 what does not deadlock here never does.
    buffered     decides when it happens, and models overlapped sends: nobody waits for a batch,
                 and an action begins when its stage is free and its inputs have been sent.
                 Messages take no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from parallel.passes import Pass, ScheduleError, check
from parallel.schedule import Action, Message, Schedule, Step, default_cost

Duration = Callable[[Action, int], float]


class Span(NamedTuple):
    """When a stage does an action, in the unit of the given durations."""

    action: Action
    begin: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """The result of a simulation, by stage."""

    spans: tuple[tuple[Span, ...], ...]  # in order of time
    # the most units in flight at a time: forward begun, backward still to come
    peak: tuple[int, ...]

    @property
    def makespan(self) -> float:
        """When the last stage is done."""
        return max((stage[-1].end for stage in self.spans if stage), default=0.0)

    @property
    def busy(self) -> tuple[float, ...]:
        """How long each stage computes."""
        return tuple(sum(span.end - span.begin for span in stage) for stage in self.spans)

    @property
    def bubble(self) -> float:
        """The fraction of all stages' time that is idle, from 0 to 1."""
        return 1 - sum(self.busy) / (len(self.spans) * self.makespan) if self.makespan else 0.0


def simulate(
    schedule: Schedule,
    passes: Sequence[Sequence[Pass]],
    stages: int,
    duration: Duration = default_cost,
    forward_only: bool = False,
) -> Timeline:
    """Simulates a schedule of these passes.

    Args:
        passes, stages, forward_only: what the schedule was made for.
        duration: of an action at a stage, for example in measured seconds; independent of the costs
            that the schedule was made with.
    Raises:
        ScheduleError: names the stage, the unit and what is wrong: an action's input is not there;
            an action or a message is missing, duplicated or not called for; the two ends of a pair
            of stages have their messages in different orders; or stages deadlock.
    """
    check(passes, stages)
    if len(schedule.steps) != stages:
        raise ScheduleError(f"the schedule is for {len(schedule.steps)} stages, not {stages}")
    _check_messages(schedule)
    return _Run(schedule, passes, stages, duration, forward_only).finish()


def _check_messages(schedule: Schedule) -> None:
    """Checks that both ends of each pair of stages post the same messages in the same order."""
    stages = range(len(schedule.steps))
    posted: dict[tuple[int, int, int], list[Message]] = {}  # by (stage that posts, source, target)
    for stage, steps in enumerate(schedule.steps):
        for step in steps:
            for message in step.messages:
                if message.source == message.target or stage not in (
                    message.source,
                    message.target,
                ):
                    raise ScheduleError(f"stage {stage} has no part in {message}")
                if not (message.source in stages and message.target in stages):
                    raise ScheduleError(f"stage {stage}: there is no other end of {message}")
                posted.setdefault((stage, message.source, message.target), []).append(message)
    for source in stages:
        for target in stages:
            sends, receives = (posted.get((end, source, target), []) for end in (source, target))
            for sent, received in zip_longest(sends, receives):
                if sent != received:
                    raise ScheduleError(
                        f"stage {source} sends {sent}, but next stage {target} expects {received}"
                    )
            if len(sends) != len(set(sends)):
                raise ScheduleError(f"stage {source} sends stage {target} the same twice: {sends}")


class _Run:
    """The state of a simulation."""

    def __init__(
        self,
        schedule: Schedule,
        passes: Sequence[Sequence[Pass]],
        stages: int,
        duration: Duration,
        forward_only: bool,
    ) -> None:
        self._steps, self._passes = schedule.steps, passes
        self._duration, self._forward_only = duration, forward_only
        self._at = [0] * stages  # the step each stage is in
        # whether a stage has computed and posted, and waits for its peers
        self._in_batch = [False] * stages
        self._done: set[tuple[int, Action]] = set()
        self._sent: dict[Message, float] = {}  # posted by the source: when
        self._expected: set[Message] = set()  # posted by the target
        self._here: set[Message] = set()  # arrived and not yet taken
        self._spans: list[list[Span]] = [[] for _ in range(stages)]
        self._live, self._peak = [0] * stages, [0] * stages

    def finish(self) -> Timeline:
        """Runs until no stage can advance."""
        stages = range(len(self._steps))
        going = True
        while going:
            going = False
            for s in stages:
                going = self._advance(s) or going
        stuck = [s for s in stages if self._at[s] < len(self._steps[s])]
        if stuck:
            waits = (f"stage {s} for {next(self._missing(self._step(s)))}" for s in stuck)
            raise ScheduleError(f"deadlock, stages wait for each other: {', '.join(waits)}")
        for m, passes in enumerate(self._passes):
            for s in stages:
                for n, p in enumerate(passes):
                    for backward in (False, True):
                        action = Action(backward, m, n)
                        if self._is_called_for(p, s, backward) and (s, action) not in self._done:
                            self._fail(s, action, "is never done")
        for message in self._here:
            raise ScheduleError(f"stage {message.target} never takes {message}")
        return Timeline(tuple(tuple(spans) for spans in self._spans), tuple(self._peak))

    def _advance(self, s: int) -> bool:
        """Advances a stage within its step as far as possible; returns whether it advanced."""
        if self._at[s] == len(self._steps[s]):
            return False
        step = self._step(s)
        began = not self._in_batch[s]
        if began:
            if step.action is not None:
                self._compute(s, step.action)
            self._post(s, step)
            self._in_batch[s] = True
        if next(self._missing(step), None) is not None:
            return began
        self._here.update(message for message in step.messages if message.target == s)
        self._at[s] += 1
        self._in_batch[s] = False
        return True

    def _step(self, s: int) -> Step:
        return self._steps[s][self._at[s]]

    def _missing(self, step: Step) -> Iterator[Message]:
        """The messages of a batch of which only one end is posted."""
        return (
            message
            for message in step.messages
            if not (message in self._sent and message in self._expected)
        )

    def _post(self, s: int, step: Step) -> None:
        for message in step.messages:
            if message.target == s:
                self._expected.add(message)
                continue
            if (s, Action(message.backward, message.microbatch, message.made_by)) not in self._done:
                raise ScheduleError(f"stage {s} sends {message} before it is made")
            self._sent[message] = self._clock(s)

    def _clock(self, s: int) -> float:
        return self._spans[s][-1].end if self._spans[s] else 0.0

    def _compute(self, s: int, action: Action) -> None:
        backward, m, n = action
        if not (0 <= m < len(self._passes) and 0 <= n < len(self._passes[m])):
            raise ScheduleError(f"stage {s}: there is no such unit: {action}")
        p = self._passes[m][n]
        if not self._is_called_for(p, s, backward):
            self._fail(s, action, "is not called for")
        if (s, action) in self._done:
            self._fail(s, action, "is done twice")
        (self._check_backward_memory if backward else self._check_forward_memory)(s, action)
        begin = self._clock(s)
        for message in self._gradients(s, m, n) if backward else self._input(s, m, n):
            begin = max(begin, self._take(s, action, message))
        self._spans[s].append(Span(action, begin, begin + self._duration(action, s)))
        self._done.add((s, action))
        if backward:
            self._live[s] -= 1
        elif self._is_called_for(p, s, True):
            self._live[s] += 1
            self._peak[s] = max(self._peak[s], self._live[s])

    def _is_called_for(self, p: Pass, s: int, backward: bool) -> bool:
        if not backward:
            return p.first_stage <= s <= p.last_stage
        core, read = (
            p.first_stage <= s <= p.core_grad_until,
            p.head_has_grad and p.core_end <= s <= p.last_stage,
        )
        return (core or read) and not self._forward_only

    def _check_forward_memory(self, s: int, action: Action) -> None:
        """Checks that the stage has done the microbatch's earlier units, which leave it S."""
        _, m, n = action
        for k in range(n):
            if (
                self._is_called_for(self._passes[m][k], s, False)
                and (s, Action(False, m, k)) not in self._done
            ):
                self._fail(
                    s, action, f"comes before the forward of unit {k}, which leaves it its state"
                )

    def _check_backward_memory(self, s: int, action: Action) -> None:
        """Checks that the unit's forward and the backwards that give its S a gradient are done."""
        _, m, n = action
        if (s, Action(False, m, n)) not in self._done:
            self._fail(s, action, "comes before its forward")
        passes = self._passes[m]
        for k in range(n + 1, len(passes)):
            same = passes[k].segment == passes[n].segment
            reads = same and self._is_called_for(passes[k], s, True)
            if reads and (s, Action(True, m, k)) not in self._done:
                self._fail(
                    s, action, f"comes before the backward of unit {k}, whose gradient it needs"
                )

    def _input(self, s: int, m: int, n: int) -> Iterator[Message]:
        """The message that brings h; none if the unit starts from the data."""
        passes = self._passes[m]
        if s != passes[n].first_stage:
            yield Message(s - 1, s, False, m, n, False)
        elif passes[n].number > 1:
            yield Message(passes[n - 1].core_end, s, False, m, n, True)

    def _gradients(self, s: int, m: int, n: int) -> Iterator[Message]:
        """The messages that bring the gradients of h and of the coda's output."""
        passes, p = self._passes[m], self._passes[m][n]
        if s + 1 <= p.core_grad_until or (p.head_has_grad and p.core_end <= s < p.last_stage):
            yield Message(s + 1, s, True, m, n, False)
        if s == p.core_end and p.loops and passes[n + 1].sends_grad_to_previous_pass:
            yield Message(passes[n + 1].first_stage, s, True, m, n, True)

    def _take(self, s: int, action: Action, message: Message) -> float:
        """Consumes a message that an action needs; returns when it was sent."""
        if message.source == s:
            # only a message around the ring can have the same source and target
            made_by = message.made_by
            if (s, Action(message.backward, message.microbatch, made_by)) not in self._done:
                self._fail(
                    s, action, f"comes before that of unit {made_by}, from which it gets its input"
                )
            return 0.0
        if message not in self._here:
            self._fail(s, action, f"begins before its input is received: {message}")
        self._here.remove(message)
        return self._sent[message]

    def _fail(self, s: int, action: Action, fault: str) -> None:
        p = self._passes[action.microbatch][action.unit]
        direction = "backward" if action.backward else "forward"
        raise ScheduleError(
            f"stage {s}: the {direction} of microbatch {action.microbatch}, "
            f"unit {action.unit} (window {p.window}, pass {p.number}) {fault}"
        )
