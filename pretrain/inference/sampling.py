"""Sampling: from logits to the next token, with the usual settings.

The order is vLLM's: biases, penalties, temperature; then top-k, top-p, min-p, as in transformers.
The n-th draw is a pure function of (seed, n), so a sampler has no other state, and a session that
is saved, restored or moved continues with the draws that it would have made.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.splitmix import mix, splitmix64
from pretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. UserError names a setting that is out of bounds."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # only the most likely tokens that together have this probability
    top_k: int = 0  # only so many most likely tokens; 0: all
    min_p: float = 0.0  # only tokens at least this times as likely as the most likely one
    # Logits of tokens that were read are divided by it if positive, multiplied if negative.
    repetition_penalty: float = 1.0
    # Subtracted from the logits of tokens in the answer: once, and once per occurrence.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Sequence[tuple[int, float]] = ()  # tokens, and what is added to their logits
    seed: int = 0
    # Report log-probabilities: of the chosen token and so many most likely ones; None: of none.
    logprobs: int | None = None

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[bool, str]] = {
            "temperature": (0 <= self.temperature < math.inf, "a number from 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "a whole number from 0"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a number above 0"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a number"),
            "logit_bias": (all(math.isfinite(b) for _, b in self.logit_bias), "numbers"),
            "seed": (0 <= self.seed < 1 << 63, "from 0 to 2^63 - 1"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "a whole number from 0"),
        }
        for name, (holds, what) in bounds.items():
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)}: must be {what}")


class Choice(NamedTuple):
    """A token, and the model's log-probabilities: before any of the settings."""

    token: int
    logprob: float | None  # if requested
    top: list[tuple[int, float]]  # the most likely tokens and their log-probabilities, if requested


class Sampler:
    """Chooses one session's tokens.

    Args:
        vocab_size: the tokenizer's; the model's vocabulary may be padded beyond it.
        drawn: how many draws were made so far.
    """

    def __init__(self, sampling: Sampling, vocab_size: int | None = None, drawn: int = 0) -> None:
        self.sampling, self.vocab_size, self.drawn = sampling, vocab_size, drawn

    def choose(
        self,
        logits: Tensor,
        seen: NDArray[np.bool_],
        said: Mapping[int, int] | None = None,
        barred: Collection[int] = (),
    ) -> Choice:
        """The next token.

        Args:
            logits: [vocabulary]. seen: [vocabulary], the tokens read so far.
            said: how often each token occurs in the answer. barred: tokens that must not be chosen.
        """
        logits = logits[: self.vocab_size].double().cpu()
        return self._told(self._draw(self.adjusted(logits, seen, said or {}, barred)), logits)

    def told(self, tokens: Sequence[int], logits: Tensor) -> list[Choice]:
        """The model's log-probabilities of given tokens.

        Args:
            tokens: T of them. logits: [T, vocabulary], in each row those before its token.
        """
        rows = (row[: self.vocab_size].double() for row in logits.cpu())
        return [self._told(token, row) for token, row in zip(tokens, rows, strict=True)]

    def _told(self, token: int, logits: Tensor) -> Choice:
        if self.sampling.logprobs is None:
            return Choice(token, None, [])
        said = torch.log_softmax(logits, dim=0)
        top = said.topk(min(self.sampling.logprobs, len(said)))
        alternatives = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return Choice(token, float(said[token]), alternatives)

    def adjusted(
        self,
        logits: Tensor,
        seen: NDArray[np.bool_],
        said: Mapping[int, int],
        barred: Collection[int] = (),
    ) -> Tensor:
        """Logits with biases and penalties applied, and without barred tokens."""
        s = self.sampling
        if s.logit_bias:
            logits = _added(logits, dict(s.logit_bias))
        if (penalty := s.repetition_penalty) != 1:
            reduced = torch.where(logits > 0, logits / penalty, logits * penalty)
            # clamp what overflows: a difference of two infinities would be nan
            reduced = reduced.clamp(-sys.float_info.max, sys.float_info.max)
            logits = torch.where(torch.from_numpy(seen[: len(logits)]), reduced, logits)
        if said and (s.presence_penalty or s.frequency_penalty):
            off = {t: -s.presence_penalty - s.frequency_penalty * n for t, n in said.items()}
            logits = _added(logits, off)
        if barred:
            logits = _added(logits, dict.fromkeys(barred, -math.inf))
        return logits

    def _draw(self, logits: Tensor) -> int:
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        chances = self.chances(logits).cumsum(dim=0)
        bits: Any = splitmix64(mix(self.sampling.seed), self.drawn)
        self.drawn += 1
        drawn = (bits >> 12) * 2.0**-52 * float(chances[-1])  # in [0, sum)
        return int(torch.searchsorted(chances, torch.tensor(drawn).double(), right=True))

    def chances(self, logits: Tensor) -> Tensor:
        """The probability of each token, [vocabulary]; not normalised if some are left out."""
        k = self.sampling.top_k
        if not 0 < k < len(logits):
            return self._among(logits)
        kept = logits >= logits.topk(k).values[-1]  # few, in the order of the vocabulary
        return torch.zeros_like(logits).masked_scatter(kept, self._among(logits[kept]))

    def _among(self, logits: Tensor) -> Tensor:
        """The probabilities of the tokens that top_k has left."""
        s = self.sampling
        # relative to the largest, since a tiny temperature would make them infinite
        chances = torch.softmax((logits - logits.max()) / s.temperature, dim=0)
        if s.top_p < 1:
            chances = _likeliest(chances, s.top_p)
        if s.min_p > 0:
            chances = chances.where(chances >= s.min_p * chances.max(), 0)
        return chances


def _added(logits: Tensor, values: Mapping[int, float]) -> Tensor:
    """Logits with something added to those of some tokens."""
    return logits.index_add(
        0, torch.tensor(list(values)), torch.tensor(list(values.values()), dtype=logits.dtype)
    )


def _likeliest(chances: Tensor, share: float) -> Tensor:
    """Keeps the fewest tokens that have this share of the sum (top-p); of equals, the first ones.

    Only the values are sorted, in NumPy: a tenth of the time of torch's sort, which returns
    indices.
    """
    falling = torch.from_numpy(np.sort(chances.numpy())[::-1].copy())
    before = falling.cumsum(dim=0) - falling  # the sum of those before each
    count = int((before < share * falling.sum()).sum())
    least = falling[count - 1]
    equals = np.flatnonzero((chances == least).numpy())
    kept = chances.where(chances >= least, 0)
    kept[equals[count - int((chances > least).sum()) :]] = 0
    return kept
