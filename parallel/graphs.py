"""CUDA graphs of units of work: a run of blocks over one (window, pass) in a single launch.

A small model gives the GPU less work than its launches cost the host. The loop over windows and
passes runs the same kernels again and again, so they are captured once and replayed: one graph for
a unit's forward, and one for its backward, which first recomputes the forward. Between them only
the unit's inputs (h, S) are kept, as with recompute = "unit" (`parallel.recompute`), so that the
two graphs serve every window and every pass, and gradients are bit for bit the same.

    unit        inputs -> static inputs;  replay;  static outputs -> outputs
    backward    saved inputs and gradients -> static;  replay;  gradients of h and S -> autograd
    weights     their gradients accumulate in static tensors; when the backward of all units of a
                microbatch is done, these go to autograd, once (`_Collect`), and so to ZeRO

A new capture is needed for other shapes, a window with PAD, a write-only block, or weights that
have moved in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.func import functional_call

from parallel.state import BlockState
from parallel.window import Window

WARM_UPS = 3  # kernels must be compiled, tuned and have their workspaces before a capture

T = TypeVar("T")
# (h, memory of each block) -> the same after the unit
Unit = Callable[[Tensor, Sequence[BlockState], Window], tuple[Tensor, tuple[BlockState, ...]]]


def warm_up(function: Callable[[], object]) -> None:
    """Calls `function` WARM_UPS times on a side stream, as capture requires."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(side)


def capture(function: Callable[[], T]) -> tuple[Callable[[], None], T]:
    """Captures `function`. Returns (replay, results); each replay overwrites results."""
    graph = torch.cuda.CUDAGraph()
    # Other threads wait for events and allocate memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = function()
    return graph.replay, results


class UnitGraphs:
    """The captured graphs of a model's units, cached by what makes them differ."""

    def __init__(self, blocks: nn.ModuleDict) -> None:
        self._holder = _Holder(blocks)
        self._parameters = list(blocks.parameters())
        self._captured: dict[Any, _Graphs] = {}
        self._addresses: list[int] = []
        self._token: Tensor | None = None
        self.gradients: list[Tensor] = []  # of the parameters, summed over a microbatch's units

    def begin(self) -> None:
        """Call before the forward of a microbatch that will have a backward."""
        addresses = [p.data_ptr() for p in self._parameters]
        if addresses != self._addresses:
            self._addresses = addresses
            self._captured.clear()
            self.gradients = [torch.zeros_like(p) for p in self._parameters]
        self._token = _Collect.apply(self, *self._parameters)

    def run(
        self, name: Any, unit: Unit, h: Tensor, states: Sequence[BlockState], window: Window
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        """Replays a unit that has a backward; captures it first if no graph fits.

        Args:
            name: identifies what is run. unit: the same computation without a graph.
        """
        assert self._token is not None, "a microbatch begins with `begin`"
        if window.record_decay is not None:
            # Decays are recorded from an extra eager run: if the unit itself were not replayed,
            # gradients would be summed in another order, and logging would change the result.
            with torch.no_grad():
                unit(h, states, window)
            window = replace(window, record_decay=None)
        inputs = _Flat.of(h, states, window)
        key = (name, inputs.description)
        if key not in self._captured:
            self._captured[key] = _Graphs(self._holder, unit, inputs, self.gradients)
        graphs = self._captured[key]
        h, *left = _Replay.apply(graphs, self._token, *inputs.tensors)
        return h, tuple(_states(inputs.kinds, left))


class _Holder(nn.Module):
    """The blocks, as a module in which `torch.func.functional_call` can replace the parameters."""

    def __init__(self, blocks: nn.ModuleDict) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, function: Callable[..., T], *args: Any) -> T:
        """Calls a function while the parameters are replaced."""
        return function(*args)


class _Flat(NamedTuple):
    """The tensors that a unit reads, flattened into a tuple."""

    tensors: tuple[Tensor, ...]  # h, those of the states, those of the window
    kinds: tuple[type, ...]  # of the states, two tensors each
    window: Window

    @staticmethod
    def of(h: Tensor, states: Sequence[BlockState], window: Window) -> _Flat:
        shared = [window.valid, window.cos, window.sin, window.mask]
        there = [t for t in shared if t is not None]
        tensors = (h, *(t for state in states for t in state), *there)
        return _Flat(tensors, tuple(type(state) for state in states), window)

    @property
    def description(self) -> tuple[Any, ...]:
        """Cache key: units with equal keys share one captured graph."""
        w = self.window
        shapes = tuple((t.shape, t.dtype) for t in self.tensors)
        return (shapes, self.kinds, w.valid is None, w.mask is None, w.keeps_keys, w.keeps_tail)

    def rebuilt(self, tensors: Sequence[Tensor]) -> tuple[Tensor, list[BlockState], Window]:
        """h, states and window, made of other tensors."""
        h, *rest = tensors
        n = 2 * len(self.kinds)
        states = _states(self.kinds, rest[:n])
        shared = iter(rest[n:])
        valid = None if self.window.valid is None else next(shared)
        cos, sin = next(shared), next(shared)
        mask = None if self.window.mask is None else next(shared)
        return h, states, replace(self.window, valid=valid, cos=cos, sin=sin, mask=mask)


def _states(kinds: Sequence[type], tensors: Sequence[Tensor]) -> list[BlockState]:
    return [kind(*tensors[2 * i : 2 * i + 2]) for i, kind in enumerate(kinds)]


class _Graphs:
    """A unit's forward and backward as CUDA graphs, and the tensors that they read and write."""

    def __init__(self, holder: _Holder, run: Unit, like: _Flat, sums: Sequence[Tensor]) -> None:
        """Captures both.

        Args:
            holder: the unit's blocks. like: example inputs. sums: the tensors that the parameters'
                gradients are added to, in the order of the parameters.
        """
        n_states = 1 + 2 * len(like.kinds)  # h and the states; the rest are the window's
        self.inputs = [t.detach().clone() for t in like.tensors]
        self.carriers = [i for i, t in enumerate(self.inputs[:n_states]) if t.is_floating_point()]

        # The same storage, but autograd leaves of our own. A parameter's gradient accumulator is
        # bound to the stream that the parameter was first used on, and that stream must not be
        # waited for during capture.
        weights = {name: p.detach().requires_grad_() for name, p in holder.named_parameters()}

        def forward() -> tuple[list[Tensor], list[Tensor]]:
            """Leaf inputs and outputs. Always with an autograd graph: code compiled for a forward
            alone may round differently.
            """
            leaves = [t.detach() for t in self.inputs]
            for i in self.carriers:
                leaves[i].requires_grad_()
            h, states = functional_call(holder, weights, (run, *like.rebuilt(leaves)))
            return leaves, [h, *(t for state in states for t in state)]

        def backward(gradients: Sequence[Tensor]) -> list[Tensor | None]:
            leaves, outputs = forward()
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
            sources = [leaves[i] for i in self.carriers]
            found = torch.autograd.grad(
                [o for o, _ in pairs], [*sources, *weights.values()], [g for _, g in pairs],
                allow_unused=True,
            )  # fmt: skip
            n = len(sources)
            added = [(s, g) for s, g in zip(sums, found[n:], strict=True) if g is not None]
            torch._foreach_add_([s for s, _ in added], [g for _, g in added])
            return list(found[:n])

        with torch.enable_grad():
            held = [s.clone() for s in sums]
            self.gradients = [torch.zeros_like(o) for o in forward()[1]]
            warm_up(lambda: backward(self.gradients))
            torch._foreach_copy_(list(sums), held)
            self.replay_forward, self.outputs = capture(lambda: [o.detach() for o in forward()[1]])
            self.replay_backward, self.found = capture(lambda: backward(self.gradients))
            torch._foreach_copy_(list(sums), held)


class _Replay(torch.autograd.Function):
    """A unit, run by replaying its graphs."""

    @staticmethod
    def forward(ctx: Any, graphs: _Graphs, token: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.graphs = graphs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        torch._foreach_copy_(graphs.inputs, list(inputs))
        graphs.replay_forward()
        return tuple(output.clone() for output in graphs.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        graphs: _Graphs = ctx.graphs
        torch._foreach_copy_(graphs.inputs, list(ctx.saved_tensors))
        for static, gradient in zip(graphs.gradients, gradients, strict=True):
            if gradient is None:
                static.zero_()
            else:
                static.copy_(gradient)
        graphs.replay_backward()
        given: list[Tensor | None] = [None] * len(graphs.inputs)
        for i, found in zip(graphs.carriers, graphs.found, strict=True):
            if found is not None and ctx.needs_input_grad[2 + i]:
                given[i] = found.clone()
        return (None, None, *given)


class _Collect(torch.autograd.Function):
    """Makes a dummy tensor that every unit of a microbatch takes as an input, so that its backward
    runs after all of theirs: then the weights' gradients are complete and are handed to autograd.
    """

    @staticmethod
    def forward(ctx: Any, graphs: UnitGraphs, *parameters: Tensor) -> Tensor:
        ctx.graphs = graphs
        return parameters[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *_: Tensor) -> tuple[Tensor | None, ...]:
        sums: list[Tensor] = ctx.graphs.gradients  # type: ignore[attr-defined]
        given = [s.clone() for s in sums]
        torch._foreach_zero_(sums)
        return (None, *given)
