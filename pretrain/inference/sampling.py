"""Which token comes next: from logits to a choice, by the settings that users know.

In vLLM's order: biases, penalties, temperature; then top-k, top-p, min-p, as in transformers. The
n-th draw is a pure function of (seed, n), so a sampler has no other state, and a session that is
saved, restored or moved goes on with the draws that it would have made.
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
    """How tokens are chosen. UserError names a setting that is out of its bounds."""

    temperature: float = 1.0  # 0: always the likeliest
    top_p: float = 1.0  # of the likeliest tokens that together have this probability
    top_k: int = 0  # of so many likeliest; 0: of all
    min_p: float = 0.0  # of those at least this times as likely as the likeliest
    # Logits of tokens that were read are divided by it where positive, multiplied where negative.
    repetition_penalty: float = 1.0
    # Taken off the logits of tokens that the answer has: once, and for each time it has them.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Sequence[tuple[int, float]] = ()  # tokens, and what is added to their logits
    seed: int = 0
    # So many of the likeliest tokens are told beside the one that is chosen; None: nor is its own.
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
    """A token, and what the model said of it: before any of the settings."""

    token: int
    logprob: float | None  # if it was asked for
    top: list[tuple[int, float]]  # the likeliest tokens and theirs, if they were asked for


class Sampler:
    """Chooses one session's tokens.

    Args:
        vocab_size: ids the tokenizer has, where the model's vocabulary is padded beyond them.
        drawn: draws made so far.
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
            said: how often the answer has each token that it has. barred: those it may not be.
        """
        logits = logits[: self.vocab_size].double().cpu()
        return self._told(self._draw(self.adjusted(logits, seen, said or {}, barred)), logits)

    def told(self, tokens: Sequence[int], logits: Tensor) -> list[Choice]:
        """What the model says of tokens that are not its choice.

        Args:
            tokens: T of them. logits: [T, vocabulary], each row from before its token.
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
        """Logits with biases and penalties, and none of what is barred."""
        s = self.sampling
        if s.logit_bias:
            logits = _added(logits, dict(s.logit_bias))
        if (penalty := s.repetition_penalty) != 1:
            reduced = torch.where(logits > 0, logits / penalty, logits * penalty)
            # what overflows is as it can be written: of two infinities there is no difference
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
        """Of each token, [vocabulary]; not of sum 1 where some are left out."""
        k = self.sampling.top_k
        if not 0 < k < len(logits):
            return self._among(logits)
        kept = logits >= logits.topk(k).values[-1]  # few, in the order of the vocabulary
        return torch.zeros_like(logits).masked_scatter(kept, self._among(logits[kept]))

    def _among(self, logits: Tensor) -> Tensor:
        """The chances of tokens that top_k has left."""
        s = self.sampling
        # from the largest, for the least temperature would make them infinite
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
    """Without those beyond the fewest that have a share of the sum; of equals the first are kept.

    The values alone are sorted, in NumPy, a tenth of the time of torch's sort with its places.
    """
    falling = torch.from_numpy(np.sort(chances.numpy())[::-1].copy())
    before = falling.cumsum(dim=0) - falling  # what is likelier than each
    count = int((before < share * falling.sum()).sum())
    least = falling[count - 1]
    equals = np.flatnonzero((chances == least).numpy())
    kept = chances.where(chances >= least, 0)
    kept[equals[count - int((chances > least).sum()) :]] = 0
    return kept
