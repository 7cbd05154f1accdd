"""TaskSource: the training stream of a task, endless."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor

from pretrain.data.batch import Batch
from pretrain.data.prefetch import Prefetcher
from pretrain.data.source import Gather
from pretrain.errors import UserError, shortened
from pretrain.tasks.counter import Rows
from pretrain.tasks.task import DeepTask, Task


class TaskSource:
    """Gives each rank its rows of the global batch; row r is the same for any batch size and rank.

    A thread stays a few batches ahead. A batch is a pure function of its position, so batches that
    were made but not used are simply made again after a resume.

    Args:
        batch: B, rows of the global batch, over all ranks.
        curriculum: steps over which the deepest rows rise to the task's deepest.
        state_passing: share of the rows that begin with what the row before in their place left.

    Attributes:
        wait_seconds: how long `next` has kept its caller waiting, in all.
    """

    def __init__(
        self,
        task: Task,
        batch: int,
        seed: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        curriculum: int = 0,
        state_passing: float = 0.0,
    ) -> None:
        self.curriculum, self.state_passing = curriculum, state_passing
        self.task, self.batch, self.seed = task, batch, seed
        self.rank, self.rows = rank, batch // ranks
        self.vocab_size = task.vocab_size
        self.wait_seconds = 0.0
        self._position = 0  # rows returned, over all ranks
        self._ahead = 0  # rows made; used only by the prefetch thread
        self._prefetcher: Prefetcher[Batch] | None = None

    def next(self) -> Batch:
        """This rank's rows of the next global step."""
        if self._prefetcher is None:
            self._ahead = self._position
            self._prefetcher = Prefetcher(self._make)
        batch = self._prefetcher.next()
        self._position += self.batch
        self.wait_seconds += self._prefetcher.wait_seconds
        return batch

    def describe(self, steps: int) -> list[str]:
        """What so many steps read of a file."""
        return self.task.describe(steps * self.batch)

    def samples(self) -> Callable[[Gather], Any]:
        """The seed and the rows [first, stop) of the last global batch: task.sample(seed, first,
        stop - first), up to the curriculum's depth at that step.
        """
        rows = [self._position - self.batch, self._position]
        return lambda gather: {"seed": self.seed, "rows": rows}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; the same on every rank."""
        return {"rows": self._position, "seed": self.seed, "fingerprint": self.task.fingerprint}

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """UserError if the rows would not be those that the saved state continues."""
        for key, mine in (("seed", self.seed), ("fingerprint", self.task.fingerprint)):
            if state[key] != mine:
                had, now = _differing(str(state[key]), str(mine))
                raise UserError(
                    f"the checkpoint was trained on other data: its {key} is {shortened(had)!r}, "
                    f"the settings now give {shortened(now)!r}; restore the settings and files of "
                    "the task, or start a new run with another run.name"
                )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at the saved row, whatever the batch size or the number of ranks is now."""
        self.check_state_dict(state)
        self.close()
        self._position = state["rows"]

    def close(self) -> None:
        """Ends the thread."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def _make(self) -> Batch:
        """This rank's rows of the next batch. Runs in the prefetch thread."""
        first, step = self._ahead + self.rank * self.rows, self._ahead // self.batch
        if step < self.curriculum:
            share, task = (step + 1) / self.curriculum, cast(DeepTask, self.task)
            batch = task.sample_up_to(self.seed, first, self.rows, share)
        else:
            batch = self.task.sample(self.seed, first, self.rows)
        if self.state_passing:
            if step:
                batch.starts[:, 0] = ~self._begins_with_state(first)
            batch.carries = self._begins_with_state(first + self.batch)
        self._ahead += self.batch
        return batch

    def _begins_with_state(self, first: int) -> Tensor:
        """[rows] bool, for the rows from `first` on."""
        drawn = Rows(self.seed, "state passing", first, self.rows).uniform("share", 1)[:, 0]
        return torch.from_numpy(drawn < self.state_passing)


def _differing(one: str, other: str) -> tuple[str, str]:
    """Both, from the first word in which they differ."""
    words = zip(one.split(" "), other.split(" "), strict=False)
    same = sum(len(a) + 1 for a, _ in takewhile(lambda pair: pair[0] == pair[1], words))
    return ("... " if same else "") + one[same:], ("... " if same else "") + other[same:]
