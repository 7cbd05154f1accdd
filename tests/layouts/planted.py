"""Errors that are planted to show that the comparison with one process finds them, and what it must
not notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch import Tensor

from parallel import engine, pipeline, zero_layout, zero_order
from pretrain.run import step


def _everything_counts(self: zero_layout.Partition, gradient: Tensor) -> Tensor:
    return _square(dataclasses.replace(self, counted=self.splits.keys()), gradient)


def _stays_in_no_graph(tensor: Tensor, unit: Any) -> Tensor:
    return tensor.detach()


def _no_gradient_round_the_ring(*arguments: Any) -> Any:
    return tuple(leg.__class__(**leg.__dict__ | {"returns": False}) for leg in _legs(*arguments))


def _weights_leave_at_once(*arguments: Any) -> Any:
    """ZeRO 3 as it is with weights too large to stay: nothing counts as small, nothing has room."""
    found = _config(*arguments)
    none = {"stage3_param_persistence_threshold": 0}
    return found | {"zero_optimization": found["zero_optimization"] | none}


_square, _legs, _config = zero_layout.Partition.square, step.legs, engine._config
PLANTED: dict[str, list[tuple[Any, str, Any]]] = {
    "weights leave at once": [
        (engine, "_config", _weights_leave_at_once),
        (zero_order, "MAX_WHOLE", 0),
    ],
    "one tp rank's gradient dropped": [
        (zero_layout.Partition, "complete", lambda self, gradient: None)
    ],
    "shared parameters counted twice in the norm": [
        (zero_layout.Partition, "square", _everything_counts)
    ],
    "gradient of the fast weights dropped": [
        (pipeline.Pipeline, "_cut", staticmethod(_stays_in_no_graph))
    ],
    "gradient of the next pass dropped": [(step, "legs", _no_gradient_round_the_ring)],
    "one end's gradient of a tied embedding dropped": [
        (engine.Engine, "_sum_tied", lambda self: None)
    ],
}


@contextlib.contextmanager
def planted(what: str | None) -> Iterator[None]:
    """Inside, what has that name is there."""
    if what is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        for owner, name, other in PLANTED[what]:
            stack.enter_context(mock.patch.object(owner, name, other))
        yield
