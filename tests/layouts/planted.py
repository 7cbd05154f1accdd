"""Errors planted to show that the comparison with one process finds them, and changes that it must
not notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from parallel import context, engine, gated_delta_net, mesh, pipeline, zero_layout, zero_order
from pretrain.model import plan, reader
from pretrain.run import step


def _everything_counts(self: zero_layout.Partition, gradient: Tensor) -> Tensor:
    return _square(dataclasses.replace(self, counted=self.splits.keys()), gradient)


def _stays_in_no_graph(memory: Any) -> tuple[Any, list]:
    return memory.map(torch.Tensor.detach), []


def _no_gradient_round_the_ring(*arguments: Any) -> Any:
    return tuple(
        dataclasses.replace(p, sends_grad_to_previous_pass=False) for p in _passes(*arguments)
    )


def _weights_leave_at_once(*arguments: Any) -> Any:
    """ZeRO 3 as with weights too large to stay gathered: none counts as small, none has room."""
    found = _config(*arguments)
    none = {"stage3_param_persistence_threshold": 0}
    return found | {"zero_optimization": found["zero_optimization"] | none}


def _partly_agreed(rows: Any, past: int, agree: Any) -> Any:
    """Each rank decides by its own rows whether there is PAD, what begins and what stays awake."""
    own, _ = _agreed(rows, past, plan.alone)
    some, past = _agreed(rows, past, agree)
    return own._replace(
        **{fact: getattr(some, fact) for fact in some._fields if fact not in OWN}
    ), past


def _no_memory_of_windows_passed_by(self: step.StageStream, index: int) -> None:
    """A stage's memory begins with the first window that reaches the stage."""
    if self._read < index:
        del self.memory
    _go_to(self, index)


OWN = ("has_pad", "starts", "stays", "stays_on")
_square, _config = zero_layout.Partition.square, engine._config
_passes, _agreed, _go_to = reader.plan_passes, plan._agreed, step.StageStream._go_to
PLANTED: dict[str, list[tuple[Any, str, Any]]] = {
    "weights leave at once": [
        (engine, "_config", _weights_leave_at_once),
        (zero_order, "MAX_WHOLE", 0),
    ],
    # as DeepSpeed does by default, while each rank's rows decide what there is to reduce
    "gradients are reduced as they come": [
        (engine, "reduce_in_order", lambda *_: None),
        (plan, "_agreed", _partly_agreed),
    ],
    "memory begins where a stage does": [
        (step.StageStream, "_go_to", _no_memory_of_windows_passed_by)
    ],
    "structure is not agreed": [(plan, "_agreed", _partly_agreed)],
    "weights are gathered as in the pass before": [
        (engine, "reduce_in_order", lambda *_: None),
        (engine, "WeightGathering", mock.Mock()),
    ],
    "one tp rank's gradient dropped": [
        (zero_layout.Partition, "complete", lambda self, gradient: None)
    ],
    "shared parameters counted twice in the norm": [
        (zero_layout.Partition, "square", _everything_counts)
    ],
    "gradient of the fast weights dropped": [(pipeline, "cut", _stays_in_no_graph)],
    "gradient of the next pass dropped": [(reader, "plan_passes", _no_gradient_round_the_ring)],
    "one end's gradient of a tied embedding dropped": [
        (engine.Engine, "_sum_tied", lambda self: None)
    ],
    "gradients stay where they are in an exchange": [
        (context._Exchange, "backward", staticmethod(lambda ctx, gradient: (gradient, None, None)))
    ],
    "every context-parallel rank takes the first one's decays": [
        (gated_delta_net, "own_heads", lambda x: x.chunk(mesh.cp_size())[0])
    ],
    "what comes before a share of tokens is lost": [
        (gated_delta_net, "before_own_tokens", lambda size, x, count: x[:, :0])
    ],
    "context-parallel ranks count as one in the mean": [
        (engine.Engine, "loss_scale", staticmethod(lambda scored: mesh.dp_size() / scored))
    ],
}


@contextlib.contextmanager
def planted(what: str | None) -> Iterator[None]:
    """In this context, the error of that name is present."""
    if what is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        for owner, name, other in PLANTED[what]:
            stack.enter_context(mock.patch.object(owner, name, other))
        yield
