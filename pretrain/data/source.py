"""What the trainer asks of a stream of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pretrain.data.batch import Batch


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

    def samples(self) -> Callable[[], Any]:
        """Which samples made up the whole global batch of the last next(), the same on every rank.

        What is returned says it when it is called, now or later: JSON-able, and enough to find the
        samples again.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the last batch taken: JSON-able, and the same on every rank."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from there; UserError if `state` is of other data or settings.

        It comes out of a file: KeyError, TypeError, ValueError or AttributeError if no state_dict
        gave it.
        """
        ...

    def close(self) -> None:
        """Stop threads and close files."""
        ...
