"""The loop: read a window, sleep over it, forget all of it but the fast weights.

Algorithm 1 of "Do Language Models Need Sleep?" (arXiv 2605.26099), in the form that also covers
plain pretraining (docs/method.md): pass 1 of a window is the wake pass, passes 2..N are the sleep.

    for each window c:
        h = Embed(c); h, S = Prelude(h, S)
        h, S = Core(h, S)                                    wake
        if c has targets:  y, S = Coda(h, S); loss += CrossEntropy(Head(y))
        if c sleeps:       repeat N-1 times: h, S = Core(h, S)
        if c has no targets: h, S = Coda(h, S)
        end the window: keys and values are dropped, S stays

`run` is that loop in one process. What a single pass does is `Reading.one_pass`; with pipeline
stages each of them does its part of it, in the order of a schedule (`pretrain/run/step.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from parallel import watchdog
from parallel.layers import all_tokens, broadcast_rows
from parallel.pipeline import UnitOutput
from parallel.recompute import kept, run_unit
from parallel.stages import Stage
from parallel.state import State, choose_rows
from parallel.window import Window, open_window
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.probe import Probe

if TYPE_CHECKING:
    from pretrain.model.hybrid import HybridLM


class Output(NamedTuple):
    """What reading a batch gives."""

    loss: Tensor  # [] at least fp32, sum of cross-entropy over the scored positions, differentiable
    window_loss: Tensor  # [W] the same by window, detached
    # fast weights for the next batch, detached; None if no row's document goes on
    state: State | None


@dataclass
class WindowPlan:
    """What happens in one window, decided on the host before anything runs.

    What decides which layers run, and in what order, is agreed over the data-parallel ranks
    (`plan`); what differs by row is this rank's own.
    """

    index: int  # of the window in its sequence
    tokens: slice  # of the sequence
    starts: Tensor  # [B] bool, rows in which a document begins
    scored: Tensor  # [n] int64, flat indices into the window's [B, width] of its scored positions
    has_targets: Tensor  # [B] bool
    sleeps: Tensor  # [B] bool, rows that make passes 2..N
    has_pad: bool
    passes: int  # N, or 1 where no row sleeps
    any_scored: bool
    all_scored: bool  # every row has targets
    has_coda: bool
    keeps_graph: bool  # some scored position can be reached from here by backpropagation
    # the last window before the next cut of truncated backpropagation: its gradients come this far
    segment: int
    cut: bool  # backpropagation through windows is truncated before this one
    carried: bool  # the window only sleeps for the next batch, to which no gradient flows
    truncated: int  # passes out of backpropagation's reach

    @property
    def width(self) -> int:
        """Tokens of this window: L, or fewer in a sequence's last."""
        return int(self.tokens.stop - self.tokens.start)

    @property
    def reads_at(self) -> int:
        """The pass after which coda and head run: the wake pass if it is what they read in every
        row, else the last.
        """
        return 1 if self.any_scored and (self.all_scored or not self.has_coda) else self.passes

    def write_only(self, number: int) -> bool:
        """Whether nothing reads the h that comes out of the core in this pass."""
        return number == self.passes and not (
            number == self.reads_at and (self.has_coda or self.any_scored)
        )

    def core_graph(self, number: int) -> bool:
        """Whether backpropagation goes through the core in this pass."""
        # the wake pass has a loss of its own
        reached = number > self.truncated or (number == 1 and self.any_scored)
        return self.keeps_graph and reached and not (self.carried and number > 1)

    def detaches(self, number: int) -> bool:
        """Whether backpropagation ends before this pass, at the h and the core's memory that come
        in.
        """
        return 1 < number == self.truncated + 1


Agree = Callable[[Tensor], Tensor]


def alone(bits: Tensor) -> Tensor:
    """The agreement of one rank."""
    return bits


def plan(
    batch: Batch,
    config: SleepConfig,
    passes: int | None = None,
    agree: Agree = alone,
) -> list[WindowPlan]:
    """The windows of a batch up to the last one that matters. A pure function, on CPU data.

    Args:
        passes: N, if other than the configuration says.
        agree: gives the elementwise maximum over the ranks that must run the same layers in the
            same order.
    """
    B, T = batch.size
    N, L, W = passes or config.passes, config.window, batch.starts.shape[1]
    # of the sequence, scored or not, so that truncation does not depend on what other rows score
    last = W - 1
    targets = [batch.targets[:, w * L : (w + 1) * L] != IGNORE for w in range(W)]
    has_targets = torch.stack([t.any(dim=1) for t in targets])  # [W, B]
    sleeps = ~has_targets if config.when == "context" else torch.ones(W, B, dtype=torch.bool)
    sleeps[:-1] &= ~batch.starts.T[1:]  # what a document leaves behind at its end is forgotten
    # The sequence's last window sleeps only for a document that goes on. Which is the last is
    # agreed first.
    bits = [has_targets, ~has_targets, sleeps, sleeps & batch.carries, batch.carries.expand(W, B)]
    any_scored, any_unscored, any_sleeps, any_sleeps_on, goes_on = (
        bit.tolist()
        for bit in agree(torch.stack([b.any(dim=1) for b in bits]).to(torch.int32)).bool()
    )
    scored = [w for w in range(W) if any_scored[w]]
    if not goes_on[0]:  # what follows the last scored window changes nothing
        W = scored[-1] + 1 if scored else 0
    j = config.truncate_windows
    plans = []
    for w in range(W):
        closing = w == W - 1
        # segments of j, counted from the end
        segment_end = last - (last - w) // j * j if j else last
        plans.append(
            WindowPlan(
                index=w,
                tokens=slice(w * L, min((w + 1) * L, T)),
                starts=batch.starts[:, w],
                scored=targets[w].flatten().nonzero()[:, 0],
                has_targets=has_targets[w],
                sleeps=sleeps[w] & batch.carries if closing else sleeps[w],
                has_pad=not bool(batch.valid[:, w * L : (w + 1) * L].all()),
                passes=N if (any_sleeps_on if closing else any_sleeps)[w] else 1,
                any_scored=any_scored[w],
                all_scored=not any_unscored[w],
                has_coda=config.coda > 0,
                keeps_graph=any(w <= s <= segment_end for s in scored),
                segment=segment_end,
                cut=bool(j) and w > 0 and (last + 1 - w) % j == 0,
                carried=closing,
                truncated=0,
            )
        )
        if config.truncate_passes:
            plans[-1].truncated = plans[-1].passes - config.truncate_passes
    return plans


Head = Callable[[WindowPlan, Tensor, Tensor], Tensor]


def run(
    model: HybridLM,
    batch: Batch,
    state: State | None = None,
    passes: int | None = None,
    recompute: str = "none",
    probe: Probe | None = None,
    head: Head | None = None,
    agree: Agree = alone,
) -> Output:
    """Reads a batch and sums its loss; backpropagation goes through every pass and window.

    Args:
        batch: on the CPU; tensors are moved to the model's device here.
        state: memory of the rows from the batch before, for documents that go on; None: none does.
        passes: N, if other than the model's configuration says.
        recompute: what a (window, pass) unit keeps for backward, see `parallel.recompute`.
        probe: collects norms on logging steps.
        head: takes (plan, y [n, D], targets [n]) of a window's scored positions and gives their
            losses [n], in place of the model's own head (an evaluation looks at each position this
            way).
        agree: see `plan`.
    """
    plans = plan(batch, model.sleep, passes, agree)
    reading = Reading(model, batch, plans, state, recompute, probe, head)
    losses = []
    for p in plans:
        h = None
        for number in range(1, p.passes + 1):  # 1: wake; 2..N: sleep
            watchdog.part("window", p.index, "pass", number)
            h, _, loss = reading.one_pass(p, number, h)
            losses += [] if loss is None else [loss]
    out = reading.output()
    return out._replace(loss=torch.stack(losses).sum()) if losses else out


class Route(NamedTuple):
    """The stages that a pass goes through."""

    first: int
    turn: int  # the last one with a part of the core; from here h goes to the next pass
    last: int  # beyond `turn`, stages of the coda and the head


def route(
    p: WindowPlan, number: int, config: ModelConfig, sleep: SleepConfig, stage: Stage
) -> Route:
    """Where pass `number` of a window begins, turns and ends, given how the blocks are split over
    stages.
    """
    begin, end = sleep.prelude, len(config.layers) - sleep.coda

    def last_writer(first: int, last: int) -> int:
        """The stage after which a dead end has nothing more to do; -1: nothing at all."""
        kinds = enumerate(config.layers[first:last], first)
        return max(
            (stage.of(b) for b, kind in kinds if kind == "delta" or sleep.eviction == "sliding"),
            default=-1,
        )

    first = 0 if number == 1 else stage.of(begin)
    turn = last_writer(begin, end) if p.write_only(number) else stage.of(max(end - 1, 0))
    turn = max(turn, stage.of(max(begin - 1, 0)) if number == 1 else first)
    last = turn
    if number == p.reads_at:
        last = (
            len(stage.bounds) - 2
            if p.any_scored
            else max(turn, last_writer(end, len(config.layers)))
        )
    return Route(first, turn, last)


class Memory(NamedTuple):
    """What a stage keeps of a batch from one pass to the next."""

    state: State
    awake: State | None = None  # as the wake pass left it, for the rows that do not sleep
    wake: Tensor | None = None  # the wake pass's h, until the coda reads it

    def map(self, f: Callable[[Tensor], Tensor]) -> Memory:
        """f applied tensor by tensor."""
        awake = None if self.awake is None else self.awake.map(f)
        return Memory(self.state.map(f), awake, None if self.wake is None else f(self.wake))


class Reading:
    """A batch in the middle of being read, by all blocks or by those of one pipeline stage."""

    def __init__(
        self,
        model: HybridLM,
        batch: Batch,
        plans: list[WindowPlan],
        state: State | None,
        recompute: str,
        probe: Probe | None,
        head: Head | None,
    ) -> None:
        self.model, self.batch, self.plans = model, batch, plans
        self.memory: Memory  # from the first window on, and until the last, if no document goes on
        self._given, self._carries = state, bool(batch.carries.any())
        self._recompute, self._probe = recompute, probe
        self._head: Head = head or (lambda _, y, goal: model.losses(y, goal))
        self._tokens, self._targets, self._valid = (
            t.to(model.device, non_blocking=True)
            for t in (batch.tokens, batch.targets, batch.valid)
        )
        routes = [
            [route(p, n, model.config, model.sleep, model.stage) for n in range(1, p.passes + 1)]
            for p in plans
        ]
        self._routes = {p.index: ways for p, ways in zip(plans, routes, strict=True)}
        self._window: Window | None = None  # the one that is being read
        self._losses: dict[int, Tensor] = {}  # by window

    def one_pass(self, p: WindowPlan, number: int, x: Tensor | None) -> UnitOutput:
        """Pass `number` over a window, as far as it is this stage's.

        Args:
            x: h after the stage before, or after the pass before; y beyond the core; None: embed
                the window.
        """
        stage, (way, *later) = self.model.stage.index, self._routes[p.index][number - 1 :]
        window = self._window or self._open(p)
        h, y, loss = None, x, None
        if stage <= way.turn:
            if x is not None and p.detaches(number) and stage == way.first:
                x = x.detach()
            h = y = self._core(
                p, number, window, x, write_only=p.write_only(number) and stage == way.turn
            )
            if number == 1 < p.reads_at and p.any_scored and stage == way.turn:
                self.memory = self.memory._replace(wake=h)
        if number == p.reads_at and stage >= way.turn:
            if stage == way.turn:
                y = self._what_is_read(p, y)
            y, loss = self._read(p, window, y, write_only=not p.any_scored and stage == way.last)
        if not any(w.first <= stage <= w.last for w in later):
            self._close(p, window)
        elif number == 1:
            self.memory = self.memory._replace(
                awake=None if bool(p.sleeps.all()) else self.memory.state
            )
        return UnitOutput(h, y, loss)

    def _open(self, p: WindowPlan) -> Window:
        """Begins a window: what the rows' new documents may not remember is forgotten."""
        if p is self.plans[0]:
            self.memory = Memory(self._given or self.model.empty_state(self.batch.size[0]))
        state = self.memory.state
        if p.cut:
            state = state.detach()
        if p.starts.any():
            state = state.begin_documents(p.starts.to(self.model.device, non_blocking=True))
        sleep, valid = self.model.sleep, self._valid[:, p.tokens]
        window = open_window(
            self.model.config, state, valid, p.has_pad, sleep.window, sleep.eviction == "sliding"
        )
        self._window, self.memory = window, Memory(state)
        return window

    def _core(
        self, p: WindowPlan, number: int, window: Window, h: Tensor | None, write_only: bool
    ) -> Tensor:
        """The prelude if it is the wake pass, and the core."""
        model = self.model
        if number == 1:
            # of the wake pass only
            window.record_decay = self._probe.record_decay if self._probe else None
            with _graph(p.keeps_graph):
                h = model.embedded(self._tokens[:, p.tokens]) if model.stage.is_first else h
                assert h is not None, "only the first stage embeds"
                h = self._part(model.prelude, h, window)
        assert h is not None, "only the wake pass begins with the embedding"
        state = self.memory.state if number == 1 else self.memory.state.begin_pass(model.core)
        if p.detaches(number):
            state = state.detach(model.core)
        self.memory = self.memory._replace(state=state)
        with _graph(p.core_graph(number)):
            h = self._part(model.core, h, window, write_only)
        if self._probe is not None:
            self._probe.after_pass(number, state, self.memory.state)
        window.record_decay = None
        if number == p.passes and self.memory.awake is not None:
            asleep = p.sleeps.to(h.device, non_blocking=True)
            with _graph(p.keeps_graph):
                state = choose_rows(asleep, self.memory.state, self.memory.awake)
            self.memory = self.memory._replace(state=state, awake=None)
        return h

    def _what_is_read(self, p: WindowPlan, h: Tensor | None) -> Tensor | None:
        """What coda and head read: the wake pass's h in rows with targets, else the last pass's."""
        if self.memory.wake is None or h is None:
            return h
        rows = broadcast_rows(p.has_targets.to(h.device, non_blocking=True), p.width)
        with _graph(p.keeps_graph):
            y = torch.where(rows, self.memory.wake, h)
        self.memory = self.memory._replace(wake=None)
        return y

    def _read(
        self, p: WindowPlan, window: Window, y: Tensor | None, write_only: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The coda, and on the last stage the loss."""
        assert y is not None, "the core, or the stage before, gives what is read"
        with _graph(p.keeps_graph):
            y = self._part(self.model.coda, y, window, write_only)
            if not (p.any_scored and self.model.stage.is_last):
                return y, None
            scored = p.scored.to(y.device, non_blocking=True)
            y, goal = (
                all_tokens(y)[scored],
                self._targets[:, p.tokens].flatten()[scored],
            )  # [n, D], [n]
            loss = kept(self._head, p, y, goal, recompute=self._recompute != "none").sum()
        self._losses[p.index] = loss.detach()
        return None, loss

    def _part(self, part: slice, h: Tensor, window: Window, write_only: bool = False) -> Tensor:
        """Runs some of this stage's blocks as one unit."""
        h, state = run_part(
            self.model, part, h, self.memory.state, window, self._recompute, write_only
        )
        self.memory = self.memory._replace(state=state)
        return h

    def _close(self, p: WindowPlan, window: Window) -> None:
        """Ends a window: keys and values are dropped, S stays."""
        state, sliding = self.memory.state, self.model.sleep.eviction == "sliding"
        state = state._replace(attendable=window.attendable if sliding else state.attendable)
        with _graph(p.keeps_graph):
            state = state.end_window(self.model.sleep.window - 1 if sliding else 0, p.width)
        self._window, self.memory = None, Memory(state)
        if self._probe is not None:
            self._probe.end_window(state)
        if p is self.plans[-1] and not self._carries:
            # other microbatches may have to wait for their turn
            self.memory = Memory(self.model.empty_state(0))

    def output(self) -> Output:
        """When every pass is done; detached. Of pipeline stages the last has the losses, the others
        have zeros.
        """
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        zero = torch.zeros((), device=self.model.device, dtype=dtype)
        losses = torch.stack([self._losses.get(w, zero) for w in range(self.batch.starts.shape[1])])
        carried = self.memory.state.detach() if self._carries else None
        return Output(losses.sum(), losses, carried)


@contextmanager
def _graph(enabled: bool) -> Iterator[None]:
    """Builds the autograd graph only where backpropagation will pass (and the caller wants it at
    all).
    """
    with torch.set_grad_enabled(enabled and torch.is_grad_enabled()):
        yield


def run_part(
    model: HybridLM,
    part: slice,
    h: Tensor,
    state: State,
    window: Window,
    recompute: str,
    write_only: bool = False,
) -> tuple[Tensor, State]:
    """Runs one part of the blocks as one unit; the other blocks' state is left as it is."""
    blocks = model.run_blocks(part)
    if not blocks:
        return h, state
    h, done = run_unit(blocks, h, state.blocks[part], window, recompute, write_only)
    return h, state._replace(blocks=state.blocks[: part.start] + done + state.blocks[part.stop :])
