"""Recall: in real text, numbers are given to names, and names to names; then one is asked for.

Needle in a haystack and variable tracking in the manner of RULER (Hsieh et al., arXiv 2404.06654),
in the running Python's own documentation (`pydoc_data.topics`), which every installation has.

    ... text. VAR KQX = 417. text ... VAR ABC = KQX. text ...    left-padded; nothing scored
    VAR ABC = 417 EOS                                            scored: the number and EOS

A chain of k hops passes a number on through k names, in the order of the text. k = 0 is the needle.
"""

from __future__ import annotations

import re
from functools import cached_property
from random import Random

import numpy as np
import torch
from torch import Tensor

from pretrain.config.schema import RecallConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.counter import Rows
from pretrain.tasks.task import GradedBatch, by_grade, check_context, depth_at, make_batch
from tokenizer.encode import Tokenizer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAME_LETTERS = 3
LARGEST = 999
_SENTENCE = re.compile(r"(?<=[.:!?])\s+")


class Recall:
    """`chains` chains of max_hops hops in `context` tokens of text, one of them asked for."""

    def __init__(self, config: RecallConfig, window: int, tokenizer: Tokenizer) -> None:
        self.config, self.window, self.tokenizer = config, window, tokenizer
        self.vocab_size = tokenizer.vocab_size
        # the text is that of one Python: another one's would be other rows
        self.fingerprint = (
            f"{config} window={window} tokenizer={tokenizer.fingerprint} text={len(self.text)}"
        )
        self.test_hops = [0, *(2**i for i in range(config.max_hops.bit_length()))]
        check_context("recall.context", config.context, window)
        self.question_tokens = len(tokenizer.encode("VAR QXZ =")) + 3 * NAME_LETTERS + 8
        if self.question_tokens > window:
            raise UserError(
                f"sleep.window = {window} does not hold a question; set it to "
                f"{self.question_tokens} or more"
            )

    @cached_property
    def text(self) -> list[str]:
        """The haystack, sentence by sentence."""
        from pydoc_data.topics import topics

        prose = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
        return [sentence for sentence in _SENTENCE.split(prose) if sentence]

    @cached_property
    def lengths(self) -> list[int]:
        """Of its sentences, in tokens."""
        return [len(self.tokenizer.encode(sentence)) for sentence in self.text]

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: k uniform in 0..max_hops."""
        return self.sample_up_to(seed, position, rows, 1.0)

    def sample_up_to(self, seed: int, position: int, rows: int, share: float) -> Batch:
        """The same with k up to a share of max_hops."""
        draw, deepest = Rows(seed, "recall", position, rows), self.config.max_hops
        most = min(depth_at(share, deepest), deepest)  # 0: needles alone
        hops = draw.below("hops", 1, most + 1)[:, 0].tolist()
        return self._write(draw.generators(), hops)

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows that go through 0 and the powers of two in turn."""
        if rows < len(self.test_hops):
            raise UserError(
                f"{rows} test rows do not hold one of each hop count of {self.test_hops}; "
                f"set train.batch to {len(self.test_hops)}"
            )
        hops = np.resize(self.test_hops, rows).tolist()
        return self._write(Rows(seed, "recall test", 0, rows).generators(), hops)

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Share of numbers right, {"hops_k": by hops}. best: [B, T] int64."""
        right = ((best == batch.targets) | (batch.targets == IGNORE)).all(dim=1)
        return by_grade("hops", right, batch)

    def _write(self, generators: list[Random], hops: list[int]) -> GradedBatch:
        c, tokenizer = self.config, self.tokenizer
        shape = len(hops), c.context + self.question_tokens
        tokens, targets = np.full(shape, tokenizer.pad), np.full(shape, IGNORE)
        valid = np.zeros(shape, dtype=np.bool_)
        for row, (random, k) in enumerate(zip(generators, hops, strict=True)):
            statements, name, number = self._draw(random, k)
            context = self._hide(random, statements)
            question = tokenizer.encode(f"VAR {name} =")
            answer = [*tokenizer.encode(f" {number}"), tokenizer.eos]
            read = [*context, *question, *answer[:-1]]
            first, said = c.context - len(context), c.context + len(question) - 1
            tokens[row, first : first + len(read)] = read
            valid[row, first : first + len(read)] = True
            targets[row, said : said + len(answer)] = answer
        batch = make_batch(tokens, targets, valid, self.window)
        return GradedBatch(**vars(batch), grade=torch.tensor(hops))

    def _draw(self, random: Random, k: int) -> tuple[list[str], str, int]:
        """All statements in the order of the text, the name asked for, k hops on, its number."""
        c = self.config
        length = c.max_hops + 1
        names: list[str] = []
        while len(names) < c.chains * length:
            name = "".join(random.choices(LETTERS, k=NAME_LETTERS))
            if name not in names:
                names.append(name)
        numbers = random.sample(range(LARGEST // 10 + 1, LARGEST + 1), c.chains)  # of 3 digits
        chains = [names[i * length : (i + 1) * length] for i in range(c.chains)]
        told = []  # (place in the text, statement): places of a chain in order
        for chain, number in zip(chains, numbers, strict=True):
            places = sorted(random.random() for _ in chain)
            given = [str(number), *chain[:-1]]
            told += [
                (place, f"VAR {name} = {value}.")
                for place, name, value in zip(places, chain, given, strict=True)
            ]
        return [statement for _, statement in sorted(told)], chains[0][k], numbers[0]

    def _hide(self, random: Random, statements: list[str]) -> list[int]:
        """The statements between sentences of the text, as many as the context holds."""
        begin = random.randrange(len(self.text))
        budget = self.config.context - len(self.tokenizer.encode(" ".join(statements)))
        if budget < 0:
            raise UserError(
                f"recall.context = {self.config.context} does not hold {len(statements)} "
                "statements; raise it, or lower recall.chains or recall.max_hops"
            )
        sentences: list[str] = []
        for i in range(len(self.text)):
            at = (begin + i) % len(self.text)
            if self.lengths[at] <= budget:
                sentences.append(self.text[at])
                budget -= self.lengths[at]
            elif sentences:
                break
        while True:  # joined, they may be a few tokens longer
            keyed = [(random.random(), s) for s in sentences]
            places = sorted(random.random() for _ in statements)
            keyed += list(zip(places, statements, strict=True))
            tokens = self.tokenizer.encode(" ".join(text for _, text in sorted(keyed)))
            if len(tokens) <= self.config.context or not sentences:
                return tokens[-self.config.context :]
            sentences.pop()
