"""Forward and backward of one step's microbatches, on any layout of ranks.

With one stage, the sleep loop runs from end to end and autograd sees all of it. With several, every
stage reads the same rows, plans the same windows and passes, and does its part of each in the order
of one common schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parallel import mesh, watchdog
from parallel.engine import Engine
from parallel.layers import empty_stream
from parallel.passes import Pass
from parallel.pipeline import Pipeline, UnitOutput
from parallel.schedule import step_schedule
from parallel.state import State
from parallel.window import Window
from pretrain.config.schema import ParallelConfig
from pretrain.data.batch import Batch
from pretrain.model.probe import Probe
from pretrain.model.reader import Head, Output, Reader, begin_window, end_window
from pretrain.model.sleep import SleepLM, one_pass
from pretrain.model.stop_rule import StopRule
from pretrain.run.agreement import agreement, check_same_rows


def accumulate(
    engine: Engine,
    model: SleepLM,
    parts: Sequence[Batch],
    states: Sequence[State | None],
    n_scored: Tensor | int,
    parallel: ParallelConfig,
    probe: Probe | None = None,
    passes: int | None = None,
) -> list[Output]:
    """Accumulates the gradients of all microbatches in the engine.

    Args:
        parts: this data-parallel rank's microbatches. states: each one's memory from the previous
            batch.
        n_scored: the divisor of the sum of losses over all ranks and microbatches.
        passes: N of this step, the same on all ranks (None: the configuration's).
    Returns:
        The outputs of the microbatches, detached. A pipeline stage has its own memory; only the
        last stage has losses.
    """
    check_same_rows(parts)
    if mesh.pp_size() > 1:
        streams = [
            StageStream(
                Reader.of(
                    model, part, state, passes=passes, recompute=parallel.recompute, probe=probe
                ),
                state,
            )
            for part, state in zip(parts, states, strict=True)
        ]
        with engine.accumulating():
            run_stage(streams, parallel.recompute, engine.loss_scale(n_scored))
        return [stream.output() for stream in streams]
    agree, outputs = agreement(parallel.zero), []
    for m, (part, state) in enumerate(zip(parts, states, strict=True)):
        watchdog.doing("in the forward of microbatch", m)
        out = engine(
            part, state, passes=passes, recompute=parallel.recompute, probe=probe, agree=agree
        )
        watchdog.doing("in the backward of microbatch", m)
        engine.backward(out.loss, n_scored)
        outputs.append(out._replace(loss=out.loss.detach()))
    return outputs


@torch.no_grad()
def read(
    model: SleepLM,
    parts: Sequence[Batch],
    heads: Sequence[Head],
    passes: int | None = None,
    zero: int = 0,
    stop: StopRule | None = None,
    states: Sequence[State | None] = (),
) -> None:
    """Reads microbatches without gradients; the heads collect the results.

    Args:
        heads: one per microbatch, see `SleepLM.forward`; called on the last stage only.
        passes: N (None: the configuration's).
        zero: the ZeRO stage that the weights are sharded with.
        stop: ends the sleep of rows that have settled.
        states: the memory that each starts with; empty: S = 0.
    """
    check_same_rows(parts)
    if mesh.pp_size() > 1:
        assert stop is None and not states, "only one stage knows of these"
        run_stage(
            [
                StageStream(Reader.of(model, part, passes=passes, head=head))
                for part, head in zip(parts, heads, strict=True)
            ]
        )
        return
    begins = states or [None] * len(parts)
    for m, (part, head, state) in enumerate(zip(parts, heads, begins, strict=True)):
        watchdog.doing("evaluating microbatch", m)
        model(part, state, passes=passes, head=head, stop=stop, agree=agreement(zero))


class StageStream:
    """A microbatch that one pipeline stage reads, unit by unit, for `parallel.pipeline`."""

    def __init__(self, reader: Reader, state: State | None = None) -> None:
        """
        Args:
            state: the rows' memory from the previous batch.
        """
        self.reader, self.memory = reader, reader.start(state)
        self.passes: tuple[Pass, ...] = tuple(p for w in reader.windows for p in reader.passes(w))
        self._losses: dict[int, Tensor] = {}  # by window
        self._window: Window | None = None  # the one that is being read
        self._read = 0  # windows done so far
        stage = reader.model.stage.index
        # By window, the last unit that visits this stage.
        self._ends = {p.window: n for n, p in enumerate(self.passes) if p.visits(stage)}

    def forward(self, unit: int, x: Tensor | None) -> UnitOutput:
        """Runs this stage's part of a unit."""
        p = self.passes[unit]
        if self._window is None:
            self._go_to(p.window)
            w = self.reader.windows[p.window]
            self._window, self.memory = begin_window(self.reader, w, self.memory)
        output, self.memory = one_pass(self.reader, p, self._window, x, self.memory)
        if output.loss is not None:
            self._losses[p.window] = output.loss.detach()
        if unit == self._ends[p.window]:
            self._end(p.window, self._window)
        return output

    def _go_to(self, index: int) -> None:
        """Skips the windows before `index`, in which this stage has nothing to do."""
        while self._read < index:
            w = self.reader.windows[self._read]
            window, self.memory = begin_window(self.reader, w, self.memory)
            self._end(self._read, window)

    def _end(self, index: int, window: Window) -> None:
        w = self.reader.windows[index]
        self.memory = end_window(self.reader, w, window, self.memory)
        self._window, self._read = None, index + 1

    def empty_message(self, unit: int) -> Tensor:
        """An uninitialised tensor like the hidden states of a unit."""
        model, w = self.reader.model, self.reader.windows[self.passes[unit].window]
        return empty_stream(len(self.reader.tokens), w.own_width, model.config.d_model, model.dtype)

    def output(self) -> Output:
        """The result, detached, once all units are done."""
        self._go_to(len(self.reader.windows))
        return self.reader.output(self._losses, self.memory)


def run_stage(
    streams: Sequence[StageStream],
    recompute: str = "none",
    loss_scale: Tensor | float | None = None,
) -> None:
    """Runs this stage's part of all microbatches: forward and, given a `loss_scale`, backward."""
    passes = tuple(stream.passes for stream in streams)
    schedule = step_schedule(passes, mesh.pp_size(), recompute, loss_scale is None)
    Pipeline(streams, schedule, loss_scale).run()
