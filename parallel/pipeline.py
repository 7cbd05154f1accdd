"""Carries out a schedule on one pipeline stage.

A unit is one pass of one microbatch over one window. From its forward to its backward a stage keeps
of it the hidden state that came in and what the unit left in the stage's memory (fast weights S,
kept keys); each is cut out of the autograd graph, so that every unit has a graph of its own, and
its backward can run when its turn comes:

    forward      x ----> [ blocks, recomputed or kept ] ----> h, y         to the next stage, or round to the next pass
                 S_u --> [                            ] ----> S_(u+1)      stays here
    backward     dx <--- [                            ] <---- dh, dy       from there
                 dS_u <- [                            ] <---- dS_(u+1)     left here by the backward of unit u+1

Only hidden states and their gradients travel between stages, never S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from parallel import mesh, watchdog
from parallel.schedule import Action, Leg, Message, Schedule

# Sends that nobody waits for: enough that a stage does not wait for its neighbour to take what it
# has just been sent.
SENDS_UNDER_WAY = 8


class UnitOutput(NamedTuple):
    """What a stage's part of a unit gives."""

    h: Tensor | None  # residual stream after its part of the core, None beyond the core
    y: Tensor | None  # residual stream after its part of the coda, where the window is read
    loss: Tensor | None  # [] of the window, on the last stage, where the window is read and scored


class Stream(Protocol):
    """A microbatch as one stage sees it."""

    @property
    def legs(self) -> Sequence[Leg]:
        """Its units."""

    def forward(self, leg: int, x: Tensor | None) -> UnitOutput:
        """Runs this stage's part of a unit, and updates the stage's memory of the microbatch."""

    def replace_memory(self, f: Callable[[Tensor], Tensor]) -> None:
        """Puts f(t) in the place of every tensor t in that memory."""

    def message(self, leg: int) -> Tensor:
        """An empty tensor like the hidden states of a unit."""


class Key(NamedTuple):
    """A hidden state, or the gradient of one, by the unit that takes it. (A unit may take one from
    its own next
    stage and one from round the ring.)"""

    backward: bool
    microbatch: int
    leg: int
    ring: bool


def _key(message: Message) -> Key:
    return Key(message.backward, message.microbatch, message.leg, message.ring)


@dataclass
class _Arrival:
    """A tensor for a later unit: at hand, or on its way."""

    tensor: Tensor
    work: dist.Work | None = None

    def get(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.tensor


@dataclass
class _Unit:
    """What is kept of a unit until its backward."""

    x: Tensor | None  # what came in, if its gradient goes back
    # What left the stage and what stayed: only their places in the graph, so that their values need
    # not be kept.
    # and where its gradient comes
    sent: list[tuple[GradientEdge, Key]] = field(default_factory=list)
    # and its copy in the next unit
    kept: list[tuple[GradientEdge, Tensor]] = field(default_factory=list)
    loss: Tensor | None = None


class Pipeline:
    """One step, or one evaluation, on this rank's stage."""

    def __init__(
        self, streams: Sequence[Stream], schedule: Schedule, loss_scale: Tensor | float | None
    ) -> None:
        """
        Args:
            streams: the microbatches. schedule: made of their legs, the same on every stage.
            loss_scale: see `parallel.engine.Engine.loss_scale`; None: there is no backward.
        """
        self._streams, self._schedule = streams, schedule
        self._trains, self._loss_scale = (
            loss_scale is not None,
            0.0 if loss_scale is None else loss_scale,
        )
        self._stage, self._group = mesh.pp_rank(), mesh.pp_group()
        self._inbox: dict[Key, _Arrival] = {}
        self._outbox: dict[Key, Tensor] = {}
        self._units: dict[tuple[int, int], _Unit] = {}
        self._sending: deque[tuple[dist.Work, Tensor]] = deque()

    def run(self) -> None:
        """Carries out this stage's steps; returns when everything it sent has gone, and all that
        came is taken.
        """
        for step in self._schedule.steps[self._stage]:
            if step.action is not None:
                self._note("computes", step.action)
                (self._backward if step.action.backward else self._forward)(step.action)
            if step.messages:
                self._post(step.messages)
        for work, _ in self._sending:
            work.wait()
        assert not self._inbox, (
            f"a receive that nobody waits for would break later messages: {list(self._inbox)}"
        )

    def _note(self, what: str, action: Action) -> None:
        leg = self._streams[action.microbatch].legs[action.leg]
        direction = "backward" if action.backward else "forward"
        watchdog.doing(
            what,
            f"{direction} of microbatch {action.microbatch}, window {leg.window}, pass {leg.number}",
        )

    # ---- units

    def _forward(self, action: Action) -> None:
        stream, s = self._streams[action.microbatch], self._stage
        leg, m, number = stream.legs[action.leg], action.microbatch, action.leg
        wants = self._trains and (leg.comes_back(s - 1) if s > leg.first else leg.returns)
        x = self._take_in(action, leg)
        if x is not None:
            x.requires_grad_(wants)
        with torch.set_grad_enabled(self._trains):
            passed = stream.forward(number, x)
        unit = _Unit(x if wants else None, loss=passed.loss)
        if passed.h is not None and s == leg.turn and leg.loops:
            target = stream.legs[number + 1].first
            self._hand_on(Key(False, m, number + 1, True), passed.h.detach(), target)
            self._expect(unit, passed.h, Key(True, m, number, True))
        onward = passed.h if s < leg.turn else passed.y
        if onward is not None and s < leg.last:
            self._hand_on(Key(False, m, number, False), onward.detach(), s + 1)
            self._expect(unit, onward, Key(True, m, number, False))
        if self._trains:
            stream.replace_memory(lambda t: self._cut(t, unit))
            self._units[m, number] = unit

    def _take_in(self, action: Action, leg: Leg) -> Tensor | None:
        """What a unit's forward begins with; None where it begins with tokens."""
        if self._stage > leg.first:
            key = Key(False, action.microbatch, action.leg, False)
        elif leg.number > 1:
            key = Key(False, action.microbatch, action.leg, True)
        else:
            return None
        return self._receive(key, action)

    def _receive(self, key: Key, action: Action) -> Tensor:
        """What an action needs from elsewhere, as soon as it is here."""
        self._note("waits for what it needs in", action)
        tensor = self._inbox.pop(key).get()
        self._note("computes", action)
        return tensor

    @staticmethod
    def _expect(unit: _Unit, output: Tensor, key: Key) -> None:
        """Notes where the gradient of what left the stage goes on when it comes."""
        if output.requires_grad:
            unit.sent.append((get_gradient_edge(output), key))

    @staticmethod
    def _cut(tensor: Tensor, unit: _Unit) -> Tensor:
        """Takes what a unit leaves in memory out of its graph; the copy collects the gradient of
        later units.
        """
        if not tensor.requires_grad or tensor.is_leaf:
            return tensor
        copy = tensor.detach().requires_grad_()
        unit.kept.append((get_gradient_edge(tensor), copy))
        return copy

    def _backward(self, action: Action) -> None:
        m, leg = action.microbatch, self._streams[action.microbatch].legs[action.leg]
        unit = self._units.pop((m, action.leg))
        outputs, gradients = [], []
        for output, key in unit.sent:
            if key in self._inbox:
                outputs.append(output)
                gradients.append(self._receive(key, action))
        for output, copy in unit.kept:
            if copy.grad is not None:
                outputs.append(output)
                gradients.append(copy.grad)
        if unit.loss is not None:
            outputs.append(get_gradient_edge(unit.loss))
            gradients.append(unit.loss.new_ones(()) * self._loss_scale)
        if outputs:
            torch.autograd.backward(outputs, gradients)
        if unit.x is not None:
            gradient = torch.zeros_like(unit.x) if unit.x.grad is None else unit.x.grad
            if self._stage > leg.first:
                self._hand_on(Key(True, m, action.leg, False), gradient, self._stage - 1)
            else:
                self._hand_on(
                    Key(True, m, action.leg - 1, True),
                    gradient,
                    self._streams[m].legs[action.leg - 1].turn,
                )

    # ---- messages

    def _hand_on(self, key: Key, tensor: Tensor, stage: int) -> None:
        """To another stage with this step's messages, or to a later unit here."""
        if stage == self._stage:
            self._inbox[key] = _Arrival(tensor)
        else:
            self._outbox[key] = tensor

    def _post(self, messages: Sequence[Message]) -> None:
        """Begins this step's sends and receives, all at once; only sends of long ago are waited
        for.
        """
        # a send keeps its tensor until it is waited for
        while len(self._sending) > SENDS_UNDER_WAY:
            self._sending.popleft()[0].wait()
        operations = []
        for message in messages:
            if message.source == self._stage:
                tensor, other = self._outbox.pop(_key(message)).contiguous(), message.target
            else:
                tensor, other = (
                    self._streams[message.microbatch].message(message.leg),
                    message.source,
                )
            begin = dist.isend if message.source == self._stage else dist.irecv
            operations.append(
                dist.P2POp(begin, tensor, dist.get_global_rank(self._group, other), self._group)
            )
        works = dist.batch_isend_irecv(operations)
        if len(works) < len(operations):  # NCCL makes one of them all
            works = works * len(operations)
        for message, operation, work in zip(messages, operations, works, strict=False):
            if message.source == self._stage:
                self._sending.append((work, operation.tensor))
            else:
                self._inbox[_key(message)] = _Arrival(operation.tensor, work)
