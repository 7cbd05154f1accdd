"""The loop: read a window, sleep over it, forget all of it but the fast weights.

Algorithm 1 of "Do Language Models Need Sleep?" (arXiv 2605.26099), in the form that also covers plain
pretraining (docs/method.md): pass 1 of a window is the wake pass, passes 2..N are the sleep.

    for each window c:
        h = Embed(c); h, S = Prelude(h, S)
        h, S = Core(h, S)                                    wake
        if c has targets:  y, S = Coda(h, S); loss += CrossEntropy(Head(y))
        if c sleeps:       repeat N-1 times: h, S = Core(h, S)
        if c has no targets: h, S = Coda(h, S)
        end the window: keys and values are dropped, S stays
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from parallel.recompute import kept, run_unit
from parallel.state import State, choose_rows
from parallel.window import Window, open_window
from pretrain.batch import IGNORE, Batch
from pretrain.config import SleepConfig
from pretrain.probe import Probe

if TYPE_CHECKING:
    from pretrain.model import HybridLM


class Output(NamedTuple):
    """What reading a batch gives."""

    loss: Tensor  # [] at least fp32, sum of cross-entropy over the scored positions, differentiable
    window_loss: Tensor  # [W] the same by window, detached
    state: State | None  # fast weights for the next batch, detached; None if no row's document goes on


@dataclass
class WindowPlan:
    """What happens in one window, decided on the host before anything runs."""

    tokens: slice  # of the sequence
    starts: Tensor  # [B] bool, rows in which a document begins
    scored: Tensor  # [n] int64, flat indices into the window's [B, width] of its scored positions
    has_targets: Tensor  # [B] bool
    sleeps: Tensor  # [B] bool, rows that make passes 2..N
    has_pad: bool
    keeps_graph: bool  # some scored position can be reached from here by backpropagation
    cut: bool  # backpropagation through windows is truncated before this one
    carried: bool  # the window only sleeps for the next batch, to which no gradient flows

    @property
    def width(self) -> int:
        """Tokens of this window: L, or fewer in a sequence's last."""
        return int(self.tokens.stop - self.tokens.start)


def plan(batch: Batch, config: SleepConfig) -> list[WindowPlan]:
    """The windows of a batch up to the last one that matters. A pure function, on CPU data."""
    B, T = batch.size
    L, W = config.window, batch.starts.shape[1]
    last = W - 1  # of the sequence, scored or not, so that truncation does not depend on what other rows score
    targets = [batch.targets[:, w * L : (w + 1) * L] != IGNORE for w in range(W)]
    scored = [w for w in range(W) if targets[w].any()]
    if not batch.carries.any():  # what follows the last scored window changes nothing
        W = scored[-1] + 1 if scored else 0
    j = config.truncate_windows
    plans = []
    for w in range(W):
        has_targets = targets[w].any(dim=1)
        sleeps = ~has_targets if config.when == "context" else torch.ones(B, dtype=torch.bool)
        if w + 1 < batch.starts.shape[1]:  # what a document leaves behind at its end is forgotten
            sleeps = sleeps & ~batch.starts[:, w + 1]
        if w == W - 1:  # the sequence's last window sleeps only for a document that goes on
            sleeps = sleeps & batch.carries
        segment_end = last - (last - w) // j * j if j else last  # segments of j, counted from the end
        plans.append(
            WindowPlan(
                tokens=slice(w * L, min((w + 1) * L, T)),
                starts=batch.starts[:, w],
                scored=targets[w].flatten().nonzero()[:, 0],
                has_targets=has_targets,
                sleeps=sleeps,
                has_pad=not bool(batch.valid[:, w * L : (w + 1) * L].all()),
                keeps_graph=any(w <= s <= segment_end for s in scored),
                cut=bool(j) and w > 0 and (last + 1 - w) % j == 0,
                carried=w == W - 1,
            )
        )
    return plans


Head = Callable[[WindowPlan, Tensor, Tensor], Tensor]


@contextmanager
def _graph(enabled: bool) -> Iterator[None]:
    """Builds the autograd graph only where backpropagation will pass (and the caller wants it at all)."""
    with torch.set_grad_enabled(enabled and torch.is_grad_enabled()):
        yield


def run(
    model: HybridLM,
    batch: Batch,
    state: State | None = None,
    passes: int | None = None,
    recompute: str = "none",
    probe: Probe | None = None,
    head: Head | None = None,
) -> Output:
    """Reads a batch and sums its loss; backpropagation goes through every pass and window.

    Args:
        batch: on the CPU; tensors are moved to the model's device here.
        state: memory of the rows from the batch before, for documents that go on; None: none does.
        passes: N, if other than the model's configuration says.
        recompute: what a (window, pass) unit keeps for backward, see `parallel.recompute`.
        probe: collects norms on logging steps.
        head: takes (plan, y [n, D], targets [n]) of a window's scored positions and gives their losses [n],
            in place of the model's own head (an evaluation looks at each position this way).
    """
    config = model.sleep
    head = head or (lambda _, y, goal: model.losses(y, goal))
    N = passes or config.passes
    plans = plan(batch, config)
    device = model.norm.weight.device
    tokens, targets, valid = (t.to(device, non_blocking=True) for t in (batch.tokens, batch.targets, batch.valid))
    state = model.empty_state(batch.size[0]) if state is None else state
    window_losses: list[Tensor] = []

    for p in plans:
        if p.cut:
            state = state.detach()
        if p.starts.any():
            state = state.begin_documents(p.starts.to(device, non_blocking=True))
        with _graph(p.keeps_graph):
            window = (tokens[:, p.tokens], targets[:, p.tokens], valid[:, p.tokens])
            loss, state = run_window(model, p, *window, state, N, recompute, probe, head)
        window_losses.append(loss)
        if probe is not None:
            probe.end_window(state)

    losses = torch.stack(window_losses) if window_losses else tokens.new_zeros(0, dtype=torch.float32)
    unread = losses.new_zeros(batch.starts.shape[1] - len(plans))
    carried = state.detach() if bool(batch.carries.any()) else None
    return Output(losses.sum(), torch.cat([losses.detach(), unread]), carried)


def run_window(
    model: HybridLM,
    p: WindowPlan,
    tokens: Tensor,
    targets: Tensor,
    valid: Tensor,
    state: State,
    N: int,
    recompute: str,
    probe: Probe | None,
    head: Head,
) -> tuple[Tensor, State]:
    """One window: wake, score, sleep, forget. tokens, targets, valid: [B, T]. Returns its loss and the state."""
    config = model.sleep
    sliding = config.eviction == "sliding"
    window = open_window(model.config, state, valid, p.has_pad, config.window, sliding)
    if probe is not None:
        window.record_decay = probe.record_decay
    N = N if bool(p.sleeps.any()) else 1
    all_scored, any_scored = bool(p.has_targets.all()), bool(p.has_targets.any())
    has_coda = config.coda > 0
    # The core's last output is read by the coda, or by the head when it is the wake pass of a scored window.
    core_is_read = has_coda and not all_scored
    truncated = N - config.truncate_passes if config.truncate_passes else 0  # passes out of backpropagation's reach

    def core(number: int, h: Tensor, before: State) -> tuple[Tensor, State]:
        dead_end = number == N and not core_is_read and not (number == 1 and any_scored)
        reached = number > truncated or (number == 1 and any_scored)
        with _graph(reached and not (p.carried and number > 1)):
            h, after = run_part(model, model.core, h, before, window, recompute, dead_end)
        if probe is not None:
            probe.after_pass(number, before, after)
        return h, after

    h = model.embed(tokens)
    h, state = run_part(model, model.prelude, h, state, window, recompute)
    wake, state = core(1, h, state)
    window.record_decay = None

    h = wake
    everyone = bool(p.sleeps.all())
    mask = None if everyone else p.sleeps.to(h.device, non_blocking=True)
    awake = state
    for number in range(2, N + 1):
        if number == truncated + 1:  # the wake pass's own loss still reaches everything before
            h, state = h.detach(), state.detach(model.core)
        h, state = core(number, h, state.begin_pass(model.core))
    if N > 1 and mask is not None:
        state = choose_rows(mask, state, awake)

    y = wake
    if has_coda:
        if not any_scored:
            y = h
        elif not all_scored:
            y = torch.where(p.has_targets.to(h.device, non_blocking=True)[:, None, None], wake, h)
        y, state = run_part(model, model.coda, y, state, window, recompute, dead_end=not any_scored)

    loss = torch.zeros((), device=tokens.device)
    if any_scored:
        scored = p.scored.to(tokens.device, non_blocking=True)
        y, goal = y.flatten(0, 1)[scored], targets.flatten()[scored]  # [n, D], [n]
        loss = kept(head, p, y, goal, recompute=recompute != "none").sum()
    attendable = window.attendable if sliding else state.attendable
    keep = config.window - 1 if sliding else 0
    return loss, state._replace(attendable=attendable).end_window(keep, tokens.shape[1])


def run_part(
    model: HybridLM,
    part: slice,
    h: Tensor,
    state: State,
    window: Window,
    recompute: str,
    dead_end: bool = False,
) -> tuple[Tensor, State]:
    """Runs one part of the blocks as one unit; the other blocks' state is left as it is."""
    blocks = model.run_blocks(part)
    if not blocks:
        return h, state
    h, done = run_unit(blocks, h, state.blocks[part], window, recompute, dead_end)
    return h, state._replace(blocks=state.blocks[: part.start] + done + state.blocks[part.stop :])
