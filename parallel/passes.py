"""One pass of a microbatch over a window: which pipeline stages it visits, what each computes.

`pretrain.model.plan` plans the passes of a batch; the schedule, the pipeline and the loop that runs
them read them here. Everything is pure: ranks with the same inputs get the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over a window, on its way through the stages first_stage..last_stage.

            first_stage ... core_end ... last_stage
    pass n      core    ...   core       coda ... head
    pass n+1    core  <-- h --'                               around the ring

    A schedule needs only the stages; the blocks are for code that runs a pass, or counts its FLOPs
    or memory.
    """

    window: int
    number: int  # from 1: the wake pass
    first_stage: int  # where it begins
    core_end: int  # where its part of the core ends: the next pass's h comes from here
    last_stage: int  # where it ends; those from core_end on run the coda and the head
    loops: bool  # the microbatch's next pass is over the same window, and starts from core_end's h
    # Backward goes through first_stage..core_grad_until of the stages up to core_end; -1: none.
    core_grad_until: int
    head_has_grad: bool  # backward goes through core_end..last_stage, from the head and the coda
    sends_grad_to_previous_pass: bool  # the gradient of its incoming h, around the ring
    # Gradients of the state do not cross segments. Never decreases.
    segment: int

    # ---- blocks, by their numbers in the model
    prelude: range = range(0)
    core: range = range(0)  # only as far as its results are needed
    coda: range = range(0)
    write_only: int | None = None  # the block that only updates its state: nothing reads its output
    reads: bool = False  # coda and head run
    core_has_grad: bool = False
    detaches: bool = False  # backward ends here, at the incoming h and memory of the core

    @property
    def blocks(self) -> tuple[int, ...]:
        """All blocks that it runs, in order."""
        return (*self.prelude, *self.core, *self.coda)

    def visits(self, stage: int) -> bool:
        """Whether the pass goes through a stage."""
        return self.first_stage <= stage <= self.last_stage

    def runs_core(self, stage: int) -> bool:
        """Whether a visited stage runs a part of it before the coda."""
        return stage <= self.core_end

    def runs_coda(self, stage: int) -> bool:
        """Whether a visited stage runs a part of the coda or the head."""
        return self.reads and stage >= self.core_end

    def has_backward(self, stage: int) -> bool:
        """Whether a visited stage has a backward."""
        return stage <= self.core_grad_until or (self.head_has_grad and stage >= self.core_end)

    def receives_grad(self, stage: int) -> bool:
        """Whether the next stage sends back the gradient of what this stage sent it."""
        in_coda = self.core_end <= stage < self.last_stage
        return stage < self.core_grad_until or (self.head_has_grad and in_coda)

    def input_needs_grad(self, stage: int) -> bool:
        """Whether a stage sends the gradient of its input back to where the input came from."""
        if stage > self.first_stage:
            return self.receives_grad(stage - 1)
        return self.sends_grad_to_previous_pass


class ScheduleError(ValueError):
    """Inconsistent passes, or a schedule that cannot be executed."""


def check(passes: Sequence[Sequence[Pass]], stages: int) -> None:
    """Checks that the passes of each microbatch are consistent with each other and the stages.

    Raises:
        ScheduleError: names the microbatch, the pass's index in it and what is wrong.
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
