"""Questions from a file of one's own: the context is read and slept over, then it is asked about.

PAD PAD context ...          whole windows, left-padded; nothing scored
question answer EOS PAD      scored: the answer and EOS

The layout is that of the paper's own task of this kind, stories: "Do Language Models Need Sleep?"
(arXiv 2605.26099), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.config.schema import QuestionsConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.data.order import key, permute, round_keys
from pretrain.errors import UserError
from pretrain.files import sha256
from pretrain.tasks.counter import Rows
from pretrain.tasks.question_file import Question, answer_width, read_questions, split_questions
from pretrain.tasks.task import Asked, GradedBatch, Task, check_context, lay_out
from tokenizer.encode import Tokenizer

MAX_GROUPS = 100


class Questions(Task):
    """The questions of one or two files; each is read once per epoch, in another order each time.

    Files are read when they are first needed: an evaluation with questions.heldout reads only that.
    """

    generated = False

    def __init__(self, config: QuestionsConfig, window: int, tokenizer: Tokenizer) -> None:
        self.config, self.window, self.tokenizer = config, window, tokenizer
        self.vocab_size = tokenizer.vocab_size
        check_context("questions.context", config.context, window)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # of a file that may not be needed
        """Of what is trained on; the file may be moved."""
        c = self.config
        return (
            f"questions context={c.context} answer={c.answer} window={self.window} "
            f"tokenizer={self.tokenizer.fingerprint} file={sha256(Path(c.path))} "
            f"held_out={'elsewhere' if c.heldout else 'of it'}"
        )

    @cached_property
    def train(self) -> list[Question]:
        """The questions to train on."""
        return self._read(self.config.path) if self.config.heldout else self._split[0]

    @cached_property
    def held_out(self) -> list[Question]:
        """The held-out questions, in one shuffled order."""
        found = self._read(self.config.heldout) if self.config.heldout else self._split[1]
        order = permute(np.arange(len(found)), np.array(len(found)), round_keys(key("held out")))
        return [found[i] for i in order.tolist()]

    @cached_property
    def groups(self) -> list[str]:
        """The names of the held-out questions' groups, numbers first and in their order."""
        groups = sorted(
            {question.group for question in self.held_out},
            key=lambda name: (int(name) if name.isdecimal() else math.inf, name),
        )
        if len(groups) > MAX_GROUPS:
            raise UserError(
                f'questions.group = "{self.config.group}": has {len(groups)} different values, '
                f"at most {MAX_GROUPS} can be told apart; name another field"
            )
        return groups

    def describe(self, rows: int) -> list[str]:
        """What a run of so many rows reads; for its start."""
        n = len(self.train)
        context, answer = (
            float(np.mean([width(q) for q in self.train]))
            for width in (lambda q: len(q.context), answer_width)
        )
        filled = (context + answer) / (self.config.context + self.config.answer)
        epochs = f"{float(f'{rows / n:.2g}'):,g}"  # 530, not 5.3e+02
        return [
            f"{n:,} questions to train on, {epochs} epochs; {len(self.held_out):,} held out",
            f"on average a context has {context:.0f} of {self.config.context} tokens, a question "
            f"with its answer {answer:.0f} of {self.config.answer}: {1 - filled:.0%} is PAD",
        ]

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: epoch after epoch, each in its own order."""
        n = len(self.train)
        epochs, places = np.divmod(np.arange(position, position + rows), n)
        keys = np.array([round_keys(key(seed, "questions", epoch)) for epoch in epochs.tolist()])
        return self._write([self.train[i] for i in permute(places, np.array(n), keys).tolist()])

    def test(self, seed: int, rows: int) -> Batch:
        """Held-out questions, drawn at random; `held_out_batches` has each of them once."""
        drawn = Rows(seed, "questions test", 0, rows).below("question", 1, len(self.held_out))
        return self._write([self.held_out[i] for i in drawn[:, 0].tolist()])

    def held_out_batches(self, rows: int, n: int) -> list[Batch]:
        """`n` batches of `rows` held-out questions, or fewer if there are not enough; the last is
        filled up with rows of PAD.
        """
        chosen = self.held_out[: n * rows]
        empty = np.empty(0, np.int32)
        nothing = Question(empty, empty, empty, group="")
        chosen += [nothing] * (-len(chosen) % rows)
        return [self._write(chosen[at : at + rows]) for at in range(0, len(chosen), rows)]

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Share of answers that are right to the last token: {"exact": of all, "FIELD_VALUE": of
        one group}. best: [B, T] int64.
        """
        assert isinstance(batch, GradedBatch), "all batches of this task are"
        scored = batch.targets != IGNORE
        judged = scored.any(dim=1)
        right = ((best == batch.targets) | ~scored).all(dim=1)[judged].double()
        grade = batch.grade[judged]
        of_groups = {
            f"{self.config.group}_{self.groups[i]}": float(right[grade == i].mean())
            for i in grade.unique().tolist()
            if self.config.group
        }
        return {"exact": float(right.mean()), **of_groups}

    @cached_property
    def _split(self) -> tuple[list[Question], list[Question]]:
        path = self.config.path
        return split_questions(self._read(path), Path(path))

    def _read(self, path: str) -> list[Question]:
        return read_questions(Path(path), self.config, self.tokenizer)

    def _write(self, questions: Sequence[Question]) -> Batch:
        c = self.config
        rows = [Asked(*question[:3]) for question in questions]
        batch = lay_out(rows, c.context, c.answer, self.tokenizer.pad, self.window)
        grade = [self.groups.index(q.group) if q.group in self.groups else 0 for q in questions]
        return GradedBatch(**vars(batch), grade=torch.tensor(grade))
