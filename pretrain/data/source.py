"""BatchSource: the interface of a stream of batches, as the trainer uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pretrain.data.batch import Batch

# Called by all ranks with a list about their own rows; returns, on rank 0 only, the list for all
# rows of the global batch, in order.
Gather = Callable[[list[Any]], list[Any]]


class BatchSource(Protocol):
    """An endless stream of batches, in which every row has a token to predict.

    Of B rows in the global batch, rank r of n gets rows r*B/n .. (r+1)*B/n - 1; the trainer makes
    sure that n divides B.
    """

    vocab_size: int
    wait_seconds: float  # total time that next() has made the trainer wait

    def next(self) -> Batch:
        """This rank's rows of the next global step."""
        ...

    def describe(self, steps: int) -> list[str]:
        """Lines to print at the start about what a run of `steps` steps reads."""
        ...

    def samples(self) -> Callable[[Gather], Any]:
        """Which samples made up the whole global batch of the last next().

        Returns a function that all ranks call, now or later; on rank 0 it returns JSON-serialisable
        data that suffice to find the samples again.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream after the last batch taken.

        Tensors are [rows, ...], for this rank's rows; everything else is JSON-serialisable and the
        same on every rank.
        """
        ...

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """UserError if `state` belongs to other data or settings. Its tensors are not looked at."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume exactly there, with any number of ranks: tensors hold this rank's rows of the
        global batch. UserError as in `check_state_dict`.
        """
        ...

    def close(self) -> None:
        """Stop threads and close files."""
        ...
