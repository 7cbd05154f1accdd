"""A pass of one microbatch over one window: through which stages it goes, what each of them does.

`pretrain.model.plan` says what the passes of a batch are. The schedule, the pipeline and the loop
that runs them read it here. Pure: every rank that has the same facts gets the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over a window, on its way through the stages first_stage..last_stage.

            first_stage ... core_end ... last_stage
    pass n      core    ...   core       coda ... head
    pass n+1    core  <-- h --'                               round the ring

    A schedule needs the stages alone; the blocks are for those who run, count or weigh a pass.
    """

    window: int
    number: int  # from 1: the wake pass
    first_stage: int  # where it begins
    core_end: int  # where its part of the core ends: the next pass's h comes from here
    last_stage: int  # where it ends; those from core_end on run the coda and the head
    loops: bool  # the microbatch's next pass is over the same window, and takes its h from core_end
    # Backward goes through first_stage..core_grad_until of the stages up to core_end; -1: none.
    core_grad_until: int
    head_has_grad: bool  # backward goes through core_end..last_stage, by what is read of the pass
    sends_grad_to_previous_pass: bool  # that of the h which comes in, round the ring
    # Gradients of the state do not cross from one segment to the next. Never decreasing.
    segment: int

    # ---- blocks, by their numbers in the model
    prelude: range = range(0)
    core: range = range(0)  # no further than it is of use
    coda: range = range(0)
    write_only: int | None = None  # the block that only writes: nothing reads what comes out of it
    reads: bool = False  # coda and head read it
    core_has_grad: bool = False
    detaches: bool = False  # backward ends here, at the h and the core's memory that come in

    @property
    def blocks(self) -> tuple[int, ...]:
        """All that it runs, in order."""
        return (*self.prelude, *self.core, *self.coda)

    def visits(self, stage: int) -> bool:
        """Whether a stage has a part in it."""
        return self.first_stage <= stage <= self.last_stage

    def runs_core(self, stage: int) -> bool:
        """Whether a stage that it visits has a part in it before the coda."""
        return stage <= self.core_end

    def runs_coda(self, stage: int) -> bool:
        """Whether a stage that it visits has a part in what reads it."""
        return self.reads and stage >= self.core_end

    def has_backward(self, stage: int) -> bool:
        """Whether a stage that it visits has a backward."""
        return stage <= self.core_grad_until or (self.head_has_grad and stage >= self.core_end)

    def receives_grad(self, stage: int) -> bool:
        """Whether the next stage gives this one the gradient of what it was handed."""
        in_coda = self.core_end <= stage < self.last_stage
        return stage < self.core_grad_until or (self.head_has_grad and in_coda)

    def input_needs_grad(self, stage: int) -> bool:
        """Whether the gradient of what comes in at a stage is sent back to where it came from."""
        if stage > self.first_stage:
            return self.receives_grad(stage - 1)
        return self.sends_grad_to_previous_pass


class ScheduleError(ValueError):
    """Passes that make no sense, or a schedule that cannot be carried out."""


def check(passes: Sequence[Sequence[Pass]], stages: int) -> None:
    """Makes sure that the passes of each microbatch lead through the stages.

    Raises:
        ScheduleError: naming the microbatch, the pass's place in it and what is wrong.
    """
    for m, mine in enumerate(passes):
        for n, p in enumerate(mine):
            for fault in _faults(p, mine[n - 1] if n else None, n + 1 == len(mine), stages):
                raise ScheduleError(f"microbatch {m}, unit {n} {fault}: {p}")


def _faults(p: Pass, before: Pass | None, is_last: bool, stages: int) -> Iterator[str]:
    """What is wrong with a pass, given the one before."""
    looped = before is not None and before.loops
    if not 0 <= p.first_stage <= p.core_end <= p.last_stage < stages:
        yield f"does not go by 0 <= first_stage <= core_end <= last_stage < {stages} stages"
    if p.core_grad_until != -1 and not p.first_stage <= p.core_grad_until <= p.core_end:
        yield "goes back through stages beyond first_stage..core_end"
    if looped and p.number == 1:
        yield "wakes, but the pass before loops"
    if not looped and p.number > 1:
        yield "sleeps, but the pass before does not loop"
    if looped and before and (p.window, p.number) != (before.window, before.number + 1):
        yield "is not the next pass of the window, but the pass before loops"
    if p.loops and is_last:
        yield "loops, but there is no next pass"
    takes_grad = before is not None and looped and before.core_grad_until == before.core_end
    if p.sends_grad_to_previous_pass and not (takes_grad and p.core_grad_until >= 0):
        yield "sends a gradient, but has none or the pass before takes none"
    if before is not None and p.segment < before.segment:
        yield "is of an earlier segment than the pass before"
