"""S5: read a word of permutations, then give the products of its prefixes.

The word problem of the symmetric group (Merrill et al., "The Illusion of State in State-Space
Models", arXiv 2404.08819): for five or more symbols it needs depth that grows with the word, or a
state transition with negative eigenvalues (model.delta_negative_eigenvalues).

    g1 g2 g3 ... gn        elements of the group, one token each; nothing scored
    [of n] ... [of 2] [of 1]   predicts the product of the first n, ..., 2, 1: no answer is read

Every length is asked for, as in the paper, where models predict every prefix: when only powers of
two were asked for, no model here learned more than the second.

A small group has few enough words to memorise (1,296 of four letters in S3): one prefix in eight is
held out for the test, so that no training word shares that prefix with a test word.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema import S5Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.data.splitmix import mix
from pretrain.errors import UserError
from pretrain.tasks.counter import Ints, Rows
from pretrain.tasks.kept import redrawn
from pretrain.tasks.task import Task, check_context, make_batch


class S5(Task):
    """The word problem of the group of all permutations of `symbols` symbols."""

    BEGINNINGS = 1024  # prefixes are long enough that there are so many, or are whole words
    KEPT = 8  # one prefix in so many is held out for the test

    def __init__(self, config: S5Config, window: int) -> None:
        self.config, self.window = config, window
        self.elements = np.array(list(permutations(range(config.symbols))))  # [G, symbols]
        weights = config.symbols ** np.arange(config.symbols)
        self._number = np.zeros(config.symbols**config.symbols, dtype=np.int64)
        self._number[self.elements @ weights] = np.arange(len(self.elements))
        self._weights = weights
        self._letters = 1  # of a prefix
        while len(self.elements) ** self._letters < self.BEGINNINGS:
            self._letters += 1
        if self._letters > config.length:
            raise UserError(
                f"s5.length = {config.length}: there are too few words of s5.symbols = "
                f"{config.symbols} to keep some for the test; set s5.length to at least "
                f"{self._letters}"
            )
        self.vocab_size = len(self.elements) + config.length
        self.fingerprint = f"{config} window={window} kept={self.KEPT}"
        check_context("s5.length", config.length, window)

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: uniform over the words whose prefix is not held out."""
        return self._write(Rows(seed, "s5", position, rows), kept=False)

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows: words whose prefix is held out."""
        return self._write(Rows(seed, "s5 test", 0, rows), kept=True)

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """{"length_n": share of right products of n elements}. best: [B, T] int64."""
        right = (best == batch.targets)[:, self.config.length :].double().mean(dim=0)
        return {f"length_{n}": share for n, share in enumerate(reversed(right.tolist()), 1)}

    def _is_kept(self, word: Ints) -> NDArray[np.bool_]:
        """[B, length] -> [B]: whether the words' prefixes are held out."""
        powers = len(self.elements) ** np.arange(self._letters)
        number = word[:, : self._letters] @ powers
        return mix(number.astype(np.uint64)) % np.uint64(self.KEPT) == 0

    def _write(self, draw: Rows, *, kept: bool) -> Batch:
        length, G = self.config.length, len(self.elements)
        word = redrawn(  # [B, length]
            lambda again: draw.below(f"word{again}", length, G), self._is_kept, kept=kept
        )
        B = len(word)
        products = np.empty_like(word)
        state = np.tile(np.arange(self.config.symbols), (B, 1))  # where each symbol is now
        for i in range(length):
            state = np.take_along_axis(self.elements[word[:, i]], state, axis=1)
            products[:, i] = self._number[state @ self._weights]
        questions = np.tile(G + np.arange(length), (B, 1))  # the longest first
        tokens = np.concatenate([word, questions], axis=1)
        targets = np.concatenate([np.full(word.shape, IGNORE), products[:, ::-1]], axis=1)
        return make_batch(tokens, targets, np.ones(tokens.shape, dtype=np.bool_), self.window)
