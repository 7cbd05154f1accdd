"""Bad numbers on one rank: real NaN through the real code."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from pretrain.data.stream import TextStream
from pretrain.model.sleep import SleepLM
from pretrain.tasks import TaskSource

NAN = float("nan")


@contextmanager
def planted(
    batches: Collection[int], where: str = "losses", factor: float = NAN
) -> Iterator[list[int]]:
    """In this context, what the last rank computes from these global batches (from 0) is multiplied
    by `factor`.

    Args:
        where: "losses", which only the last pipeline stage has, or "embedded", on which everything
            depends.
    Returns:
        The batches that have been trained on, in order.
    """
    taken: list[int] = []
    whole = getattr(SleepLM, where)

    def spoilt(self: SleepLM, *arguments: torch.Tensor, **named: Any) -> torch.Tensor:
        values: torch.Tensor = whole(self, *arguments, **named)
        spoils = (
            self.training and taken[-1] in batches and dist.get_rank() == dist.get_world_size() - 1
        )
        return values * factor if spoils else values

    def watched(take: Any, number: Any) -> Any:
        def next_batch(self: Any) -> Any:
            taken.append(number(self))
            return take(self)

        return next_batch

    with (
        mock.patch.object(SleepLM, where, spoilt),
        mock.patch.object(
            TaskSource,
            "next",
            watched(TaskSource.next, lambda s: s.state_dict()["rows"] // s.batch),
        ),
        mock.patch.object(
            TextStream, "next", watched(TextStream.next, lambda s: s.state_dict()["steps"])
        ),
    ):
        yield taken
