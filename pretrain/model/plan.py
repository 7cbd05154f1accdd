"""What each window and each pass of a batch does, planned on the host before anything runs.

The loop, the pipeline schedule, the FLOP and memory counts and sessions all use this plan: which
blocks run, what they write, what is read, what has a gradient, on which stages.

Rows may differ: one is scored where another only sleeps. Their values are then chosen row by row.
Which operations run, and in what order, is decided by a window's `structure` alone. It is the same
on all data-parallel ranks, because ZeRO reduces gradients and gathers weights layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from parallel.context import token_share
from parallel.passes import Pass
from parallel.stages import Stage
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch

# The elementwise maximum over the ranks that must run the same operations in the same order.
Agree = Callable[[Tensor], Tensor]


def alone(values: Tensor) -> Tensor:
    """`Agree` for a single rank."""
    return values


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowPlan:
    """What happens in one window."""

    index: int  # of the window in its sequence
    tokens: slice  # of the sequence
    own: slice  # of the sequence: this rank's share of these tokens, under context parallelism

    # ---- this rank's rows
    starts: Tensor  # [B] bool, a document begins
    has_tokens: Tensor  # [B] bool, some token is not PAD
    has_targets: Tensor  # [B] bool, some position is scored
    sleeps: Tensor  # [B] bool, makes passes 2..N
    scored_index: Tensor  # [n] int64, scored positions in the flattened [B, own_width]

    # ---- structure, agreed over ranks: "some row" means of any rank
    n_passes: int  # N, or 1 if no row sleeps
    past: int  # how many keys of earlier windows it starts with
    has_pad: bool  # some token is PAD
    has_starts: bool  # some row begins a document
    some_stay_awake: bool  # some row does not sleep
    any_scored: bool  # some row has targets
    all_scored: bool  # every row has targets

    # ---- gradient, agreed
    has_grad: bool  # the loss of some scored position backpropagates to this window
    state_has_grad: bool  # that of a later window does, through the memory that this one leaves
    segment: int  # index of the last window before the next cut, up to which gradients of S flow
    cut: bool  # backpropagation through windows is truncated before this one
    truncated: int  # how many of the first passes are out of backpropagation's reach
    is_last: bool  # of those that have an effect

    @property
    def width(self) -> int:
        """How many tokens this window has: L, or fewer if it is a sequence's last."""
        return int(self.tokens.stop - self.tokens.start)

    @property
    def own_width(self) -> int:
        """How many of them are this rank's."""
        return int(self.own.stop - self.own.start)


F = TypeVar("F")


class _Facts(NamedTuple, Generic[F]):
    """Facts per window: [W, B] for this rank's rows, or [W] whether true of some row of any
    rank.
    """

    scored: F
    unscored: F
    sleeps: F
    stays: F  # does not sleep
    sleeps_on: F  # sleeps even if this is the batch's last window
    stays_on: F  # the opposite
    goes_on: F  # its document goes on in the next batch
    starts: F
    has_pad: F


def plan_windows(
    batch: Batch,
    config: SleepConfig,
    *,
    passes: int | None = None,
    past: int = 0,
    agree: Agree = alone,
    share: tuple[int, int] = (0, 1),
) -> tuple[WindowPlan, ...]:
    """The windows of a batch up to the last one that has an effect. Pure, on CPU data.

    Args:
        passes: N, if not the configuration's.
        past: how many keys of earlier windows the batch starts with.
        agree: over the data-parallel ranks; called once by each of them.
        share: (k, n): this rank has the k-th of n shares of each window's tokens.
    """
    T, L, W, j = batch.size[1], config.window, batch.starts.shape[1], config.truncate_windows
    N, sliding = passes or config.passes, config.slides
    rows = _facts(batch, config)
    some, past = _agreed(rows, past, agree)
    scored, end = [w for w in range(W) if some.scored[w]], W - 1
    if not some.goes_on[0]:  # windows after the last scored one have no effect
        W = scored[-1] + 1 if scored else 0
    windows = []
    for w in range(W):
        tokens, is_last = slice(w * L, min((w + 1) * L, T)), w == W - 1
        mine = token_share(tokens.stop - tokens.start, *share)
        own = slice(tokens.start + mine.start, tokens.start + mine.stop)
        # In the last window, only rows whose document goes on in the next batch sleep.
        sleeps = rows.sleeps_on if is_last else rows.sleeps
        some_sleep = some.sleeps_on if is_last else some.sleeps
        some_stay = some.stays_on if is_last else some.stays
        count = N if some_sleep[w] else 1
        # Segments of j windows are counted from the sequence's end, whichever windows are scored.
        segment = end - (end - w) // j * j if j else end
        windows.append(
            WindowPlan(
                index=w,
                tokens=tokens,
                own=own,
                starts=rows.starts[w],
                has_tokens=batch.valid[:, tokens].any(dim=1),
                has_targets=rows.scored[w],
                sleeps=sleeps[w],
                scored_index=(batch.targets[:, own] != IGNORE).flatten().nonzero()[:, 0],
                n_passes=count,
                past=min(config.reach - 1, past + w * L) if sliding else 0,
                has_pad=some.has_pad[w],
                has_starts=some.starts[w],
                some_stay_awake=some_stay[w],
                any_scored=some.scored[w],
                all_scored=not some.unscored[w],
                has_grad=any(w <= s <= segment for s in scored),
                state_has_grad=any(w < s <= segment for s in scored),
                segment=segment,
                cut=bool(j) and w > 0 and (end + 1 - w) % j == 0,
                truncated=count - config.truncate_passes if config.truncate_passes else 0,
                is_last=is_last,
            )
        )
    return tuple(windows)


def _facts(batch: Batch, config: SleepConfig) -> _Facts[Tensor]:
    """The facts of this rank's rows: [W, B] bool each."""
    B, L, W = batch.size[0], config.window, batch.starts.shape[1]

    def any_in_window(positions: Tensor) -> Tensor:  # [B, T] -> [W, B]
        return torch.stack([positions[:, w * L : (w + 1) * L].any(dim=1) for w in range(W)])

    starts, goes_on = batch.starts.T, batch.carries.expand(W, B)
    scored = any_in_window(batch.targets != IGNORE)
    sleeps = ~scored if config.when == "context" else torch.ones(W, B, dtype=torch.bool)
    if not config.is_looped:
        sleeps[:-1] &= ~starts[1:]  # the memory that a finished document leaves is not needed
    needs_all = goes_on | config.is_looped  # the batch's last window makes all passes
    return _Facts(
        scored=scored,
        unscored=~scored,
        sleeps=sleeps,
        stays=~sleeps,
        sleeps_on=sleeps & needs_all,
        stays_on=~(sleeps & needs_all),
        goes_on=goes_on,
        starts=starts,
        has_pad=any_in_window(~batch.valid),
    )


def _agreed(rows: _Facts[Tensor], past: int, agree: Agree) -> tuple[_Facts[list[bool]], int]:
    """Whether each fact holds for some row of any rank, and the longest past, in one agreement."""
    facts = torch.stack([fact.any(dim=1) for fact in rows])  # [facts, W]
    values = torch.cat([facts.flatten().to(torch.int32), torch.tensor([past], dtype=torch.int32)])
    values = agree(values)
    return _Facts(*values[:-1].view(facts.shape).bool().tolist()), int(values[-1])


def plan_passes(
    w: WindowPlan, config: ModelConfig, sleep: SleepConfig, stage: Stage
) -> tuple[Pass, ...]:
    """The passes of a window (1: wake, 2..N: sleep), given how the blocks are split over stages.

    Args:
        stage: any of the stages; `Stage.only` if the model is not split.
    """
    core_start = min(sleep.prelude, len(config.layers) - 1)
    passes: list[Pass] = []
    for n in range(1, w.n_passes + 1):
        runs, core_has_grad = _blocks_of(n, w, config, sleep), _core_has_grad(n, w, sleep)
        first_stage = 0 if n == 1 else stage.of(core_start)
        core_end = max([first_stage, *map(stage.of, (*runs.prelude, *runs.core))])
        head_stage = len(stage.bounds) - 2 if runs.reads and w.any_scored else core_end
        core_grad_until = -1
        if core_has_grad:
            core_grad_until = core_end
        elif runs.prelude and w.has_grad:  # through the prelude's own memory
            core_grad_until = stage.of(runs.prelude[-1])
        detaches = 1 < n == w.truncated + 1
        both_have_grad = n > 1 and core_has_grad and passes[-1].core_has_grad
        passes.append(
            Pass(
                window=w.index,
                number=n,
                first_stage=first_stage,
                core_end=core_end,
                last_stage=max([head_stage, *map(stage.of, runs.coda)]),
                loops=n < w.n_passes,
                core_grad_until=core_grad_until,
                head_has_grad=runs.reads and w.has_grad,
                sends_grad_to_previous_pass=both_have_grad and not detaches,
                segment=w.segment,
                prelude=runs.prelude,
                core=runs.core,
                coda=runs.coda,
                write_only=runs.write_only[-1] if runs.write_only else None,
                reads=runs.reads,
                core_has_grad=core_has_grad,
                detaches=detaches,
            )
        )
    return tuple(passes)


class _Blocks(NamedTuple):
    """The blocks that run in one pass, on all stages."""

    prelude: range
    core: range
    coda: range
    write_only: range  # of core or coda; nothing reads the output of its last block
    reads: bool  # coda and head run


def _blocks_of(n: int, w: WindowPlan, config: ModelConfig, sleep: SleepConfig) -> _Blocks:
    """The blocks that pass n needs."""
    count = len(config.layers)
    core, coda = range(sleep.prelude, count - sleep.coda), range(count - sleep.coda, count)
    # Coda and head run in the wake pass if every row can be read there, else in the last pass.
    read_at = 1 if w.any_scored and (w.all_scored or not coda) else w.n_passes
    if sleep.is_looped:
        read_at = w.n_passes
    reads, write_only = n == read_at and (w.any_scored or bool(coda)), range(0)
    if not reads:
        coda = range(0)
        if n == w.n_passes:  # nothing reads the core's output h
            core = write_only = until_last_write(core, config, sleep)
    elif not w.any_scored:  # the coda only updates its memory
        coda = write_only = until_last_write(coda, config, sleep)
    return _Blocks(range(sleep.prelude if n == 1 else 0), core, coda, write_only, reads)


def _core_has_grad(n: int, w: WindowPlan, sleep: SleepConfig) -> bool:
    """Whether backpropagation goes through the core in pass n."""
    if sleep.is_looped:
        return w.has_grad and n > w.truncated
    # The wake pass has a loss of its own, which truncation does not cut off.
    return (w.state_has_grad and n > w.truncated) or (n == 1 and w.any_scored)


def until_last_write(blocks: range, config: ModelConfig, sleep: SleepConfig) -> range:
    """The blocks up to the last one whose memory outlives the window.

    That of a delta block (fast weights) does; under sliding eviction, attention's keys do too.
    """
    writers = [b for b in blocks if config.layers[b] == "delta" or sleep.slides]
    return range(blocks.start, writers[-1] + 1) if writers else blocks[:0]
