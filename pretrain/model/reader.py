"""Around the loop: its constants (`Reader`), memory and output, and a window's begin and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from parallel import mesh
from parallel.passes import Pass
from parallel.state import BlockState, State, map_blocks
from parallel.window import Window, open_window
from pretrain.data.batch import Batch
from pretrain.model.hybrid import HybridLM
from pretrain.model.plan import Agree, WindowPlan, alone, plan_passes, plan_windows
from pretrain.model.probe import Probe
from pretrain.model.stop_rule import StopRule

# Takes a window's plan, and y [n, D] and targets [n] of its scored positions; returns losses [n].
Head = Callable[[WindowPlan, Tensor, Tensor], Tensor]


class Output(NamedTuple):
    """The result of reading a batch."""

    loss: Tensor  # [] at least fp32, sum of cross-entropy over the scored positions, differentiable
    window_loss: Tensor  # [W] the same by window, detached; both are over this rank's tokens only
    # fast weights for the next batch, detached; None if no row's document goes on
    state: State | None


class Memory(NamedTuple):
    """What a stage keeps of a batch from one pass to the next."""

    state: State
    # The core's memory after the wake pass, for the rows that do not sleep.
    woke: tuple[BlockState, ...] | None = None
    # The wake pass's h, kept until the coda reads it, for the rows that are predicted from it.
    woke_h: Tensor | None = None
    # The core's memory at the window's start, if passes do not carry S.
    found: tuple[BlockState, ...] | None = None

    def map(self, f: Callable[[Tensor], Tensor]) -> Memory:
        """f applied tensor by tensor."""
        return Memory(
            self.state.map(f),
            None if self.woke is None else map_blocks(f, self.woke),
            None if self.woke_h is None else f(self.woke_h),
            None if self.found is None else map_blocks(f, self.found),
        )


@dataclass(frozen=True, eq=False)
class Reader:
    """What is constant while a batch is read, with all blocks or those of one pipeline stage."""

    model: HybridLM
    windows: tuple[WindowPlan, ...]
    tokens: Tensor  # [B, T] int64; this and the next two on the model's device
    targets: Tensor  # [B, T] int64
    valid: Tensor  # [B, T] bool
    carries: bool  # some row's document goes on in the next batch
    recompute: str  # what a unit keeps for backward, see `parallel.recompute`
    probe: Probe | None
    head: Head
    stop: StopRule | None = None  # ends the sleep of rows that have settled

    @staticmethod
    def of(
        model: HybridLM,
        batch: Batch,
        state: State | None = None,
        *,
        passes: int | None = None,
        recompute: str = "none",
        probe: Probe | None = None,
        head: Head | None = None,
        stop: StopRule | None = None,
        agree: Agree = alone,
    ) -> Reader:
        """Plans the windows and moves the batch to the device; see `SleepLM.forward`."""
        past = 0 if state is None else state.past
        windows = plan_windows(
            batch, model.sleep, passes=passes, past=past, agree=agree,
            share=(mesh.cp_rank(), mesh.cp_size()),
        )  # fmt: skip
        if model.graphs and torch.is_grad_enabled():
            model.graphs.begin()
        tokens, targets, valid = (
            moved(t, model.device) for t in (batch.tokens, batch.targets, batch.valid)
        )
        return Reader(
            model, windows, tokens, targets, valid, carries=bool(batch.carries.any()),
            recompute=recompute, probe=probe, stop=stop,
            head=head
            or (lambda _, y, targets: model.losses(y, targets, recompute=recompute != "none")),
        )  # fmt: skip

    def start(self, state: State | None) -> Memory:
        """The memory that the batch starts with: the previous batch's, or an empty one."""
        if state is None:
            past = self.windows[0].past if self.windows else 0
            state = self.model.empty_state(len(self.tokens), past)
        return Memory(state)

    def passes(self, w: WindowPlan) -> tuple[Pass, ...]:
        """The passes of a window, over this model's blocks and stages."""
        return plan_passes(w, self.model.config, self.model.sleep, self.model.stage)

    def run(
        self, p: Pass, blocks: range, h: Tensor, state: State, window: Window
    ) -> tuple[Tensor, State]:
        """Runs those of a pass's `blocks` that are on this stage."""
        return self.model.run(
            blocks, h, state, window, policy=self.recompute, write_only=p.write_only
        )

    def to_device(self, tensor: Tensor) -> Tensor:
        """Moves a tensor of the plan to the device; the host does not wait."""
        return moved(tensor, self.model.device)

    def output(self, losses: Mapping[int, Tensor], memory: Memory) -> Output:
        """The result, once all passes are done.

        Args:
            losses: [] of each scored window, by its index; only the last pipeline stage has them.
        """
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        zero = torch.zeros((), device=self.model.device, dtype=dtype)
        W = -(-self.tokens.shape[1] // self.model.sleep.window)
        by_window = torch.stack([losses.get(w, zero).detach() for w in range(W)])
        total = torch.stack(list(losses.values())).sum() if losses else zero
        return Output(total, by_window, memory.state.detach() if self.carries else None)


def begin_window(
    reader: Reader, w: WindowPlan, memory: Memory, *, stays_open: bool = False
) -> tuple[Window, Memory]:
    """Opens a window (`stays_open`: its tokens come in several calls); new documents forget."""
    state, config = memory.state, reader.model.sleep
    if w.cut:
        state = state.detach()
    if w.has_starts:
        state = state.begin_documents(reader.to_device(w.starts))
    window = open_window(
        reader.model.config, state, reader.valid[:, w.tokens], has_pad=w.has_pad,
        width=config.reach, sliding=config.slides, stays_open=stays_open,
    )  # fmt: skip
    return window, Memory(state)


def end_window(reader: Reader, w: WindowPlan, window: Window, memory: Memory) -> Memory:
    """Ends a window: drops keys and values (all but the newest under sliding eviction), keeps S."""
    keep, state, config = 0, memory.state, reader.model.sleep
    if config.slides:
        keep, state = config.reach - 1, state._replace(attendable=window.attendable)
    with grad(w.has_grad):
        state = state.end_window(keep, w.width)
    if reader.probe is not None:
        reader.probe.end_window(state)
    if w.is_last and not reader.carries:
        # free the memory now: a pipeline holds all microbatches until the end of the step
        return Memory(reader.model.empty_state(0))
    return Memory(state)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor, copied to the device asynchronously."""
    pinned = tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor
    return pinned.to(device, non_blocking=True)


@contextmanager
def grad(enabled: bool) -> Iterator[None]:
    """Inside, autograd records only if `enabled`, and if the caller has gradients enabled."""
    with torch.set_grad_enabled(enabled and torch.is_grad_enabled()):
        yield
