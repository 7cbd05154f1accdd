"""Whether a step counts: decided on the device, the same on every rank, from its loss and the norm
of its gradient.

A step is skipped if either is not finite, or more than `guard.spike` times its running mean. Both
numbers come out of a reduction over all ranks, so a number that goes wrong on one of them is seen
by all, and nobody asks the host.

The running means are exponential over the accepted steps x_1 .. x_n,

    m_n = sum_i (1 - d) d^(n - i) x_i / (1 - d^n)        d = 1 - 1 / EMA_STEPS

and before WARMUP_STEPS of them nothing is called a spike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh

EMA_STEPS = 100  # accepted steps that a running mean reaches back
WARMUP_STEPS = 20  # accepted steps that make a mean
DECAY = 1 - 1 / EMA_STEPS


def mean_loss(window_losses: Sequence[Tensor], scored: Tensor | int) -> Tensor:
    """[] fp64 loss per scored token of a step, over all ranks; not finite if a single rank's is
    not.

    Args:
        window_losses: of each microbatch [W]; of pipeline stages, the last has them and the others
            have zeros.
        scored: tokens, over all ranks.
    """
    total = torch.stack(list(window_losses)).sum(dtype=torch.float64)
    dist.all_reduce(total)
    # those that share a layer all have the loss of their rows
    return total / (scored * mesh.tp_size())


class StepOutcome(NamedTuple):
    """What became of a step, and what it was judged by."""

    accepted: bool
    in_a_row: int  # steps skipped one after the other, up to this one
    loss: float
    grad_norm: float  # before clipping
    usual_loss: float  # the running means before this step; nan before the first
    usual_grad_norm: float

    @staticmethod
    def read(numbers: Tensor) -> StepOutcome:
        """From `StepFilter.verdict`, on the host."""
        accepted, in_a_row, *rest = numbers.tolist()
        return StepOutcome(bool(accepted), int(in_a_row), *rest)

    def why(self, spike: float) -> str:
        """What is wrong with a step that was skipped."""
        faults = [f"loss is {self.loss}"] if not math.isfinite(self.loss) else []
        # nan or inf: DeepSpeed does not tell which it has found
        if not math.isfinite(self.grad_norm):
            faults.append("grad_norm is not finite")
        for name, value, usual in (
            ("loss", self.loss, self.usual_loss), ("grad_norm", self.grad_norm, self.usual_grad_norm),
        ):  # fmt: skip
            if spike and math.isfinite(value) and value > spike * usual:
                faults.append(f"{name} is {value / usual:.3g} times its mean")
        return ", ".join(faults)


class StepFilter:
    """Decides step by step, and keeps what it decides by."""

    sums: Tensor  # [2] fp64, of loss and gradient norm: m_n without its denominator
    in_a_row: Tensor  # [] steps skipped one after the other, up to the last
    verdict: Tensor  # [6] fp64 of the last step, see `StepOutcome.read`

    def __init__(self, spike: float, device: torch.device) -> None:
        self.spike = spike
        self.sums, self.in_a_row, self.verdict = (
            torch.zeros(shape, dtype=torch.float64, device=device) for shape in ((2,), (), (6,))
        )

    def __call__(self, loss: Tensor, grad_norm: Tensor, before: Tensor) -> Tensor:
        """[] bool: whether the step is accepted.

        Args:
            before: [] accepted steps before this one.
        """
        seen = torch.stack([loss.to(self.sums), grad_norm.to(self.sums)])
        usual = self.sums / (1 - DECAY ** before.to(self.sums))
        accepted = seen.isfinite().all()
        if self.spike:
            accepted &= (before < WARMUP_STEPS) | (seen <= self.spike * usual).all()
        self.sums = torch.where(accepted, torch.lerp(seen, self.sums, DECAY), self.sums)
        self.in_a_row = (self.in_a_row + 1).masked_fill(accepted, 0)
        self.verdict = torch.cat([torch.stack([accepted.to(seen), self.in_a_row]), seen, usual])
        return accepted
