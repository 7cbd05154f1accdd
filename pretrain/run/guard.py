"""Skips steps with a non-finite or spiking loss or gradient, and ends a run with too many of them.

    step s        the device decides (`StepFilter`) whether the optimiser applies the step; the
                  outcome is copied to the host asynchronously
    step s + 1    when all of its work has been queued on the device, the host reads the outcome of
                  s, which has arrived by then (`Guard`): the device is never idle, and all ranks
                  learn the same outcome at the same step

A step is skipped if its loss or gradient norm is not finite, or more than `guard.spike` times its
running mean. Both numbers are reduced over all ranks, so a bad number on one rank is seen by all.
The running means are exponential moving averages over the accepted steps x_1 .. x_n,

    m_n = sum_i (1 - d) d^(n - i) x_i / (1 - d^n)        d = 1 - 1 / EMA_STEPS

and before WARMUP_STEPS accepted steps nothing counts as a spike.

All outcomes are read before a checkpoint is taken. After `guard.limit` skipped steps in a row the
run stops, or goes back to its newest good checkpoint (`guard.then`) and continues with the data
after the streak (pretrain/run/resume.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.state import State
from pretrain.config.schema import GuardConfig
from pretrain.data.source import Gather
from pretrain.errors import UserError
from pretrain.run.gather import RowGather
from pretrain.run.metrics import Metrics

EMA_STEPS = 100  # time constant of the running means, in accepted steps
WARMUP_STEPS = 20  # accepted steps before the running means are used
DECAY = 1 - 1 / EMA_STEPS
Samples = Callable[[Gather], Any]  # see pretrain.data.source.BatchSource.samples


def mean_loss(window_losses: Sequence[Tensor], n_scored: Tensor | int) -> Tensor:
    """[] fp64 loss per scored token of a step, over all ranks; not finite if any rank's is not.

    Args:
        window_losses: of each microbatch [W]; zeros on all pipeline stages but the last.
        n_scored: tokens, over all ranks.
    """
    total = torch.stack(list(window_losses)).sum(dtype=torch.float64)
    dist.all_reduce(total)
    # all tp ranks have the same loss, so it was summed tp times
    return total / (n_scored * mesh.tp_size())


class StepOutcome(NamedTuple):
    """Whether a step was accepted, and the numbers that decided it."""

    accepted: bool
    in_a_row: int  # consecutive skipped steps up to this one
    loss: float
    grad_norm: float  # before clipping
    running_loss: float  # the running means before this step; nan before the first
    running_grad_norm: float

    @staticmethod
    def read(numbers: Tensor) -> StepOutcome:
        """From `StepFilter.outcome`, on the host."""
        accepted, in_a_row, *rest = numbers.tolist()
        return StepOutcome(bool(accepted), int(in_a_row), *rest)

    def why(self, spike: float) -> str:
        """Why a step was skipped."""
        faults = [f"loss is {self.loss}"] if not math.isfinite(self.loss) else []
        # nan or inf: DeepSpeed does not say which
        if not math.isfinite(self.grad_norm):
            faults.append("grad_norm is not finite")
        compared = {
            "loss": (self.loss, self.running_loss),
            "grad_norm": (self.grad_norm, self.running_grad_norm),
        }
        for name, (value, running_mean) in compared.items():
            if spike and math.isfinite(value) and value > spike * running_mean:
                faults.append(f"{name} is {value / running_mean:.3g} times its mean")
        return ", ".join(faults)


class StepFilter:
    """Decides on the device which steps are accepted, and keeps the running means for that."""

    sums: Tensor  # [2] fp64, of loss and gradient norm: m_n without its denominator
    count: Tensor  # [] n, steps of this run accepted so far; moments may be of more
    in_a_row: Tensor  # [] consecutive skipped steps up to the last one
    outcome: Tensor  # [6] fp64 of the last step, see `StepOutcome.read`

    def __init__(self, spike: float, device: torch.device) -> None:
        self.spike = spike
        self.sums, self.count, self.in_a_row, self.outcome = (
            torch.zeros(shape, dtype=torch.float64, device=device) for shape in ((2,), (), (), (6,))
        )

    def __call__(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """[] bool: whether the step is accepted."""
        seen = torch.stack([loss.to(self.sums), grad_norm.to(self.sums)])
        running_mean = self.sums / (1 - DECAY**self.count)
        accepted = seen.isfinite().all()
        if self.spike:
            warms_up = self.count < WARMUP_STEPS
            accepted &= warms_up | (seen <= self.spike * running_mean).all()
        self.sums = torch.where(accepted, torch.lerp(seen, self.sums, DECAY), self.sums)
        self.count = self.count + accepted
        self.in_a_row = (self.in_a_row + 1).masked_fill(accepted, 0)
        outcome = [torch.stack([accepted.to(seen), self.in_a_row]), seen, running_mean]
        self.outcome = torch.cat(outcome)
        return accepted


class Rollbacks(NamedTuple):
    """How often a run has gone back to a checkpoint."""

    total: int = 0
    here: int = 0  # to the checkpoint that it now continues from


class SkipStreak(NamedTuple):
    """Too many steps skipped in a row."""

    what: str  # in one line
    step: int  # the last of them
    data: dict[str, Any]  # `BatchSource.state_dict` after it
    rollbacks: int  # total before this streak

    def stop(self, why: str, fix: str) -> UserError:
        """The error that ends the run."""
        return UserError(
            f"{self.what}; {why}. Their numbers and samples are in metrics.jsonl (kind "
            f'"skipped"): {fix}, or begin another run with a lower learning rate or without those '
            "samples"
        )


class Guard:
    """Reads the outcomes of a run's steps, one step late, and records the skipped ones."""

    def __init__(
        self,
        config: GuardConfig,
        metrics: Metrics,
        say: Callable[[str], None],
        rollbacks: int,
        gather: RowGather,
    ) -> None:
        """
        Args:
            metrics: where skipped steps are recorded.
            rollbacks: how many the run has made in total.
            gather: gathers the ranks' samples.
        """
        self._gather = gather
        self._config, self._metrics, self._say, self._rollbacks = config, metrics, say, rollbacks
        self._unread: _Unread | None = None
        self._streak: SkipStreak | None = None

    def after(
        self, step: int, outcome: Tensor, samples: Samples, data: dict[str, Any]
    ) -> SkipStreak | None:
        """Starts to fetch the outcome of a step that was just queued on the device; reads that of
        the previous step.

        Args:
            samples, data: of the source, after the step.
        Returns:
            The streak, if too many steps in a row were skipped; it ends with the step that was just
            queued, if that one was skipped too.
        """
        before, self._unread = self._unread, _Unread(step, _Fetch(outcome), samples, data)
        self._read(before)
        return self.settle() if self._streak else None

    def settle(self) -> SkipStreak | None:
        """Waits for the unread outcome, if there is one; returns a streak that is too long."""
        unread, self._unread = self._unread, None
        self._read(unread)
        return self._streak

    def _read(self, unread: _Unread | None) -> None:
        if unread is None:
            return
        outcome = unread.fetch.get()
        if outcome.accepted:
            return
        step, why = unread.step, outcome.why(self._config.spike)
        self._say(f"step {step} skipped: {why}")
        self._metrics.write(
            "skipped",
            step,
            {
                "loss": outcome.loss,
                "grad_norm": outcome.grad_norm,
                "why": why,
                "rollbacks": self._rollbacks,
                "samples": unread.samples(partial(self._gather, f"samples/{step}")),
            },
        )
        if outcome.in_a_row >= self._config.limit:
            what = (
                f"steps {step - outcome.in_a_row + 1} to {step} were all skipped "
                f"(guard.limit = {self._config.limit}), the last because {why}; "
                f"its loss is {outcome.loss:.4g} (the mean was {outcome.running_loss:.4g}), "
                f"its gradient norm {outcome.grad_norm:.4g} ({outcome.running_grad_norm:.4g})"
            )
            self._streak = SkipStreak(what, step, unread.data, self._rollbacks)


class _Unread(NamedTuple):
    """A step whose outcome is being copied to the host."""

    step: int
    fetch: _Fetch
    samples: Samples
    data: dict[str, Any]


class _Fetch:
    """An asynchronous copy of a few numbers to the host."""

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
        """Waits until the numbers have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return StepOutcome.read(self._numbers)


def reset_if_skipped(state: State | None, accepted: Tensor) -> State | None:
    """The memory that continuing documents take along from a step: zeros if it was skipped.

    A memory full of NaN would spoil every later sequence of its document, and one that caused a
    spike may cause another. Decided on the device, without a synchronisation.
    """
    if state is None:
        return None
    accepted = accepted.to(state.position.device, non_blocking=True)
    return state.map(lambda t: torch.where(accepted, t, torch.zeros_like(t)))
