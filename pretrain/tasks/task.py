"""The interface of a task, and the layout that all tasks share.

| context: whole windows, nothing scored | prediction: the answers are scored |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Ints

TEST_SEED = 1_000_003  # test rows are drawn from it; far from any training seed


@dataclass
class GradedBatch(Batch):
    """A batch whose rows have a grade: how hard they are."""

    grade: Tensor  # [B] int64


def by_grade(name: str, right: Tensor, batch: Batch) -> dict[str, float]:
    """{"name_k": share of right answers among the rows of grade k}. right: [B] bool, or shares."""
    assert isinstance(batch, GradedBatch), "all batches of such a task are"
    grades = batch.grade.unique().tolist()
    return {f"{name}_{k}": float(right[batch.grade == k].double().mean()) for k in grades}


class Task(Protocol):
    """Data, loss mask and metric of a task."""

    vocab_size: int
    fingerprint: str  # equal if and only if tasks have the same rows for the same (seed, position)
    generated: bool = True  # else its rows come from a file, and there are only so many

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows position..position+rows-1: a pure function of (seed, row), however they are
        grouped.
        """

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows, drawn independently of the training rows. The smallest problems are few, so
        some may occur in both; held-out ones (`kept`) never do.
        """

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Shares of right answers: by depth, as {"KIND_k": share} with a KIND of
        `pretrain.logged.DEPTHS`; or by other names, the strictest first. A study judges the
        deepest, or else the strictest. best: [B, T] int64, the most likely token at scored
        positions.
        """

    def held_out_batches(self, rows: int, n: int) -> list[Batch]:
        """The `n` batches of `rows` test rows that a run is evaluated on; fewer if a file has no
        more.
        """
        return [self.test(TEST_SEED + i, rows) for i in range(n)]

    def describe(self, rows: int) -> list[str]:
        """What a run of so many rows reads of a file; nothing is to be said of generated ones."""
        return []


class DeepTask(Task, Protocol):
    """A task with rows of several depths, which a curriculum can introduce gradually."""

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows of all depths."""
        return self.sample_up_to(seed, position, rows, 1.0)

    def sample_up_to(self, seed: int, position: int, rows: int, share: float) -> Batch:
        """Training rows up to a share of the full depth; 1: like `sample`."""


def depth_at(share: float, deepest: int) -> int:
    """A share of the deepest, at least 1 unless the deepest is 0."""
    return min(deepest, max(1, math.ceil(share * deepest)))


def check_context(name: str, context: int, window: int) -> None:
    """A window that holds context and answers would neither be slept on nor be evicted before it is
    asked about.
    """
    if context < 1 or context % window:
        fit = max(1, -(-context // window)) * window
        raise UserError(
            f"{name} is {context} tokens, which is not a multiple of sleep.window = {window}: a "
            f"context window must carry no target; set it to {fit}, or choose another window"
        )


class Asked(NamedTuple):
    """A context, a question about it, and the answer with EOS, each as tokens."""

    context: Sequence[int] | NDArray[np.integer]
    question: Sequence[int] | NDArray[np.integer]
    answer: Sequence[int] | NDArray[np.integer]


def lay_out(rows: Sequence[Asked], context: int, answer: int, pad: int, window: int) -> Batch:
    """Rows of left-padded contexts of `context` tokens; of `answer` tokens for what follows.

    PAD PAD context ...          nothing scored
    question answer EOS PAD      scored: the answer and EOS, which is no input
    """
    shape = len(rows), context + answer
    tokens, targets = np.full(shape, pad), np.full(shape, IGNORE)
    valid = np.zeros(shape, dtype=np.bool_)
    for row, asked in enumerate(rows):
        read = np.concatenate([asked.context, asked.question, asked.answer[:-1]])
        first = context - len(asked.context)
        tokens[row, first : first + len(read)] = read
        valid[row, first : first + len(read)] = True
        scored = context + len(asked.question) - 1
        targets[row, scored : scored + len(asked.answer)] = asked.answer
    return make_batch(tokens, targets, valid, window)


def make_batch(tokens: Ints, targets: Ints, valid: NDArray[np.bool_], window: int) -> Batch:
    """A batch of rows that are one document each. tokens, targets, valid: [B, T]."""
    B, T = tokens.shape
    starts = torch.zeros(B, -(-T // window), dtype=torch.bool)
    starts[:, 0] = True
    arrays = (torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(valid))
    return Batch(*arrays, starts=starts, carries=torch.zeros(B, dtype=torch.bool))
