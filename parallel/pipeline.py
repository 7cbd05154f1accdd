"""Executes a schedule on one pipeline stage.

A unit is one pass of one microbatch over one window. Between a unit's forward and its backward a
stage keeps the hidden state that came in and what the unit left in the stage's memory (fast weights
S, kept keys). Both are detached, so that every unit has an autograd graph of its own whose backward
can run when its turn comes:

    forward      x ----> [ blocks, recomputed or kept ] ----> h, y      to the next stage, or
                                                                        around to the next pass
                 S_u --> [                            ] ----> S_(u+1)   stays here
    backward     dx <--- [                            ] <---- dh, dy    from there
                 dS_u <- [                            ] <---- dS_(u+1)  left by the backward of u+1

Only hidden states and their gradients travel between stages, never S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from parallel import mesh, watchdog
from parallel.passes import Pass
from parallel.schedule import SENDS_UNDER_WAY, Action, Message, Schedule


class UnitOutput(NamedTuple):
    """The output of a stage's part of a unit."""

    h: Tensor | None  # residual stream after its part of the core; None beyond the core
    y: Tensor | None  # residual stream after its part of the coda, where the window is read
    loss: Tensor | None  # [] of the window, on the last stage, where the window is read and scored


class StageMemory(Protocol):
    """What a stage keeps of a microbatch from unit to unit; an immutable value."""

    def map(self, f: Callable[[Tensor], Tensor]) -> Self:
        """f applied tensor by tensor."""


M = TypeVar("M", bound=StageMemory)


class Stream(Protocol):
    """A microbatch as one stage sees it."""

    memory: Any  # a StageMemory: what the stage's next unit starts from

    @property
    def passes(self) -> Sequence[Pass]:
        """Its units."""

    def forward(self, unit: int, x: Tensor | None) -> UnitOutput:
        """Runs this stage's part of a unit, and stores the state that it leaves in `memory`."""

    def empty_message(self, unit: int) -> Tensor:
        """An uninitialised tensor like the hidden states of a unit."""


@dataclass
class _Arrival:
    """A tensor for a later unit: present, or being received."""

    tensor: Tensor
    work: dist.Work | None = None

    def get(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.tensor


@dataclass
class _Pending:
    """What is kept of a unit until its backward; for each output, the autograd edge where its
    gradient enters the unit's graph.
    """

    x: Tensor | None  # the input, if its gradient is sent back
    loss: Tensor | None
    # What left the stage, and the message that will bring its gradient.
    sent: list[tuple[GradientEdge, Message]] = field(default_factory=list)
    # What stayed in memory, and its detached copy there, which collects later units' gradients.
    kept: list[tuple[GradientEdge, Tensor]] = field(default_factory=list)


def cut(memory: M) -> tuple[M, list[tuple[GradientEdge, Tensor]]]:
    """Detaches a memory from the graph of the unit that left it.

    Returns:
        the same values as leaves of the next unit's graph, and the edges where the leaves'
        gradients enter the old graph.
    """
    edges = []

    def leaf(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad or tensor.is_leaf:
            return tensor
        copy = tensor.detach().requires_grad_()
        edges.append((get_gradient_edge(tensor), copy))
        return copy

    return memory.map(leaf), edges


class Pipeline:
    """One step, or one evaluation, on this rank's stage."""

    def __init__(
        self, streams: Sequence[Stream], schedule: Schedule, loss_scale: Tensor | float | None
    ) -> None:
        """
        Args:
            streams: the microbatches. schedule: made from their passes, the same on every stage.
            loss_scale: see `parallel.engine.Engine.loss_scale`; None: no backward.
        """
        self._streams, self._schedule = streams, schedule
        self._trains = loss_scale is not None
        self._loss_scale = 0.0 if loss_scale is None else loss_scale
        self._stage, self._group = mesh.pp_rank(), mesh.pp_group()
        self._inbox: dict[Message, _Arrival] = {}
        self._outbox: dict[Message, Tensor] = {}
        self._units: dict[tuple[int, int], _Pending] = {}  # by (microbatch, unit)
        self._sending: deque[tuple[dist.Work, Tensor]] = deque()

    def run(self) -> None:
        """Executes this stage's steps, and waits until all its messages are sent and received."""
        for step in self._schedule.steps[self._stage]:
            if step.action is not None:
                self._note("computing", step.action)
                (self._backward if step.action.backward else self._forward)(step.action)
            if step.messages:
                self._post(step.messages)
        for work, _ in self._sending:
            work.wait()
        left = [*self._inbox, *self._outbox]
        assert not left, f"messages that nobody waits for, or that are never sent: {left}"

    def _note(self, what: str, action: Action) -> None:
        p = self._streams[action.microbatch].passes[action.unit]
        direction = "backward" if action.backward else "forward"
        unit = f"microbatch {action.microbatch}, window {p.window}, pass {p.number}"
        watchdog.doing(what, f"{direction} of {unit}")

    # ---- units

    def _forward(self, action: Action) -> None:
        stream, s, n = self._streams[action.microbatch], self._stage, action.unit
        p = stream.passes[n]
        x = self._input(action)
        needs_grad = self._trains and p.input_needs_grad(s)
        if x is not None:
            x.requires_grad_(needs_grad)
        with torch.set_grad_enabled(self._trains):
            output = stream.forward(n, x)
        unit = _Pending(x if needs_grad else None, output.loss)
        if output.h is not None and s == p.core_end and p.loops:
            target = stream.passes[n + 1].first_stage
            self._hand_on(unit, output.h, self._message(action, n + 1, target, ring=True))
        onward = output.h if s < p.core_end else output.y
        if onward is not None and s < p.last_stage:
            self._hand_on(unit, onward, self._message(action, n, s + 1, ring=False))
        if self._trains:
            stream.memory, unit.kept = cut(stream.memory)
            self._units[action.microbatch, n] = unit

    def _input(self, action: Action) -> Tensor | None:
        """The hidden state that a unit's forward starts from; None if it starts from tokens."""
        passes, n = self._streams[action.microbatch].passes, action.unit
        if self._stage > passes[n].first_stage:
            source, ring = self._stage - 1, False
        elif passes[n].number > 1:
            source, ring = passes[n - 1].core_end, True
        else:
            return None
        return self._receive(Message(source, self._stage, *action, ring), action)

    def _message(self, action: Action, unit: int, target: int, *, ring: bool) -> Message:
        """The message from an action to a unit on another stage, or to a later unit on this one."""
        to = Action(action.backward, action.microbatch, unit)
        return Message(self._stage, target, *to, ring)

    def _receive(self, message: Message, action: Action) -> Tensor:
        """Waits for a message that an action needs."""
        self._note("waiting for the inputs of", action)
        tensor = self._inbox.pop(message).get()
        self._note("computing", action)
        return tensor

    def _hand_on(self, unit: _Pending, output: Tensor, message: Message) -> None:
        """Sends a hidden state, and records which message will bring its gradient."""
        self._give(message, output.detach())
        if output.requires_grad:
            gradient = Message(
                message.target, self._stage, True, message.microbatch, message.made_by, message.ring
            )
            unit.sent.append((get_gradient_edge(output), gradient))

    def _backward(self, action: Action) -> None:
        passes, n = self._streams[action.microbatch].passes, action.unit
        unit = self._units.pop((action.microbatch, n))
        outputs, gradients = [], []
        for edge, message in unit.sent:
            if message in self._inbox:
                outputs.append(edge)
                gradients.append(self._receive(message, action))
        for edge, copy in unit.kept:
            if copy.grad is not None:
                outputs.append(edge)
                gradients.append(copy.grad)
        if unit.loss is not None:
            outputs.append(get_gradient_edge(unit.loss))
            gradients.append(unit.loss.new_ones(()) * self._loss_scale)
        if outputs:
            torch.autograd.backward(outputs, gradients)
        if unit.x is None:
            return
        gradient = torch.zeros_like(unit.x) if unit.x.grad is None else unit.x.grad
        if self._stage > passes[n].first_stage:
            self._give(self._message(action, n, self._stage - 1, ring=False), gradient)
        else:
            source = passes[n - 1].core_end
            self._give(self._message(action, n - 1, source, ring=True), gradient)

    # ---- messages

    def _give(self, message: Message, tensor: Tensor) -> None:
        """Queues a tensor for another stage with this step's messages, or for a later unit here."""
        if message.target == self._stage:
            self._inbox[message] = _Arrival(tensor)
        else:
            self._outbox[message] = tensor

    def _post(self, messages: Sequence[Message]) -> None:
        """Starts this step's sends and receives as one batch; waits only for old sends."""
        # a send keeps its tensor until it is waited for
        while len(self._sending) > SENDS_UNDER_WAY:
            self._sending.popleft()[0].wait()
        operations = []
        for message in messages:
            if message.source == self._stage:
                tensor = self._outbox.pop(message).contiguous()
                rank = dist.get_global_rank(self._group, message.target)
                operations.append(dist.P2POp(dist.isend, tensor, rank, self._group))
            else:
                tensor = self._streams[message.microbatch].empty_message(message.unit)
                rank = dist.get_global_rank(self._group, message.source)
                operations.append(dist.P2POp(dist.irecv, tensor, rank, self._group))
        works = dist.batch_isend_irecv(operations)
        if len(works) < len(operations):  # NCCL returns one work for the whole batch
            works = works * len(operations)
        for message, operation, work in zip(messages, operations, works, strict=False):
            if message.source == self._stage:
                self._sending.append((work, operation.tensor))
            else:
                self._inbox[message] = _Arrival(operation.tensor, work)
