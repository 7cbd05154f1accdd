"""Estimates memory and time of a configuration's training step on given hardware.

    estimate(config, gpus, load_hardware("h100"))     # for the configuration's own layout

Nothing is run. A step consists of the units that `pretrain.model.plan` plans, in the order of the
pipeline schedule (`parallel.schedule`), simulated by `parallel.simulator`; a unit's time follows
from the work of its blocks, its memory from what they save (`pretrain.study.block_work`).
docs/plan.md compares estimates with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from parallel.combinations import MAX_WHOLE, Layout
from pretrain.config.checks import check_ranks, layout_of, uses_tokenizer
from pretrain.config.memory import FP32
from pretrain.config.schema import Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.model.flops import Work, block_matrices, block_parameters, step_flops
from pretrain.model.plan import plan_windows
from pretrain.run import newton_schulz
from pretrain.study.block_work import BlockCounter
from pretrain.study.communication import Group
from pretrain.study.hardware import Hardware
from pretrain.study.rank_memory import Parameters, RankMemory, memory_of_rank
from pretrain.study.stage_times import StageTimes
from pretrain.study.stage_units import StageUnits
from pretrain.tasks import Task, make_task
from tokenizer.encode import Tokenizer

UPDATED = 60  # bytes that the optimiser reads and writes per element
PART = 64  # rows of a batch that are drawn at once


@dataclass(frozen=True)
class Estimate:
    """The estimate of a step."""

    layout: Layout
    dp: int
    rows: int  # of a microbatch, on one rank
    memory: RankMemory  # of the rank with the most
    seconds: float  # of a step
    bubble: float  # fraction of the units' time in which stages wait for each other
    exchange_s: float  # seconds of a step spent only on communication
    update_s: float  # seconds of the optimiser
    tokens: int  # of a step, over all ranks
    work: Work  # of a step, over all ranks
    recomputed: float  # further FLOPs of a step, for recomputation
    mfu: float
    cost: float  # of a step, in the hardware's currency

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over all ranks; passes 2..N are not counted."""
        return self.tokens / self.seconds


def example(config: Config, rows: int = 1) -> Batch:
    """Example rows of the training data: a task's first ones (one row: of the first batch, the one
    that is scored in the latest window); for text, windows of a document.

    Where documents or states may continue in the next batch, these rows do. In a batch of many
    rows some row nearly always does, and then all rows make the passes that it needs.
    """
    if config.data.task != "text":
        task = make_task(config, config.sleep.window)
        batch = task.sample(config.run.seed, 0, rows) if rows > 1 else _furthest(task, config)
        batch.carries[:] = config.data.state_passing > 0
        return batch
    W = config.data.windows
    tokens = torch.zeros(rows, W * config.sleep.window, dtype=torch.int64)
    starts = torch.zeros(rows, W, dtype=torch.bool)
    starts[:, 0] = True
    carries = torch.full((rows,), config.data.carry and config.data.documents == "isolate")
    return Batch(tokens, tokens, tokens == 0, starts, carries)


def _furthest(task: Task, config: Config) -> Batch:
    """Of the first batch's rows, the first one that is scored in the latest window."""
    found, reached = None, -1
    for first in range(0, config.train.batch, PART):
        part = task.sample(config.run.seed, first, min(PART, config.train.batch - first))
        places = (part.targets != IGNORE) * torch.arange(part.size[1])
        windows = places.amax(dim=1) // config.sleep.window  # [rows]
        row = int(windows.argmax())
        if windows[row] > reached:
            found, reached = part.rows(row, row + 1), int(windows[row])
        if reached == part.starts.shape[1] - 1:  # the last window there is
            break
    assert found is not None, "a batch has rows"
    return found


def with_vocabulary(config: Config) -> Config:
    """The configuration with model.vocab_size from its data. UserError: it cannot be determined."""
    size = config.model.vocab_size
    if not size and uses_tokenizer(config):
        path = config.data.tokenizer
        if not Path(path).exists():
            fix = "make it, or set model.vocab_size=32768 (of a ladder: in ladder.settings)"
            why = "not found, so the vocabulary size is unknown"
            raise UserError(f"data.tokenizer = {path}: {why}; {fix}")
        size = Tokenizer.load(path).vocab_size
    elif not size:
        size = make_task(config, config.sleep.window).vocab_size
    return replace(config, model=replace(config.model, vocab_size=size))


def estimate(config: Config, gpus: int, hardware: Hardware, row: Batch | None = None) -> Estimate:
    """The estimate for a configuration's own layout, on so many ranks.

    Args:
        row: one like those of a step; None: `example`.
    Raises:
        UserError: the ranks do not divide into model replicas, or the batch into microbatches.
    """
    check_ranks(config, gpus)
    return Estimator(config, gpus, hardware, row or example(config)).estimate(layout_of(config))


class Estimator:
    """Estimates layouts of one configuration on given hardware; caches what layouts share."""

    def __init__(self, config: Config, gpus: int, hardware: Hardware, row: Batch) -> None:
        if config.parallel.cp_delta != "heads":
            raise UserError(
                f"parallel.cp_delta = {config.parallel.cp_delta}: cannot be planned yet; plan "
                "with parallel.cp_delta=heads"
            )
        self.config, self.gpus, self.hardware, self.row = config, gpus, hardware, row
        self._shared = hardware.shared_by(gpus)
        sleep = config.sleep
        # N of a step: memory must suffice for the largest; the mean time is that of the smallest
        # and the largest. In a curriculum, only the final N.
        least = sleep.passes if sleep.curriculum else sleep.min_passes or sleep.passes
        self._numbers = sorted({least, sleep.passes})
        self._windows = [plan_windows(row, sleep, passes=n) for n in self._numbers]
        self._counters: dict[tuple[int, bool], BlockCounter] = {}
        self._units: dict[int, list[StageUnits]] = {}
        self._parameters: dict[tuple[int, int], list[Parameters]] = {}
        self._times: dict[tuple[object, ...], list[StageTimes]] = {}

    @cached_property
    def work(self) -> Work:
        """The work of a step, over all ranks."""
        model, sleep, n = self.config.model, self.config.sleep, self.config.train.batch
        one = step_flops(self.row, model, sleep, dict.fromkeys(self._numbers, 1))
        return Work(n * one.wake, n * one.sleep, n * one.forward, n * one.backward)

    def estimate(self, x: Layout, *, simulated: bool = True) -> Estimate:
        """The estimate for one valid layout.

        Args:
            simulated: False: fast, with approximately minimal idle time and activations.
        """
        times, dp, M = self._stage_times(x), self._dp(x), x.microbatches
        makespan = fmean([t.makespan(M) if simulated else t.least(M) for t in times])
        busy = M * fmean([sum(t.busy) for t in times])  # of all stages
        node = self.hardware.node
        if node.shared and self.gpus > node.devices:  # cores take turns
            makespan = max(makespan, busy * x.tp * x.cp * dp / node.devices)
        exchange, update = self._update(x, dp * x.cp)
        seconds = makespan + exchange + update
        devices = min(self.gpus, node.devices) if node.shared else self.gpus
        best = devices * self.hardware.peak(x.precision)
        return Estimate(
            layout=x,
            dp=dp,
            rows=times[-1].rows,
            memory=self._memory(x, dp * x.cp, times[-1], simulated),
            seconds=seconds,
            bubble=1 - busy / (x.pp * makespan),
            exchange_s=exchange + M * fmean([max(t.exchange) for t in times]),
            update_s=update,
            tokens=self.config.train.batch * self.row.size[1],
            work=self.work,
            recomputed=M * dp * x.cp * x.tp * fmean([t.recomputed for t in times]),
            mfu=self.work.flops / (seconds * best),
            cost=seconds / 3600 * self.gpus * self.hardware.price.per_hour,
        )

    def processor_seconds(self, x: Layout) -> float:
        """Busy seconds summed over all ranks: the CPU time of a step on a host whose cores they
        share.
        """
        times, weight_ranks = self._stage_times(x), self._dp(x) * x.cp
        busy = x.microbatches * fmean([sum(t.busy) for t in times]) * x.tp * weight_ranks
        return busy + self.gpus * sum(self._update(x, weight_ranks))

    def _dp(self, x: Layout) -> int:
        """Data-parallel ranks."""
        return self.gpus // (x.tp * x.cp * x.pp)

    def _stage_times(self, x: Layout) -> list[StageTimes]:
        """By N, ascending."""
        dp = self._dp(x)
        rows = self.config.train.batch // (dp * x.microbatches)
        gathers = dp if x.zero == 3 else 0
        key = x.tp, x.cp, x.pp, x.sequence_parallel, x.recompute, rows, x.precision, gathers
        if key not in self._times:
            self._times[key] = [
                StageTimes(self.config, self._shared, self._counter(x), x, dp, units)
                for units in self._stage_units(x.pp)
            ]
        return self._times[key]

    def _stage_units(self, pp: int) -> list[StageUnits]:
        """By N, ascending."""
        if pp not in self._units:
            self._units[pp] = [StageUnits(self.config, pp, each) for each in self._windows]
        return self._units[pp]

    def _counter(self, x: Layout) -> BlockCounter:
        key = x.tp, x.sequence_parallel
        if key not in self._counters:
            device, half = self.hardware.device, x.precision == "bf16"
            cuda = device.kind == "cuda"
            self._counters[key] = BlockCounter(
                self.config.model, tp=x.tp, sequence_parallel=x.sequence_parallel, half=half,
                fused=cuda and device.fused, kernel=cuda and half,
            )  # fmt: skip
        return self._counters[key]

    def parameters(self, tp: int, pp: int) -> list[Parameters]:
        """The parameters of one rank of each stage."""
        if (tp, pp) not in self._parameters:
            model, found = self.config.model, []
            embedding = model.d_model * model.vocab_size / tp
            for s, kinds in enumerate(self._kinds(pp)):
                blocks = sum(block_parameters(model, kind) for kind in kinds) / tp
                matrices = sum(m * n for kind in kinds for m, n in block_matrices(model, kind)) / tp
                head = s == pp - 1 and not (model.tie_embeddings and pp == 1)
                ends = embedding * ((s == 0) + head)
                muon = matrices if self.config.optimizer.name == "muon" else 0.0
                found.append(Parameters(blocks, ends, muon))
            self._parameters[tp, pp] = found
        return self._parameters[tp, pp]

    def _kinds(self, pp: int) -> list[list[str]]:
        """The blocks of each stage."""
        cuts = self._stage_units(pp)[0].bounds
        return [list(self.config.model.layers[a:b]) for a, b in pairwise(cuts)]

    # weight_ranks: over which ZeRO shards: data- and context-parallel

    def _memory(
        self, x: Layout, weight_ranks: int, times: StageTimes, simulated: bool
    ) -> RankMemory:
        """The memory of the stage with the most."""
        host = self.hardware.device.kind == "cpu"
        activations = times.activations if simulated else times.least_activations
        return max(
            (
                memory_of_rank(p, x, weight_ranks, activations(s, x.microbatches), host)
                for s, p in enumerate(self.parameters(x.tp, x.pp))
            ),
            key=lambda memory: memory.total,
        )

    def _update(self, x: Layout, weight_ranks: int) -> tuple[float, float]:
        """Seconds of a step for reducing gradients and gathering weights, and of the optimiser."""
        p = max(self.parameters(x.tp, x.pp), key=lambda each: each.all)
        device, node = self._shared.device, self._shared.node
        group = Group(self._shared, weight_ranks, x.tp)
        stage = Group(self._shared, weight_ranks * x.tp)
        size = 2 if x.precision == "bf16" else FP32
        exchange = group.shared_out(FP32 * p.all)  # gradients, in fp32
        exchange += group.shared_out(FP32 * p.all if x.zero == 0 else size * p.all)
        if x.zero == 3 and p.blocks > MAX_WHOLE:  # weights come with the units
            exchange -= group.shared_out(size * p.blocks)
        if x.zero or x.tp > 1:  # Muon's matrices, there and back
            exchange += 2 * stage.shared_out(FP32 * p.matrices * x.tp)
        mine = p.all / (weight_ranks if x.zero else 1)
        update = UPDATED * mine / device.bandwidth
        if x.offload and device.kind == "cuda":
            update += 3 * FP32 * mine / (1e9 * node.host_gbs)
        return exchange, update + self._newton_schulz(x, weight_ranks)

    def _newton_schulz(self, x: Layout, weight_ranks: int) -> float:
        """Seconds of orthogonalisation on the busiest rank."""
        if self.config.optimizer.name != "muon":
            return 0.0
        model, works = self.config.model, []
        flops: dict[str, list[int]] = {
            kind: [
                newton_schulz.STEPS * (4 * min(m) ** 2 * max(m) + 2 * min(m) ** 3)
                for m in block_matrices(model, kind)
            ]
            for kind in set(model.layers)
        }
        for kinds in self._kinds(x.pp):
            whole = sum(sum(flops[kind]) for kind in kinds)
            largest = max(max(flops[kind]) for kind in kinds)
            works.append(max(whole / (weight_ranks * x.tp if x.zero else x.tp), largest))
        device = self._shared.device
        best = self._shared.flops("bf16" if device.kind == "cuda" else "fp32")
        return max(works) / (best * device.product_share)
