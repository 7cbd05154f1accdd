"""What each corpus of a mixture really contributes to a run, computed from the order of draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.index import Shard, find_split, read_index
from pretrain.data.order import drawn_before, quotas, token_shares
from pretrain.data.store import Place

STRETCHES, STRETCH = 64, 4096  # lengths are estimated from so many stretches of so many documents


@dataclass
class CorpusShare:
    """One corpus's part in a run."""

    asked: float  # its weight as a share of all weights
    given: float  # its share of the tokens that are read
    documents: int  # how many are drawn from it
    epochs: float  # how often it is read in full

    def __str__(self) -> str:
        return (
            f"about {percent(self.given)} of the tokens ({percent(self.asked)} asked for), "
            f"about {self.documents:,} documents, {self.epochs:,.2f} epochs"
        )


def percent(share: float) -> str:
    """A share with two or three digits, as it is an estimate."""
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def corpus_shares(
    sizes: Sequence[int],
    mean_tokens: Sequence[float],
    weights: Sequence[float],
    tokens: float,
    mean_places: Sequence[float] | None = None,
) -> list[CorpusShare]:
    """The share of each corpus in a run of `tokens` tokens, including PAD.

    Args:
        sizes: documents in each corpus. mean_tokens: of a document, with its EOS.
        mean_places: mean positions that a document takes, with the PAD after it; None: mean_tokens.
    """
    shares = token_shares(weights, mean_tokens)
    per_draw = sum(s * p for s, p in zip(shares, mean_places or mean_tokens, strict=True))
    drawn = drawn_before(round(tokens / per_draw), quotas(shares))
    read = [count * mean for count, mean in zip(drawn, mean_tokens, strict=True)]
    return [
        CorpusShare(weight / sum(weights), mine / max(sum(read), 1), count, count / size)
        for weight, mine, count, size in zip(weights, read, drawn, sizes, strict=True)
    ]


def mixture(
    paths: Sequence[str | Place], weights: Sequence[float], tokens: float
) -> list[CorpusShare]:
    """The share of each prepared corpus in a run on `tokens` tokens of documents without PAD."""
    indexes = [read_index(find_split(path, "train")) for path in paths]
    sizes = [index.samples for index in indexes]
    return corpus_shares(sizes, [index.mean_tokens for index in indexes], weights, tokens)


def mean_places(lengths: NDArray[np.uint32], window: int, windows: int) -> float:
    """Mean positions that a document takes with data.documents = "isolate", PAD included.

    A document that fills whole windows needs one more for its EOS, unless its row ends there too.
    In a large corpus this is estimated from a sample.
    """
    lengths = _some(lengths)
    whole = (lengths % window == 0).mean()
    return float((lengths // window + 1).mean() - whole / windows) * window


def longest_over(lengths: NDArray[np.uint32], shards: Sequence[Shard], tokens: int) -> int:
    """Tokens of the longest document, if there are more than `tokens`; else 0.

    No lengths are read if no shard has so many tokens. Otherwise, in a large corpus, only those of
    a sample are.
    """
    if max(shard.tokens for shard in shards) <= tokens:
        return 0
    longest = int(_some(lengths).max())
    return longest if longest > tokens else 0


def _some(lengths: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """All lengths; in a large corpus, a sample from all parts of it."""
    if len(lengths) <= STRETCHES * STRETCH:
        return lengths
    firsts = np.linspace(0, len(lengths) - STRETCH, STRETCHES, dtype=np.int64)
    return np.concatenate([lengths[first : first + STRETCH] for first in firsts])
