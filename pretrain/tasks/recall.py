"""Recall: real text assigns numbers to names, and names to names; then some names are asked for.

Needle in a haystack and variable tracking as in RULER (Hsieh et al., arXiv 2404.06654), in the
running Python's own documentation (`pydoc_data.topics`), which every installation has.

    ... text. VAR KQX = 417. text ... VAR ABC = KQX. text ...    left-padded; nothing scored
    VAR ABC = 417 EOS                                            scored: the number and EOS

A chain of k hops passes a number on through k names, in the order of the text; k = 0 is a needle.
Several questions are about different chains, with the same k.
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
from pretrain.tasks.task import DeepTask, GradedBatch, by_grade, check_context, depth_at, make_batch
from tokenizer.encode import Tokenizer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SENTENCE = re.compile(r"(?<=[.:!?])\s+")


class Recall(DeepTask):
    """Chains of max_hops hops in `context` tokens of text; `questions` of them are asked about."""

    def __init__(self, config: RecallConfig, window: int, tokenizer: Tokenizer) -> None:
        self.config, self.window, self.tokenizer = config, window, tokenizer
        self.vocab_size = tokenizer.vocab_size
        # rows depend on the text, and so on the version of Python
        self.fingerprint = (
            f"{config} window={window} tokenizer={tokenizer.fingerprint} text={len(self.text)}"
        )
        self.test_hops = [0, *(2**i for i in range(config.max_hops.bit_length()))]
        check_context("recall.context", config.context, window)
        _check_sizes(config)
        # an upper bound: names and numbers have at most one token per character; spaces and EOS
        characters = config.name_letters + config.digits + 3
        self.asked_tokens = config.questions * (len(tokenizer.encode("VAR =")) + characters)
        if self.asked_tokens > window:
            raise UserError(
                f"sleep.window = {window} does not hold {config.questions} questions; set it to "
                f"{self.asked_tokens} or more"
            )

    @cached_property
    def text(self) -> list[str]:
        """The haystack, sentence by sentence."""
        from pydoc_data.topics import topics

        prose = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
        return [sentence for sentence in _SENTENCE.split(prose) if sentence]

    @cached_property
    def lengths(self) -> list[int]:
        """The lengths of its sentences, in tokens."""
        return [len(self.tokenizer.encode(sentence)) for sentence in self.text]

    def sample_up_to(self, seed: int, position: int, rows: int, share: float) -> Batch:
        """Training rows: k uniform in 0..share of max_hops."""
        draw, most = Rows(seed, "recall", position, rows), depth_at(share, self.config.max_hops)
        hops = draw.below("hops", 1, most + 1)[:, 0].tolist()  # 0: a needle
        return self._write(draw.generators(), hops)

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows, with k cycling through 0 and the powers of two."""
        if rows < len(self.test_hops):
            raise UserError(
                f"{rows} test rows cannot cover each hop count of {self.test_hops}; "
                f"set train.batch to {len(self.test_hops)}"
            )
        hops = np.resize(self.test_hops, rows).tolist()
        return self._write(Rows(seed, "recall test", 0, rows).generators(), hops)

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """Share of numbers right, {"hops_k": by hops}. best: [B, T] int64."""
        wrong = ((best != batch.targets) & (batch.targets != IGNORE)).cumsum(dim=1)  # so far
        ends = batch.targets == self.tokenizer.eos  # of the answers
        wrong = wrong[ends].view(len(best), self.config.questions)
        right = wrong.diff(dim=1, prepend=torch.zeros_like(wrong[:, :1])) == 0  # [B, questions]
        return by_grade("hops", right.double().mean(dim=1), batch)

    def _write(self, generators: list[Random], hops: list[int]) -> GradedBatch:
        c, tokenizer = self.config, self.tokenizer
        shape = len(hops), c.context + self.asked_tokens
        tokens, targets = np.full(shape, tokenizer.pad), np.full(shape, IGNORE)
        valid = np.zeros(shape, dtype=np.bool_)
        for row, (random, k) in enumerate(zip(generators, hops, strict=True)):
            statements, asked = self._draw(random, k)
            read = self._hide(random, statements)
            first, at = c.context - len(read), c.context
            for name, number in asked:
                question = tokenizer.encode(f"VAR {name} =")
                answer = [*tokenizer.encode(f" {number}"), tokenizer.eos]
                read += question + answer
                targets[row, at + len(question) - 1 :][: len(answer)] = answer
                at += len(question) + len(answer)
            tokens[row, first : at - 1] = read[:-1]  # the last EOS is not an input
            valid[row, first : at - 1] = True
        batch = make_batch(tokens, targets, valid, self.window)
        return GradedBatch(**vars(batch), grade=torch.tensor(hops))

    def _draw(self, random: Random, k: int) -> tuple[list[str], list[tuple[str, int]]]:
        """All statements in the order of the text; and the questions: names k hops on, with
        numbers.
        """
        c = self.config
        length = c.max_hops + 1
        names: list[str] = []
        while len(names) < c.chains * length:
            name = "".join(random.choices(LETTERS, k=c.name_letters))
            if name not in names:
                names.append(name)
        numbers = random.sample(range(10 ** (c.digits - 1), 10**c.digits), c.chains)
        chains = [names[i * length : (i + 1) * length] for i in range(c.chains)]
        told = []  # (place in the text, statement): places of a chain in order
        for chain, number in zip(chains, numbers, strict=True):
            places = sorted(random.random() for _ in chain)
            given = [str(number), *chain[:-1]]
            told += [
                (place, f"VAR {name} = {value}.")
                for place, name, value in zip(places, chain, given, strict=True)
            ]
        asked = [(chain[k], n) for chain, n in zip(chains, numbers, strict=True)]  # in any order
        return [statement for _, statement in sorted(told)], asked[: c.questions]

    def _hide(self, random: Random, statements: list[str]) -> list[int]:
        """Puts the statements between as many sentences of the text as the context holds."""
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


def _check_sizes(config: RecallConfig) -> None:
    """UserError if there are not enough names, numbers or chains."""
    names, numbers = len(LETTERS) ** config.name_letters, 9 * 10 ** (config.digits - 1)
    wanted = config.chains * (config.max_hops + 1)
    if wanted > names // 2:  # names are redrawn until they differ
        raise UserError(
            f"recall: {config.chains} chains of {config.max_hops} hops need {wanted} names, more "
            f"than half of the {names} that exist; raise recall.name_letters, or lower "
            "recall.chains"
        )
    if config.chains > numbers:
        raise UserError(
            f"recall: {config.chains} chains need as many numbers, but only {numbers} exist; "
            "raise recall.digits, or lower recall.chains"
        )
    if config.questions > config.chains:
        raise UserError(
            f"recall.questions = {config.questions}: each is about a different one of the "
            f"{config.chains} chains; lower it, or raise recall.chains"
        )
