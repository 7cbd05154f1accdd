"""A control: a task with several copies of its context, to see what re-reading alone gives.

c0 | c1 | question          windows of L tokens
c0 c0 | c1 c1 | question    windows of 2 L: a copy attends to the copies before it
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from pretrain.data.batch import IGNORE, Batch
from pretrain.tasks.task import DeepTask, Task


class Repeated(DeepTask):
    """Another task with `repeats` copies of each window of context side by side."""

    def __init__(self, task: Task, repeats: int, window: int) -> None:
        """
        Args:
            task: laid out in windows of window / repeats tokens.
        """
        self.task, self.repeats, self.window = task, repeats, window
        self.vocab_size = task.vocab_size
        self.fingerprint = f"{task.fingerprint} repeats={repeats}"

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """The same rows as the task's own."""
        return self._repeat(self.task.sample(seed, position, rows))

    def sample_up_to(self, seed: int, position: int, rows: int, share: float) -> Batch:
        """The same rows as the task's own."""
        return self._repeat(cast(DeepTask, self.task).sample_up_to(seed, position, rows, share))

    def test(self, seed: int, rows: int) -> Batch:
        """The same rows as the task's own."""
        return self._repeat(self.task.test(seed, rows))

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """As the task scores them. best: [B, T] int64."""
        context = _first_scored(batch) // self.window * self.window
        once = torch.arange(context).view(-1, self.window)[:, : self.window // self.repeats]
        kept = torch.cat([once.flatten(), torch.arange(context, batch.size[1])])
        return self.task.score(best[:, kept], _columns(batch, kept))

    def _repeat(self, batch: Batch) -> Batch:
        """Repeats each window of context, and leaves the questions unchanged."""
        L = self.window // self.repeats
        context = _first_scored(batch) // L * L
        copies = torch.arange(context).view(-1, 1, L).expand(-1, self.repeats, L)
        order = torch.cat([copies.flatten(), torch.arange(context, batch.size[1])])
        repeated = _columns(batch, order)
        starts = torch.zeros(batch.size[0], -(-len(order) // self.window), dtype=torch.bool)
        starts[:, 0] = True
        return replace(repeated, starts=starts)


def _first_scored(batch: Batch) -> int:
    """The first column in which something is scored: the same window in all rows."""
    return int((batch.targets != IGNORE).any(dim=0).int().argmax())


def _columns(batch: Batch, kept: Tensor) -> Batch:
    """The same rows, with only the columns `kept`, in this order."""
    tokens, targets, valid = (t[:, kept] for t in (batch.tokens, batch.targets, batch.valid))
    return replace(batch, tokens=tokens, targets=targets, valid=valid)
