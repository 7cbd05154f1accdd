"""What each corpus really gives to a run: by the order that the run draws in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.index import Shard, find_split, read_index
from pretrain.data.order import drawn_before, quotas, token_shares
from pretrain.data.store import Place

STRETCHES, STRETCH = 64, 4096  # documents that the length of all is taken from: reading costs


@dataclass
class CorpusShare:
    """One corpus in a run of so many draws."""

    asked: float  # its weight as a share of all weights
    given: float  # its share of the tokens that are read
    documents: int  # that are drawn from it
    epochs: float  # how often all of it is gone through

    def __str__(self) -> str:
        return (
            f"about {percent(self.given)} of the tokens ({percent(self.asked)} asked for), "
            f"about {self.documents:,} documents, {self.epochs:,.2f} epochs"
        )


def percent(share: float) -> str:
    """A share in two digits or three: it is an estimate."""
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
    """The share of each corpus in a run of `tokens` tokens, PAD among them.

    Args:
        sizes: documents of each corpus. mean_tokens: of a document, with its EOS.
        mean_places: that a document takes, with the PAD behind it; as mean_tokens if there is none.
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
    """The share of each prepared corpus in a run that trains on so many tokens of them, joined."""
    indexes = [read_index(find_split(path, "train")) for path in paths]
    sizes = [index.samples for index in indexes]
    return corpus_shares(sizes, [index.mean_tokens for index in indexes], weights, tokens)


def mean_places(lengths: NDArray[np.uint32], window: int, windows: int) -> float:
    """Tokens of rows that a document takes in data.documents = "isolate", with the PAD behind it.

    A document of whole windows needs another for its EOS, but where its row ends, too. Of many
    documents, some from all over the corpus speak for all.
    """
    lengths = _some(lengths)
    whole = (lengths % window == 0).mean()
    return float((lengths // window + 1).mean() - whole / windows) * window


def longest_over(lengths: NDArray[np.uint32], shards: Sequence[Shard], tokens: int) -> int:
    """Tokens of the longest document, if it has more than so many; 0 if none has.

    No length is read where no shard holds so many. Otherwise, of many documents, only those that
    speak for all are looked at.
    """
    if max(shard.tokens for shard in shards) <= tokens:
        return 0
    longest = int(_some(lengths).max())
    return longest if longest > tokens else 0


def _some(lengths: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """All lengths, or of many some from all over the corpus."""
    if len(lengths) <= STRETCHES * STRETCH:
        return lengths
    firsts = np.linspace(0, len(lengths) - STRETCH, STRETCHES, dtype=np.int64)
    return np.concatenate([lengths[first : first + STRETCH] for first in firsts])
