"""The training stream of a task: fresh rows without end."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pretrain.batch import Batch
from pretrain.errors import UserError, shortened
from pretrain.json_text import counted
from pretrain.tasks.task import Task


class TaskSource:
    """Gives each rank its rows of the global batch; row r is the same in any batch size and on any rank.

    The next batch is written by a thread while the current one is trained on. It is a pure function of the
    position, so that what was prepared and not used is simply written again after a resume.

    Args:
        batch: B, rows of the global batch, over all ranks.

    Attributes:
        wait_seconds: how long `next` has kept its caller waiting, in all.
    """

    def __init__(self, task: Task, batch: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        if batch % ranks:
            raise UserError(f"train.batch = {batch} does not divide by {ranks} data-parallel ranks; make it a multiple")
        self.task, self.batch, self.seed = task, batch, seed
        self.rank, self.rows = rank, batch // ranks
        self.vocab_size = task.vocab_size
        self.wait_seconds = 0.0
        self._position = 0  # rows consumed, over all ranks
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="task-source")
        self._prepared: Future[Batch] | None = None

    def next(self) -> Batch:
        """This rank's rows of the next global step."""
        begin = time.perf_counter()
        batch = (self._prepared or self._prepare()).result()
        self._position += self.batch
        self._prepared = self._prepare()
        self.wait_seconds += time.perf_counter() - begin
        return batch

    def samples(self) -> Callable[[], Any]:
        """The seed and the rows [first, stop) of the last global batch: task.sample(seed, first, stop - first)."""
        rows = [self._position - self.batch, self._position]
        return lambda: {"seed": self.seed, "rows": rows}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; the same on every rank."""
        return {"rows": self._position, "seed": self.seed, "fingerprint": self.task.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on at the saved row, whatever the batch size or the number of ranks is now."""
        for key, mine in (("seed", self.seed), ("fingerprint", self.task.fingerprint)):
            if state[key] != mine:
                raise UserError(
                    f"the checkpoint was trained on other data: its {key} is {shortened(repr(state[key]))}, the "
                    f"settings now give {mine!r}; restore the settings of the task, or begin another run with another "
                    "run.name"
                )
        self._position = counted(state["rows"])
        self._prepared = None

    def close(self) -> None:
        """Ends the thread."""
        self._writer.shutdown(cancel_futures=True)

    def _prepare(self) -> Future[Batch]:
        return self._writer.submit(self.task.sample, self.seed, self._position + self.rank * self.rows, self.rows)
