"""Errors that are planted to show that the comparison with one process finds them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import Tensor

from parallel import engine, pipeline, shards
from pretrain import step


def _everything_counts(self: shards.Partition, gradient: Tensor) -> Tensor:
    return _square(dataclasses.replace(self, counted=self.splits.keys()), gradient)


def _stays_in_no_graph(tensor: Tensor, unit: Any) -> Tensor:
    return tensor.detach()


def _no_gradient_round_the_ring(*arguments: Any) -> Any:
    return tuple(leg.__class__(**leg.__dict__ | {"returns": False}) for leg in _legs(*arguments))


_square, _legs = shards.Partition.square, step.legs
FAULTS = {
    "one tp rank's gradient dropped": (shards.Partition, "complete", lambda self, gradient: None),
    "shared parameters counted twice in the norm": (shards.Partition, "square", _everything_counts),
    "gradient of the fast weights dropped": (pipeline.Pipeline, "_cut", staticmethod(_stays_in_no_graph)),
    "gradient of the next pass dropped": (step, "legs", _no_gradient_round_the_ring),
    "one end's gradient of a tied embedding dropped": (engine.Engine, "_sum_tied", lambda self: None),
}


@contextlib.contextmanager
def planted(fault: str | None) -> Iterator[None]:
    """Inside, the named error is there."""
    if fault is None:
        yield
        return
    owner, name, wrong = FAULTS[fault]
    with mock.patch.object(owner, name, wrong):
        yield
