"""Gathers what the ranks know of their rows on rank 0, from any thread, through the store."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from parallel import mesh, talk


class RowGather:
    """All ranks make it at the same point. For rare and small data only: rank 0 reads each part.

    Args:
        timeout: seconds within which every rank must have sent its part.
    """

    def __init__(self, timeout: float) -> None:
        self._store = talk.store("rows")
        self._store.set_timeout(timedelta(seconds=timeout))

    def __call__(self, name: str, mine: list[Any]) -> list[Any]:
        """On rank 0, a list about all rows of the global batch, in order; elsewhere `mine`.

        Called by all ranks, with a `name` that is used only once. DistError: a rank has died, or
        does not answer.

        Args:
            mine: JSON-serialisable, one item per row of this rank; the same on all ranks that read
                these rows.
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
