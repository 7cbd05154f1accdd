"""What the training loop makes of steps that were skipped: a record of each, and an end to too many
in a row.

    step s        the device decides (pretrain/run/verdict.py); its verdict begins to travel to the host
    step s + 1    when all of it has been handed to the device, the host reads the verdict of s, which has arrived by
                  then: the device always has work, and every rank learns the same at the same step

Before a checkpoint is taken nothing may be left unread. After `guard.limit` skipped steps in a row
the run stops, or goes back to its newest checkpoint (`guard.then`) and on with the data after the
trouble.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallel.state import State
from pretrain.checkpoint import Checkpoint
from pretrain.config.schema import GuardConfig
from pretrain.errors import UserError
from pretrain.run.metrics import Metrics
from pretrain.run.verdict import StepOutcome

Samples = Callable[[], Any]  # see pretrain.data.source.BatchSource.samples


class Rollbacks(NamedTuple):
    """How often a run has gone back."""

    total: int = 0
    here: int = 0  # to the checkpoint that it goes on from


class SkipStreak(NamedTuple):
    """Too many steps skipped in a row."""

    what: str  # in one line
    step: int  # the last that was done
    rollbacks: int  # in all, before this

    def stop(self, why: str, fix: str) -> UserError:
        """The end of the run, explained."""
        return UserError(
            f'{self.what}; {why}. Their numbers and samples are in metrics.jsonl (kind "skipped"): {fix}, or begin '
            "another run with a lower learning rate or without those samples"
        )


class Guard:
    """Reads the verdicts of a run's steps, one step late."""

    def __init__(
        self,
        config: GuardConfig,
        metrics: Metrics | None,
        say: Callable[[str], None],
        rollbacks: int,
    ) -> None:
        """
        Args:
            metrics: where skipped steps are recorded; on one rank only.
            rollbacks: so many has the run made, in all.
        """
        self._config, self._metrics, self._say, self._rollbacks = config, metrics, say, rollbacks
        self._unread: tuple[int, _Fetch, Samples] | None = None

    def after(self, step: int, verdict: Tensor, samples: Samples) -> SkipStreak | None:
        """Begins to fetch the verdict of a step that was just handed to the device; reads the one
        before it.
        """
        before, self._unread = self._unread, (step, _Fetch(verdict), samples)
        trouble = self._read(before)
        return trouble and (self.settle() or trouble)  # the step after it is recorded too

    def settle(self) -> SkipStreak | None:
        """Waits for the verdict that is still unread."""
        unread, self._unread = self._unread, None
        return self._read(unread)

    def _read(self, unread: tuple[int, _Fetch, Samples] | None) -> SkipStreak | None:
        if unread is None:
            return None
        step, fetch, samples = unread
        verdict = fetch.get()
        if verdict.accepted:
            return None
        why = verdict.why(self._config.spike)
        self._say(f"step {step} skipped: {why}")
        if self._metrics:
            row = {
                "loss": verdict.loss,
                "grad_norm": verdict.grad_norm,
                "why": why,
                "rollbacks": self._rollbacks,
            }
            self._metrics.write("skipped", step, row | {"samples": samples()})
        if verdict.in_a_row < self._config.limit:
            return None
        what = (
            f"steps {step - verdict.in_a_row + 1} to {step} were all skipped (guard.limit = {self._config.limit}), the "
            f"last because {why}; its loss is {verdict.loss:.4g} (the mean was {verdict.usual_loss:.4g}), its gradient "
            f"norm {verdict.grad_norm:.4g} ({verdict.usual_grad_norm:.4g})"
        )
        return SkipStreak(what, step, self._rollbacks)


class _Fetch:
    """A few numbers on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self._event = None
        if not numbers.is_cuda:
            self._numbers = numbers
            return
        self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        self._numbers.copy_(numbers, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def get(self) -> StepOutcome:
        """Waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return StepOutcome.read(self._numbers)


def reset_if_skipped(state: State | None, accepted: Tensor) -> State | None:
    """What documents that go on take along from a step: nothing from one that was skipped, without
    asking the host.

    A memory full of NaN would spoil every later sequence of its document, and one that made a spike
    may make another.
    """
    if state is None:
        return None
    accepted = accepted.to(state.position.device, non_blocking=True)
    return state.map(lambda t: torch.where(accepted, t, torch.zeros_like(t)))


def before_streak(checkpoint: Checkpoint) -> bool:
    """Whether it was taken after a step that counted, and not in the middle of trouble."""
    return int(checkpoint.state["optimizer"]["in_a_row"]) == 0


def go_back(trouble: SkipStreak, checkpoint: Checkpoint | None, config: GuardConfig) -> Rollbacks:
    """Counts one more rollback, to this checkpoint. UserError: the run stops here instead."""
    if config.then == "stop":
        raise trouble.stop(
            'guard.then = "stop"', 'set guard.then = "rollback" to go on with the data after them'
        )
    if checkpoint is None:
        raise trouble.stop(
            "there is no good checkpoint to go back to", "lower train.checkpoint_every"
        )
    here = int(checkpoint.state["rollbacks"]["here"]) + 1
    if here > config.rollbacks:
        why = f"the run has gone back to step {checkpoint.step} {here - 1} times already"
        raise trouble.stop(why, f"raise guard.rollbacks = {config.rollbacks}")
    return Rollbacks(trouble.rollbacks + 1, here)
