"""Which consecutive blocks each pipeline stage holds, and how to balance the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage of P. Block b of the model is on stage s if bounds[s] <= b < bounds[s + 1]."""

    index: int
    bounds: tuple[int, ...]  # P + 1 block numbers, from 0 to the number of blocks

    @staticmethod
    def only(blocks: int) -> Stage:
        """The one stage of a model that is not split."""
        return Stage(0, (0, blocks))

    @property
    def is_first(self) -> bool:
        """Whether the embedding is here."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether the head is here."""
        return self.index == len(self.bounds) - 2

    @property
    def blocks(self) -> range:
        """The model's blocks that are here, by their numbers in the model."""
        return range(self.bounds[self.index], self.bounds[self.index + 1])

    def local(self, begin: int, end: int) -> slice:
        """Those of the model's blocks begin..end-1 that are here, as a slice of this stage's."""
        first, last = self.blocks.start, self.blocks.stop
        return slice(min(max(begin, first), last) - first, max(min(end, last), first) - first)

    def of(self, block: int) -> int:
        """The stage that holds a block."""
        return next(s for s in range(len(self.bounds) - 1) if block < self.bounds[s + 1])


def balanced(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Bounds of `stages` runs of consecutive blocks that minimise the cost of the dearest stage.

    Among equals, the ones with the fewest blocks on the first stages.

    Args:
        costs: of each block; the first one's includes the embedding, the last one's the head.
    Raises:
        ValueError: there are fewer blocks than stages.
    """
    if stages > len(costs):
        raise ValueError(f"{len(costs)} blocks cannot fill {stages} stages")
    # best[b]: (dearest stage, bounds) of blocks 0..b-1 split over the stages so far
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        b: (sum(costs[:b]), (0, b)) for b in range(1, len(costs) + 1)
    }
    for _ in range(stages - 1):
        best = {
            b: min((max(best[a][0], sum(costs[a:b])), (*best[a][1], b)) for a in best if a < b)
            for b in range(min(best) + 1, len(costs) + 1)
        }
    return best[len(costs)][1]
