"""Math stories: many quantities, of which a few are needed for the answer, a number.

GSM-Infinite, section 4 of "Do Language Models Need Sleep?" (arXiv 2605.26099): question first, no
chain of thought.

    PAD PAD What is the total ...? The number of ... equals ...   left-padded; nothing scored
    Answer: 12 EOS                                                scored: the number and EOS

The records come from a .jsonl file in the public format, or from `story_writer.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.config.schema import StoriesConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError, storage_error
from pretrain.files import parse_record, read_whole, sha256
from pretrain.tasks.counter import Rows
from pretrain.tasks.story_writer import LARGEST, MAX_NOISE, MAX_OPS, write_story
from pretrain.tasks.task import (
    Asked,
    DeepTask,
    GradedBatch,
    by_grade,
    check_context,
    depth_at,
    lay_out,
)
from tokenizer import TokenizerError
from tokenizer.encode import Tokenizer

_ANSWER = re.compile(r"Answer: (-?\d+)\.\s*$")
# approximate tokens per sentence: how much noise to try; what does not fit is dropped
_SENTENCE = 20
_HELD_OUT = 10  # one problem in so many, by op, is held out for the test


class Record(NamedTuple):
    """One story as tokens."""

    context: list[int]
    answer: list[int]
    op: int


class Stories(DeepTask):
    """Stories with op uniform over min_ops..max_ops, or over the ops in that range that the file
    has.
    """

    def __init__(self, config: StoriesConfig, window: int, tokenizer: Tokenizer) -> None:
        self.config, self.window, self.tokenizer = config, window, tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.prompt = tokenizer.encode("Answer:")
        check_context("stories.context", config.context, window)
        anywhere = replace(config, path="")  # the file may be moved, but not changed
        self.fingerprint = f"{anywhere} window={window} tokenizer={tokenizer.fingerprint}"
        # a file's records by op; empty: stories are written on demand
        self.train: dict[int, list[Record]] = {}
        self.held_out: dict[int, list[Record]] = {}
        if config.path:
            records = list(self._read(Path(config.path)))
            self.train, self.held_out = _split(records, config.path)
            longest = max(len(r.answer) for r in records)
            self.fingerprint += f" file={sha256(Path(config.path))}"
        else:
            if config.max_ops > MAX_OPS:
                raise UserError(
                    f"stories.max_ops = {config.max_ops}: the built-in stories have at most "
                    f"{MAX_OPS}; lower it, or set stories.path"
                )
            longest = max(len(self._answer(str(n))) for n in range(LARGEST + 1))
        self.answer_tokens = len(self.prompt) + longest - 1
        if self.answer_tokens > window:
            raise UserError(
                f"sleep.window = {window} does not hold an answer; "
                f"set it to {self.answer_tokens} or more"
            )

    def sample_up_to(self, seed: int, position: int, rows: int, share: float) -> Batch:
        """Training rows: op uniform over a share of the ops, the smallest; then a story of it."""
        draw = Rows(seed, "stories", position, rows)
        ops = list(self.train) or list(range(self.config.min_ops, self.config.max_ops + 1))
        ops = sorted(ops)[: depth_at(share, len(ops))] if share < 1 else ops
        chosen = [ops[i] for i in draw.below("op", 1, len(ops))[:, 0].tolist()]
        return self._write(
            [self._draw(r, op, self.train) for r, op in zip(draw.generators(), chosen, strict=True)]
        )

    def test(self, seed: int, rows: int) -> GradedBatch:
        """Test rows that cycle through the ops: a file's held-out records, or newly written
        ones.
        """
        ops = list(self.held_out) or list(range(self.config.min_ops, self.config.max_ops + 1))
        if rows < len(ops):
            raise UserError(
                f"{rows} test rows cannot cover each op of {ops}; set train.batch to {len(ops)}"
            )
        random = Rows(seed, "stories test", 0, rows).generators()
        return self._write(
            [self._draw(r, ops[i % len(ops)], self.held_out) for i, r in enumerate(random)]
        )

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Share of stories answered exactly: {"exact": of all, "op_k": of those with op k}. best:
        [B, T] int64.
        """
        right = ((best == batch.targets) | (batch.targets == IGNORE)).all(dim=1)
        return {"exact": float(right.double().mean()), **by_grade("op", right, batch)}

    def _write(self, records: list[Record]) -> GradedBatch:
        rows = [Asked(r.context, self.prompt, r.answer) for r in records]
        batch = lay_out(
            rows, self.config.context, self.answer_tokens, self.tokenizer.pad, self.window
        )
        return GradedBatch(**vars(batch), grade=torch.tensor([r.op for r in records]))

    def _draw(self, random: Random, op: int, file: dict[int, list[Record]]) -> Record:
        if file:
            return random.choice(file[op])
        noise = random.randint(0, min(MAX_NOISE, self.config.context // _SENTENCE))
        story = write_story(random, op, noise)
        while True:
            told = story.record(noise)
            context = self.tokenizer.encode(self._text(str(told["question"]), str(told["problem"])))
            if len(context) <= self.config.context:
                found = _ANSWER.search(str(told["solution"]))
                assert found, "the writer ends a solution with its answer"
                return Record(context, self._answer(found[1]), op)
            if not noise:
                raise UserError(
                    f"stories.context = {self.config.context} does not hold a story of {op} ops, "
                    f"which is {len(context)} tokens without any noise; "
                    "raise it or lower stories.max_ops"
                )
            noise //= 2

    def _text(self, question: str, problem: str) -> str:
        order = (question, problem) if self.config.question_first else (problem, question)
        return " ".join(part.strip() for part in order)

    def _answer(self, number: str) -> list[int]:
        return self.tokenizer.encode(f" {number}") + [self.tokenizer.eos]

    def _read(self, path: Path) -> Iterator[Record]:
        """A file's records within min_ops..max_ops; UserError names a line that is not such a
        record.
        """
        low, high = self.config.min_ops, self.config.max_ops
        try:
            lines = read_whole(path).decode().removesuffix("\n").split("\n")
        except OSError as error:
            raise storage_error(error)(
                f"{path}: cannot read the stories: {error.strerror}; correct stories.path"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: not UTF-8 at byte {error.start}; convert it to UTF-8"
            ) from None
        found = False
        for number, line in enumerate(lines, start=1):
            question, problem, answer, op = _parse(line, f"{path}:{number}")
            if not low <= op <= high:
                continue
            found = True
            try:
                context = self.tokenizer.encode(self._text(question, problem))
            except TokenizerError as error:  # JSON can escape lone surrogates
                raise UserError(f"{path}:{number}: {error}") from None
            if len(context) > self.config.context:
                raise UserError(
                    f"{path}:{number}: {len(context)} tokens do not fit stories.context = "
                    f"{self.config.context}; raise it, or leave the record out"
                )
            yield Record(context, self._answer(answer), op)
        if not found:
            raise UserError(
                f"{path}: no story has stories.min_ops = {low} to stories.max_ops = {high} ops"
            )


def _parse(line: str, where: str) -> tuple[str, str, str, int]:
    """(question, problem, answer, op) of one line."""
    record = parse_record(line, where)
    for key in ("question", "problem", "solution"):
        if not isinstance(record.get(key), str):
            raise UserError(
                f"{where}: {key!r} is missing or not a string; see the GSM-Infinite format"
            )
    if type(record.get("op")) is not int:
        raise UserError(f"{where}: 'op' is missing or not an integer; see the GSM-Infinite format")
    answer = _ANSWER.search(record["solution"])
    if not answer:
        raise UserError(
            f"{where}: the solution does not end in 'Answer: <integer>.'; "
            "see the GSM-Infinite format"
        )
    return record["question"], record["problem"], answer[1], record["op"]


Split = dict[int, list[Record]]


def _split(records: list[Record], path: str) -> tuple[Split, Split]:
    """Training and held-out records by op. Which problems are held out depends only on a hash of
    their text.
    """
    train: Split = {}
    held_out: Split = {}
    by_op: dict[int, dict[bytes, list[Record]]] = {}
    for record in records:
        problem = hashlib.sha256(str(record.context).encode()).digest()
        by_op.setdefault(record.op, {}).setdefault(problem, []).append(record)
    for op, problems in sorted(by_op.items()):
        if len(problems) < 2:
            raise UserError(
                f"{path}: only one story has op {op}, which cannot be both trained on and held out"
            )
        order = sorted(problems)
        count = max(1, len(order) // _HELD_OUT)
        held_out[op] = [r for key in order[:count] for r in problems[key]]
        train[op] = [r for key in order[count:] for r in problems[key]]
    return train, held_out
