"""The loop of the method: read a window, sleep over it, forget all of it but the fast weights.

Algorithm 1 of "Do Language Models Need Sleep?" (arXiv 2605.26099), in the form that also covers
plain pretraining (docs/method.md): pass 1 of a window is the wake pass, passes 2..N are the sleep.

    h     hidden states of the window, from pass to pass
    S     fast weights, from window to window: in the state of a `Memory`, an immutable value

`SleepLM.forward` is the loop in one process. Pipeline stages (`pretrain.run.step`) run the same
`one_pass`, each its own part, when the schedule says so; sessions (`pretrain.inference`) run it
too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel import watchdog
from parallel.layers import all_tokens, broadcast_rows
from parallel.passes import Pass
from parallel.pipeline import UnitOutput
from parallel.state import State, choose_rows
from parallel.window import Window
from pretrain.data.batch import Batch
from pretrain.model.hybrid import HybridLM
from pretrain.model.plan import Agree, alone
from pretrain.model.probe import Probe
from pretrain.model.reader import Head, Memory, Output, Reader, begin_window, end_window, grad
from pretrain.model.stop_rule import StopRule


class SleepLM(HybridLM):
    """A hybrid model that sleeps over what it has read."""

    def forward(
        self,
        batch: Batch,
        state: State | None = None,
        *,
        passes: int | None = None,
        recompute: str = "none",
        probe: Probe | None = None,
        head: Head | None = None,
        stop: StopRule | None = None,
        agree: Agree = alone,
    ) -> Output:
        """Reads a batch and sums its loss; gradients flow through every pass and window.

        Args:
            batch: on the CPU; tensors are moved to the model's device here.
            state: the rows' memory from the previous batch; None: no document continues from there.
            passes: N, if not the configuration's.
            recompute: what a (window, pass) keeps for backward, see `parallel.recompute`.
            probe: collects norms on logging steps.
            head: computes a window's losses in place of the model's own.
            stop: ends the sleep of rows that have settled; only without backpropagation.
            agree: over data-parallel ranks, see `pretrain.model.plan`.
        """
        reader = Reader.of(
            self, batch, state, passes=passes, recompute=recompute, probe=probe, head=head,
            stop=stop, agree=agree,
        )  # fmt: skip
        memory, losses = reader.start(state), {}
        for w in reader.windows:
            window, memory = begin_window(reader, w, memory)  # new documents start with S = 0
            h = None
            for p in reader.passes(w):  # 1: wake; 2..N: sleep
                watchdog.part("window", w.index, "pass", p.number)
                (h, _, loss), memory = one_pass(reader, p, window, h, memory)
                if loss is not None:
                    losses[w.index] = loss
            memory = end_window(reader, w, window, memory)  # keys and values are dropped, S stays
        return reader.output(losses, memory)


def one_pass(
    reader: Reader, p: Pass, window: Window, x: Tensor | None, memory: Memory
) -> tuple[UnitOutput, Memory]:
    """A pass over a window, or a pipeline stage's part of it: the unit of work of a schedule.

    Args:
        x: h from the previous stage or pass; y beyond the core; None: embed the tokens.
    """
    stage, h, y, loss = reader.model.stage.index, None, x, None
    if p.runs_core(stage):
        h, memory = (wake if p.number == 1 else sleep)(reader, p, window, x, memory)
        y = h
    if p.runs_coda(stage):
        y, loss, memory = predict(reader, p, window, y, memory)
    return UnitOutput(h, y, loss), memory


def wake(
    reader: Reader, p: Pass, window: Window, h: Tensor | None, memory: Memory
) -> tuple[Tensor, Memory]:
    """Reads the tokens: embedding, prelude and core.

    Args:
        h: [B, t, D], or the sequence-parallel stream, from the previous stage; None: embed.
    Returns:
        h of that shape after this stage's core, and the memory that sleep starts from.
    """
    model, w = reader.model, reader.windows[p.window]
    window.record_decay = reader.probe.record_decay if reader.probe else None
    with grad(w.has_grad):
        if h is None:
            h = model.embedded(reader.tokens[:, w.own])
        h, state = reader.run(p, p.prelude, h, memory.state, window)
    found = None
    if p.loops and model.sleep.carries == "h":  # a control: every pass begins with this S
        kept = state.detach(model.core) if w.truncated > 0 else state
        found = kept.blocks[model.core]
    h, state = run_core(reader, p, h, state, window)
    window.record_decay = None  # recomputation in backward must not record it again
    # woke: memory of rows that do not sleep; woke_h: what rows with targets are predicted from
    woke = state.blocks[model.core] if p.loops and w.some_stay_awake else None
    is_read_later = w.any_scored and not p.reads and model.stage.index == p.core_end
    woke_h = h if is_read_later and not model.sleep.is_looped else None
    return h, Memory(state, woke, woke_h, found)


def sleep(
    reader: Reader, p: Pass, window: Window, h: Tensor | None, memory: Memory
) -> tuple[Tensor, Memory]:
    """Runs the core once more, on its own output, for the sake of what it writes into S.

    Args:
        h: [B, t, D], or the sequence-parallel stream, from the previous pass or stage.
    Returns:
        h of that shape after this stage's core, and the memory; after the last pass, rows that do
        not sleep get back their memory of the wake pass.
    """
    assert h is not None, "only the wake pass begins with the embedding"
    core, w, stop = reader.model.core, reader.windows[p.window], reader.stop
    x, state = h, memory.state
    if stop is None or stop.goes_on(w, p):
        if memory.found is not None:  # a control: discards what the previous pass wrote
            state = state.with_blocks(core, memory.found)
        state = state.begin_pass(core)
        if p.detaches:  # h is detached on the pass's first stage, S on every stage
            x = x.detach() if reader.model.stage.index == p.first_stage else x
            state = state.detach(core)
        if reader.model.sleep.carries == "S":  # a control: discards the previous pass's h
            with grad(p.core_has_grad):
                x = reader.model.embedded(reader.tokens[:, w.own])
        x, state = run_core(reader, p, x, state, window)
        h, state = stop.keep(w, core, (h, memory.state), (x, state)) if stop else (x, state)
    if p.loops or memory.woke is None:
        return h, memory._replace(state=state)
    with grad(w.has_grad):
        chosen = choose_rows(reader.to_device(w.sleeps), state.blocks[core], memory.woke)
    return h, memory._replace(state=state.with_blocks(core, chosen), woke=None)


def predict(
    reader: Reader, p: Pass, window: Window, y: Tensor | None, memory: Memory
) -> tuple[Tensor | None, Tensor | None, Memory]:
    """Runs the coda, and on the last stage head and cross-entropy.

    Args:
        y: [B, t, D], or the sequence-parallel stream, from the core or the previous stage.
    Returns:
        y of that shape after this stage's coda, None if there is a loss; the sum of the losses [],
        None on other stages and in unscored windows; the memory.
    """
    assert y is not None, "the core, or the stage before, gives what is read"
    model, w = reader.model, reader.windows[p.window]
    with grad(w.has_grad):
        if memory.woke_h is not None:  # rows with targets are predicted from the wake pass
            rows = broadcast_rows(reader.to_device(w.has_targets), w.own_width)
            y, memory = torch.where(rows, memory.woke_h, y), memory._replace(woke_h=None)
        y, state = reader.run(p, p.coda, y, memory.state, window)
        memory = memory._replace(state=state)
        if not (w.any_scored and model.stage.is_last):
            return y, None, memory
        index = reader.to_device(w.scored_index)
        targets = reader.targets[:, w.own].flatten()[index]  # [n]
        y = all_tokens(y)[index]  # [n, D]
        return None, reader.head(w, y, targets).sum(), memory


def run_core(
    reader: Reader, p: Pass, h: Tensor, state: State, window: Window
) -> tuple[Tensor, State]:
    """Runs the core of a pass, and lets the probe record it."""
    with grad(p.core_has_grad):
        h, after = reader.run(p, p.core, h, state, window)
    if reader.probe is not None:
        reader.probe.after_pass(p.number, state, after)
    return h, after
