"""Evaluation: held-out loss by window and by position in it, and task accuracy, at any N."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh
from parallel.layers import cross_entropy, vocab_parallel_argmax
from parallel.state import State
from pretrain.config.run_folder import check_data, check_tokenizer
from pretrain.config.schema import Config
from pretrain.convert.load import open_model
from pretrain.data.batch import IGNORE, Batch, joined
from pretrain.data.heldout import heldout_batches
from pretrain.data.splits import Files
from pretrain.errors import UserError
from pretrain.model.plan import WindowPlan
from pretrain.model.sleep import SleepLM
from pretrain.model.stop_rule import StopRule
from pretrain.run.step import read
from pretrain.tasks import Task, make_task
from pretrain.tasks.task import TEST_SEED
from tokenizer.encode import Tokenizer

Metrics = dict[str, Any]
FORGOTTEN = 0.01  # retention of S over a window below which nothing that is written survives


@dataclass
class Prediction:
    """What a model predicts at every scored position of a batch."""

    loss: Tensor  # [B, T] fp32 nats, 0 where nothing is scored
    best: Tensor  # [B, T] int64, the most likely token; IGNORE where nothing is scored


class CollectPredictions:
    """A head that stores the predictions, on the CPU."""

    def __init__(self, model: SleepLM, batch: Batch) -> None:
        self.model = model
        self.loss, self.best = torch.zeros(batch.size), torch.full(batch.size, IGNORE)

    def __call__(self, plan: WindowPlan, y: Tensor, targets: Tensor) -> Tensor:
        parts = [self._predict(*part) for part in self.model.in_parts(y, targets)]
        losses, best = (torch.cat(each) for each in zip(*parts, strict=True))
        rows = plan.scored_index // plan.own_width
        columns = plan.scored_index % plan.own_width + plan.own.start
        self.loss[rows, columns] = losses.float().cpu()
        self.best[rows, columns] = best.cpu()
        return losses

    def _predict(self, y: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and most likely tokens, [n] each. y: [n, D]; targets: [n]."""
        logits = self.model.logits(y)
        # before the cross-entropy, which works in place on logits that are split over tp
        best = vocab_parallel_argmax(logits)
        return cross_entropy(logits, targets), best


def predict(
    model: SleepLM,
    parts: Sequence[Batch],
    passes: int | None = None,
    zero: int = 0,
    stop: StopRule | None = None,
    states: Sequence[State | None] = (),
) -> Prediction:
    """What a model predicts in microbatches; all ranks that hold it get the result.

    Args:
        passes: N; None: the configuration's.
        zero: the ZeRO stage that the weights are sharded with.
        stop: ends the sleep of rows that have settled.
        states: the memory that each starts with; empty: S = 0.
    """
    heads = [CollectPredictions(model, part) for part in parts]
    read(model, parts, heads, passes, zero, stop, states)
    loss, best = torch.cat([h.loss for h in heads]), torch.cat([h.best for h in heads])
    if mesh.cp_size() > 1:  # each rank has only the predictions at its own tokens
        dist.all_reduce(loss, group=mesh.cp_group())
        dist.all_reduce(best, op=dist.ReduceOp.MAX, group=mesh.cp_group())
    if mesh.pp_size() > 1:
        last = dist.get_global_rank(mesh.pp_group(), mesh.pp_size() - 1)
        for tensor in (loss, best):
            dist.broadcast(tensor, last, group=mesh.pp_group())
    return Prediction(loss, best)


@dataclass
class Evaluation:
    """The fixed data on which a run is evaluated: each rank has all of it, and predicts some
    rows.
    """

    batches: list[Batch]  # of data.heldout, or of a task
    window: int  # L
    microbatches: int  # how many parts a rank reads its rows in, as in training
    task: Task | None  # scores the answers; None for text
    zero: int = 0  # the ZeRO stage that the weights are sharded with
    rows_asked: int = 0  # train.eval_batches x train.batch
    token_bytes: Tensor | None = None  # [vocabulary] bytes of text per token
    sets: dict[str, list[Batch]] = field(default_factory=dict)  # of data.heldout_sets, by name

    def describe(self) -> list[str]:
        """A line for each held-out set: how much text is evaluated; to be printed at the start."""
        if self.task is not None and self.task.generated:
            return []  # it has as many rows as are asked for
        lines = []
        for of_set, batches in {"": self.batches, **self.sets}.items():
            scored_mask = torch.cat([batch.targets for batch in batches]) != IGNORE
            rows, asked = int(scored_mask.any(dim=1).sum()), "train.eval_batches x train.batch"
            few = f" of {self.rows_asked}" if rows < self.rows_asked else ""
            tokens = f"{int(scored_mask.sum()):,} held-out tokens{of_set and f' of {of_set}'}"
            lines.append(f"evaluated on {tokens}: {rows}{few} rows ({asked})")
        return lines

    def run(
        self,
        model: SleepLM,
        passes: int | None = None,
        until: float = 0.0,
        after: int = 0,
        *,
        by_row: bool = False,
    ) -> Metrics:
        """Loss in nats per scored token: overall, by window and by position; a task's accuracy.

        The keys are "passes", "loss", "loss_per_window" [W], "loss_per_position" [L] and, for a
        task, "accuracy": {name: share}; for text, "bits_per_byte" and "bits_per_byte_per_window"
        [W]. Positions and windows without a target are None. Of further held-out sets there is
        "sets": {name: the same keys but "passes"}.

        Args:
            until: a sleep ends when a pass changes S by less than this share of its norm; only in a
                single process. Adds "until"; "passes_made", the mean over windows that were slept
                over; "passes_of_batches", the mean number that a batch made until its last row had
                settled.
            after: each row starts with the fast weights that so many other test rows of a task
                leave, read one after the other, instead of S = 0; only in a single process. Adds
                "after".
            by_row: adds "loss_per_row" [all rows], for comparing two models row by row.
        """
        was_training = model.training
        model.eval()
        states = self._read_others(model, after, passes)
        judged = self._judge(model, self.batches, passes, until, states, by_row=by_row)
        metrics: Metrics = {"passes": passes or model.sleep.passes} | judged
        if after:
            metrics["after"] = after
        if self.sets:
            metrics["sets"] = {
                name: self._judge(model, batches, passes, until, by_row=by_row)
                for name, batches in self.sets.items()
            }
        model.train(was_training)
        return metrics

    def _judge(
        self,
        model: SleepLM,
        batches: list[Batch],
        passes: int | None,
        until: float,
        states: Sequence[State | None] = (),
        *,
        by_row: bool,
    ) -> Metrics:
        """The keys of `run` but "passes", of some batches."""
        stop = StopRule(until) if until else None
        predictions = [self._predict(model, batch, passes, stop, states) for batch in batches]
        loss = torch.cat([p.loss for p in predictions]).double()  # [all rows, T]
        targets = torch.cat([b.targets for b in batches])
        scored_mask = targets != IGNORE
        column = torch.arange(loss.shape[1])
        metrics: Metrics = {
            "loss": float(loss.sum() / scored_mask.sum()),
            "loss_per_window": _means(loss, scored_mask, column // self.window),
            "loss_per_position": _means(loss, scored_mask, column % self.window),
        }
        if by_row:
            metrics["loss_per_row"] = _means(loss.T, scored_mask.T, torch.arange(len(loss)))
        if self.token_bytes is not None:
            bits = loss / math.log(2)
            size = self.token_bytes[targets.clamp(min=0)] * scored_mask  # [all rows, T]
            metrics["bits_per_byte"] = float(bits.sum() / size.sum())
            metrics["bits_per_byte_per_window"] = _means(bits, size, column // self.window)
        if stop is not None:
            metrics |= {"until": until, **stop.means()}
        if self.task is not None:
            best = torch.cat([p.best for p in predictions])
            metrics["accuracy"] = self.task.score(best, joined(batches))
        return metrics

    @torch.no_grad()
    def _read_others(
        self, model: SleepLM, count: int, passes: int | None
    ) -> Sequence[State | None]:
        """The memory that `count` other rows leave, by microbatch; () if count is 0."""
        states: list[State | None] = [None] * self.microbatches
        for i in range(count):
            assert self.task is not None, "text has documents of its own"
            others = self.task.test(TEST_SEED - 1 - i, self.batches[0].size[0])
            others.starts[:, 0], others.carries[:] = i == 0, True
            parts = self._parts(others)
            states = [
                model(part, state, passes=passes).state
                for part, state in zip(parts, states, strict=True)
            ]
        return states if count else ()

    def _parts(self, batch: Batch) -> list[Batch]:
        """This rank's rows, by microbatch."""
        return batch.split(mesh.dp_size())[mesh.dp_rank()].split(self.microbatches)

    def _predict(
        self,
        model: SleepLM,
        batch: Batch,
        passes: int | None,
        stop: StopRule | None,
        states: Sequence[State | None],
    ) -> Prediction:
        """Predicts this rank's rows and gathers the others'."""
        if states:
            batch = replace(batch, starts=torch.zeros_like(batch.starts))
        mine = predict(model, self._parts(batch), passes, self.zero, stop, states)
        everyone = (torch.cat(mesh.all_gather(t, mesh.dp_group())) for t in (mine.loss, mine.best))
        return Prediction(*everyone)


def _means(loss: Tensor, counted: Tensor, group: Tensor) -> list[float | None]:
    """For each group of columns, the sum of `loss` divided by that of `counted`; None if that is 0.

    Args:
        loss, counted: [rows, T].
        group: [T] int64.
    """
    groups = int(group.max()) + 1
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, loss.sum(dim=0))
    counts = torch.zeros(groups, dtype=torch.int64).index_add_(0, group, counted.sum(dim=0))
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]


def make_evaluation(config: Config) -> Evaluation:
    """The run's evaluation: held-out documents for text, test rows for a task.

    Batches have train.batch rows, read in train.microbatches parts, so that what fits into memory
    in training also fits here.
    """
    data, settings, L = config.data, config.train, config.sleep.window
    count, rows = settings.eval_batches, settings.batch
    task, token_bytes, sets = None, None, {}
    if data.task == "text":
        tokenizer = Tokenizer.load(data.tokenizer)
        files = Files(data)

        def batches_of(path: str) -> list[Batch]:
            return heldout_batches(
                files.place(path), tokenizer, window=L, windows=data.windows, batch=rows,
                n=count, files=files, checks=mesh.is_first_on_host(),
            )  # fmt: skip

        batches = batches_of(data.heldout)
        sets = {each.name: batches_of(each.path) for each in data.heldout_sets}
        token_bytes = torch.tensor([len(each) for each in tokenizer.token_bytes])
    else:
        task = make_task(config, L)
        batches = task.held_out_batches(rows, count)
    return Evaluation(
        batches, L, settings.microbatches, task, zero=config.parallel.zero, rows_asked=count * rows,
        token_bytes=token_bytes, sets=sets,
    )  # fmt: skip


def sleep_changes_nothing(at_n: Metrics, at_one: Metrics, retention: float | None) -> str | None:
    """A warning if N passes and one give the same loss to six digits because every head forgets a
    window before it ends, so that nothing that is written survives; else None.

    Args:
        retention: the mean share of S that heads keep over a window; None: unknown.
    """
    # always False for a non-finite loss
    same = abs(at_n["loss"] - at_one["loss"]) <= 1e-6 * abs(at_one["loss"])
    if at_n["passes"] == 1 or not same or retention is None or retention > FORGOTTEN:
        return None
    return (
        f"sleep changes nothing: {at_n['passes']} passes and 1 pass both give a loss of "
        f"{at_one['loss']:.6f}, and heads keep {retention:.2g} of S over a window; start a new "
        "run with a lower model.decay_init"
    )


def evaluate_run(
    run: Path,
    passes: list[int] | None = None,
    overrides: Sequence[str] = (),
    until: Sequence[float] = (),
    after: Sequence[int] = (),
    precision: str = "fp32",
    say: Callable[[str], None] = lambda _: None,
) -> list[Metrics]:
    """Evaluates a run's newest checkpoint at each N of `passes` (None: the trained N, and 1).

    Args:
        overrides: settings that differ from the run's: other held-out data, more batches of them.
        until: also evaluate under each of these stop rules, with the largest N as the maximum.
        after: also evaluate, with the largest N, after so many other rows; tasks only.
        precision: of the weights, fp32 or bf16, whichever was trained.
        say: receives the lines that say how much text is evaluated.
    """
    model, config = open_model(run, overrides, precision)
    check_tokenizer(config)
    check_data(config, training=False)
    evaluation = make_evaluation(config)
    model = model.to(mesh.device())
    if after and evaluation.task is None:
        raise UserError("--after is for tasks only: in text, no document is read after another")
    for line in evaluation.describe():
        say(line)
    passes = passes or sorted({1, config.sleep.passes})
    fixed = [evaluation.run(model, n, by_row=True) for n in passes]
    stopped = [evaluation.run(model, max(passes), until=share) for share in until]
    return fixed + stopped + [evaluation.run(model, max(passes), after=n) for n in after]
