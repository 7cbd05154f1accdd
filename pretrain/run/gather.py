"""What the ranks know of their rows, put together on rank 0: from any thread, through the store."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from parallel import mesh, talk


class RowGather:
    """Made by all ranks at the same place; rare and small things only, for rank 0 takes them all.

    Args:
        timeout: seconds in which every rank must have given its part.
    """

    def __init__(self, timeout: float) -> None:
        self._store = talk.store("rows")
        self._store.set_timeout(timedelta(seconds=timeout))

    def __call__(self, name: str, mine: list[Any]) -> list[Any]:
        """On rank 0 something about each row of the global batch, in order; elsewhere `mine`.

        Called by all ranks, with a `name` that comes once. DistError: a rank has gone, or does not
        answer.

        Args:
            mine: JSON-able, of this rank's rows; the same on the ranks that share them.
        """
        keys = [f"{name}/{rank}" for rank in range(mesh.dp_size())]
        if dist.get_rank() == 0:
            parts = [mine]
            for key in keys[1:]:
                parts.append(json.loads(self._store.get(key)))
                self._store.delete_key(key)
            return [row for part in parts for row in part]
        if mesh.answers_for_rows():
            self._store.set(keys[mesh.dp_rank()], json.dumps(mine))
        return mine
