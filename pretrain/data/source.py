"""What the trainer asks of a stream of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pretrain.data.batch import Batch

# Called by all ranks, with something about each of a rank's rows: that of all rows of the global
# batch, in their order. Only rank 0 is given all.
Gather = Callable[[list[Any]], list[Any]]


class BatchSource(Protocol):
    """An endless stream of batches, in which every row has a token to predict.

    Of B rows in the global batch, rank r of n gets rows r*B/n .. (r+1)*B/n - 1; the trainer sees to
    it that n divides B.
    """

    vocab_size: int
    wait_seconds: float  # how long next() has kept the trainer waiting, in all

    def next(self) -> Batch:
        """This rank's rows of the next global step."""
        ...

    def describe(self, steps: int) -> list[str]:
        """Lines to say at the start about what a run of so many steps reads."""
        ...

    def samples(self) -> Callable[[Gather], Any]:
        """Which samples made up the whole global batch of the last next().

        What is returned says it when all ranks call it, now or later: on rank 0, JSON-able, and
        enough to find the samples again.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the last batch taken.

        What is no tensor is JSON-able and the same on every rank; a tensor [rows, ...] has a row
        for each of this rank's.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from there, with any number of ranks: tensors hold this rank's rows of the
        global batch. UserError if `state` is of other data or settings.
        """
        ...

    def close(self) -> None:
        """Stop threads and close files."""
        ...
