"""S5: read a word of permutations, then say what they come to, one after the other.

The word problem of the symmetric group (Merrill et al., "The Illusion of State in State-Space
Models", arXiv 2404.08819): of five symbols and more it needs depth that grows with the word, or a
state whose transition has negative eigenvalues (model.delta_negative_eigenvalues).

    g1 g2 g3 ... gn        elements of the group, one token each; nothing scored
    [of n] ... [of 2] [of 1]   predicts the product of the first n, ..., 2, 1: no answer is read

Short words of a small group are few enough to be learned by heart (1,296 words of four in S3): one
ending in eight is kept for the test, so that no word that is tested has been read.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from torch import Tensor

from pretrain.config.schema import S5Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.tasks.counter import Ints, Rows
from pretrain.tasks.task import check_context, make_batch


class S5:
    """The word problem of the group of all permutations of `symbols` symbols."""

    ENDINGS = 1 << 16  # at most so many are told apart
    KEPT = 8  # one in so many is kept for the test

    def __init__(self, config: S5Config, window: int) -> None:
        self.config, self.window = config, window
        self.elements = np.array(list(permutations(range(config.symbols))))  # [G, symbols]
        weights = config.symbols ** np.arange(config.symbols)
        self._number = np.zeros(config.symbols**config.symbols, dtype=np.int64)
        self._number[self.elements @ weights] = np.arange(len(self.elements))
        self._weights = weights
        powers = [2**i for i in range(config.length.bit_length())]
        self.asked = sorted({*powers, config.length}, reverse=True)  # words, the longest first
        self._ending, self._endings = 0, 1  # its elements; how many there are
        while self._ending < config.length and self._endings * len(self.elements) <= self.ENDINGS:
            self._ending, self._endings = self._ending + 1, self._endings * len(self.elements)
        self.vocab_size = len(self.elements) + len(self.asked)
        self.fingerprint = f"{config} window={window} kept={self.KEPT}"
        check_context("s5.length", config.length, window)

    def sample(self, seed: int, position: int, rows: int) -> Batch:
        """Training rows: every word whose ending is not kept is equally likely."""
        draw, tested = Rows(seed, "s5", position, rows), -(-self._endings // self.KEPT)
        index = draw.below("ending", 1, self._endings - tested)
        return self._write(draw, index + index // (self.KEPT - 1) + 1)

    def test(self, seed: int, rows: int) -> Batch:
        """Test rows: words with the endings that are kept, multiples of KEPT."""
        draw, tested = Rows(seed, "s5 test", 0, rows), -(-self._endings // self.KEPT)
        return self._write(draw, draw.below("ending", 1, tested) * self.KEPT)

    def score(self, best: Tensor, batch: Batch) -> dict[str, float]:
        """{"length_n": share of right products of n elements}. best: [B, T] int64."""
        right = (best == batch.targets)[:, self.config.length :].double().mean(dim=0)
        by_length = zip(self.asked, right.tolist(), strict=True)
        return {f"length_{n}": share for n, share in sorted(by_length)}

    def _write(self, draw: Rows, ending: Ints) -> Batch:
        """ending: [B, 1], its number."""
        length, G = self.config.length, len(self.elements)
        word = draw.below("word", length, G)  # [B, length]
        word[:, length - self._ending :] = ending // G ** np.arange(self._ending)[::-1] % G
        B = len(word)
        products = np.empty_like(word)
        state = np.tile(np.arange(self.config.symbols), (B, 1))  # where each symbol is now
        for i in range(length):
            state = np.take_along_axis(self.elements[word[:, i]], state, axis=1)
            products[:, i] = self._number[state @ self._weights]
        questions = np.tile(G + np.arange(len(self.asked)), (B, 1))
        tokens = np.concatenate([word, questions], axis=1)
        answers = products[:, np.array(self.asked) - 1]
        targets = np.concatenate([np.full(word.shape, IGNORE), answers], axis=1)
        return make_batch(tokens, targets, np.ones(tokens.shape, dtype=np.bool_), self.window)
