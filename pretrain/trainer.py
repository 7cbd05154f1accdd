"""The trainer: `train` sets up or resumes a run, `loop` takes its steps.

A run is a folder, run.dir/run.name:

    config.toml      the resolved configuration;  tokenizer.model  the tokenizer of the data
    metrics.jsonl    see pretrain/run/metrics.py;  tensorboard/ has the same, and with run.wandb
                     Weights & Biases, whose files are in wandb/
    checkpoints/     see pretrain/checkpoint/
    origins.jsonl    machine, commit and day of each start

`train` resumes from the newest intact checkpoint there, and refuses a configuration under which the
steps taken so far would have given another result (pretrain/run/resume.py).
"""

from __future__ import annotations

import gc
import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from parallel import mesh, watchdog
from parallel.engine import Engine
from pretrain.checkpoint import Checkpoint, Saver
from pretrain.config.checks import check_rows
from pretrain.config.resume import changes
from pretrain.config.schema import Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.data.source import BatchSource
from pretrain.errors import UserError
from pretrain.evaluate import Evaluation, make_evaluation, sleep_changes_nothing
from pretrain.exit_status import NO_PROGRESS
from pretrain.logged import Row
from pretrain.model.draw import draw_passes
from pretrain.model.probe import Probe
from pretrain.model.sleep import Output, SleepLM
from pretrain.run import prepare
from pretrain.run.console import TrainProgress
from pretrain.run.gather import RowGather
from pretrain.run.guard import Guard, SkipStreak, mean_loss, reset_if_skipped
from pretrain.run.host_memory import keep_freed_memory
from pretrain.run.metrics import Metrics, ResumePoint
from pretrain.run.optimizer import MuonAdamW, lr_factor
from pretrain.run.remarks import remarks
from pretrain.run.resume import checkpoint_before, is_finished, take_folder
from pretrain.run.state import CarriedState, TrainState, restore_moments
from pretrain.run.step import accumulate
from pretrain.run.stop import Stop
from pretrain.run.trace import traced
from pretrain.run.train_row import Throughput, loss_by_window
from pretrain.run.wandb_log import WandbLog, check_installed

EACH_UP_TO = 8  # the final evaluation tries each smaller N up to this one


@dataclass(frozen=True)
class Job:
    """What stays the same for the whole run, rollbacks to a checkpoint included."""

    config: Config  # resolved
    folder: Path
    source: BatchSource
    evaluation: Evaluation
    progress: TrainProgress


@dataclass(frozen=True)
class Parts:
    """What is built for the run, and rebuilt after a rollback."""

    job: Job
    model: SleepLM
    optimizer: MuonAdamW
    engine: Engine
    metrics: Metrics
    wandb: WandbLog
    guard: Guard
    throughput: Throughput
    saver: Saver


def train(config: Config, progress: bool = True) -> Path:
    """Trains to train.steps, from the beginning or from the run's newest checkpoint.

    Runs in one process, or on every rank of a launcher (torchrun, for example), all with the same
    code, configuration and data (launch/preflight makes sure of that).

    Args:
        config: from `pretrain.config.load.load`.
        progress: whether to report progress on stderr.
    Returns:
        The run's folder.
    Raises:
        UserError: the configuration does not fit the data, the ranks or the checkpoint; or too many
            steps in a row were skipped.
    """
    mesh.join(config.parallel.timeout)
    if mesh.device().type == "cpu":
        keep_freed_memory()
    shown = TrainProgress(config.run.name, config.train.steps, progress and dist.get_rank() == 0)
    with ExitStack() as cleanup:
        cleanup.callback(shown.close)
        cleanup.enter_context(watchdog.watching(config.parallel.timeout, NO_PROGRESS))
        prepare.lay_grid(config.parallel)
        with shown.slow("opening the data"):
            job = make_job(config, shown, cleanup)
        config, run = job.config, job.folder
        with shown.slow(f"locking {run} and verifying the checkpoint to resume from"):
            checkpoint = take_folder(run, config, job.source, cleanup)
        start = checkpoint.step if checkpoint else 0
        before = checkpoint.config if checkpoint and not checkpoint.begins_run else None
        otherwise = changes(before, config) if before else ""
        if is_finished(checkpoint, config):
            ignored = otherwise and f"; ignored: {otherwise}"
            fix = "raise train.steps to continue, or set another run.name to start a new run"
            shown.say(f"{run} has already finished, at step {start}{ignored}; {fix}")
            return run
        if before:
            shown.say(f"resuming {run} at step {start}{otherwise and f' with {otherwise}'}")
        elif checkpoint:
            what = "weights and moments" if checkpoint.names("optimizer") else "weights"
            shown.say(f"{run} starts with the {what} of {checkpoint.folder}")
        for line in (
            *remarks(config, before, start),
            *job.source.describe(config.train.steps),
            *job.evaluation.describe(),
        ):
            shown.say(line)
        streak = attempt(job, checkpoint, None)
        while streak:
            gc.collect()  # the old model's memory, before there is a new one
            checkpoint = checkpoint_before(streak, run, config.guard)
            streak = attempt(job, checkpoint, streak)
        named = shlex.quote(str(run))
        shown.say(f"done; next: hypnos eval {named}, hypnos report {named}")
    return run


def make_job(config: Config, progress: TrainProgress, cleanup: ExitStack) -> Job:
    """Opens the data, and checks everything that can be checked before the model is built."""
    torch.manual_seed(config.run.seed)
    check_installed(config.run)
    check_rows(config, mesh.dp_size())
    source = prepare.make_source(config)
    cleanup.callback(source.close)
    config = prepare.resolve(config, source)
    evaluation = make_evaluation(config)
    for batch in evaluation.batches:
        prepare.check_tokens_divide(batch.size[1], config)
    return Job(config, Path(config.run.dir) / config.run.name, source, evaluation, progress)


def attempt(
    job: Job, checkpoint: Checkpoint | None, streak: SkipStreak | None
) -> SkipStreak | None:
    """Trains to the end (returns None), or until too many steps in a row are skipped.

    Args:
        checkpoint: to start from; None: a new run.
        streak: the skipped steps because of which the run has gone back to the checkpoint.
    Returns:
        The streak of skipped steps.
    """
    with ExitStack() as cleanup:
        watchdog.doing("building the model")
        with job.progress.slow("building the model"):
            parts, state = build(job, checkpoint, streak, cleanup)
        save_and_flush = partial(_save_and_flush, parts, state)
        stop = Stop(state.step, save_and_flush, job.progress.say, job.config.parallel.timeout)
        cleanup.enter_context(stop.watching())
        if streak:
            row = {"from": streak.step, "rollbacks": state.rollbacks.total}
            parts.metrics.write("rollback", state.step, row)
            where = f"continuing from step {state.step} with the data after them"
            job.progress.say(f"{streak.what}; {where}")
            save(parts, state)  # replaces the checkpoint, so that a killed run resumes from here
        gc.collect()
        gc.freeze()  # scanning all objects that imports have created can take as long as a step
        cleanup.callback(gc.unfreeze)
        return loop(parts, state, stop)


def build(
    job: Job, checkpoint: Checkpoint | None, streak: SkipStreak | None, cleanup: ExitStack
) -> tuple[Parts, TrainState]:
    """Builds model, optimiser, guard, metrics and saver, restored from the checkpoint if there is
    one; see `attempt`.
    """
    config, source = job.config, job.source
    model = SleepLM(config.model, config.sleep, prepare.make_stage(config))
    if checkpoint:
        checkpoint.load_weights(model)
    else:
        model.initialize(config.run.seed)
    watchdog.doing("giving the model to DeepSpeed")
    optimizer = MuonAdamW(
        model.named_parameters(), config.optimizer, config.guard.spike, config.model.layers
    )
    engine = Engine(
        model,
        optimizer,
        zero=config.parallel.zero,
        precision=config.train.precision,
        microbatches=config.train.microbatches,
        offload=config.parallel.offload,
        tied=model.tied,
    )
    cleanup.callback(engine.close)
    if config.parallel.cuda_graphs:
        model.graph_units()
    if checkpoint and checkpoint.names("optimizer"):
        watchdog.doing("restoring the optimiser")
        restore_moments(checkpoint, optimizer)
    if checkpoint and not checkpoint.begins_run:
        state = TrainState.restore(checkpoint, model, optimizer, source, config.train)
    else:
        state = TrainState.initial(source, config.train.microbatches)
    if streak:
        state.rollback(streak, source)
    resumed, saved = None, None
    if checkpoint:
        resumed = ResumePoint(state.step, state.evaluated, state.rollbacks.total)
        saved = state.step if state.evaluated and not streak else None  # no need to save it again
    metrics = cleanup.enter_context(Metrics(job.folder, resumed))
    wandb = cleanup.enter_context(WandbLog(job.folder, config, job.progress.say))
    gather = RowGather(config.parallel.timeout)
    guard = Guard(config.guard, metrics, job.progress.say, state.rollbacks.total, gather)
    throughput = Throughput(config, source, state.step, int(state.tokens))
    saver = cleanup.enter_context(Saver(job.folder, config, saved))
    return Parts(job, model, optimizer, engine, metrics, wandb, guard, throughput, saver), state


def loop(parts: Parts, state: TrainState, stop: Stop) -> SkipStreak | None:
    """Takes steps to the end (returns None), or until too many in a row are skipped (the
    streak).
    """
    job, config = parts.job, parts.job.config
    settings = config.train

    def due(step: int, every: int) -> bool:
        """Whether something that happens every `every` steps and at the end is due."""
        return step % every == 0 or step == settings.steps

    with job.progress.slow("evaluating"), parts.throughput.paused():
        evaluate(parts, state)
    job.progress.begin(state.step)  # after the evaluation: its time must not enter the ETA
    with traced(settings, job.folder, state.step) as step_done:
        for step in range(state.step + 1, settings.steps + 1):
            # take
            watchdog.doing("reading the rows of step", step)
            batch = job.source.next()
            prepare.check_tokens_divide(batch.size[1], config)
            n_scored, n_read = count_tokens(batch)

            # accumulate
            probe = Probe() if step == 1 or due(step, settings.log_every) else None
            outputs = accumulate(
                parts.engine, parts.model, batch.split(settings.microbatches),
                state.carried.states, n_scored, config.parallel, probe,
                draw_passes(config, state.step),
            )  # fmt: skip
            parts.saver.raise_if_failed()

            with stop.update(step):  # a signal waits until the step is complete and logged
                # update
                watchdog.doing("updating the weights of step", step)
                carried = update(parts, batch, outputs, n_scored, step)
                evaluated = not due(step, settings.eval_every)
                state.advance(carried, n_read, job.source, evaluated=evaluated)
                outcome = parts.optimizer.filter.outcome
                streak = parts.guard.after(step, outcome, job.source.samples(), state.data)
                if due(step, settings.checkpoint_every):
                    streak = parts.guard.settle()

                # log
                job.progress.advance(step)
                if probe is not None:
                    log(parts, state, batch, outputs, probe)
            if streak:
                parts.saver.wait()
                return streak

            # evaluate and save
            with parts.throughput.paused():
                evaluate(parts, state)
                if step % settings.checkpoint_every == 0:
                    save(parts, state)
            step_done()
    save(parts, state)
    parts.saver.wait()
    parts.wandb.finish()  # here, where signals still stop the run
    return None


def count_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """[], [] scored and valid tokens of a step, over all ranks, without a host synchronisation."""
    counts = torch.stack([(batch.targets != IGNORE).sum(), batch.valid.sum()])
    counts = counts.to(mesh.device(), non_blocking=True)
    if mesh.dp_size() > 1:
        dist.all_reduce(counts, group=mesh.dp_group())
    return counts[0], counts[1]


def update(
    parts: Parts, batch: Batch, outputs: list[Output], n_scored: Tensor, step: int
) -> CarriedState:
    """Updates the weights with the step's gradient, unless the step is skipped.

    Returns:
        the memory of the rows whose documents continue; zeros if the step is skipped.
    """
    optimizer, config = parts.optimizer, parts.job.config
    optimizer.lr_factor = lr_factor(step - 1, config.train.steps, config.optimizer)
    optimizer.loss = mean_loss([out.window_loss for out in outputs], n_scored)
    parts.engine.step()
    carried = [reset_if_skipped(out.state, optimizer.accepted) for out in outputs]
    return CarriedState(carried, batch.carries)


def log(parts: Parts, state: TrainState, batch: Batch, outputs: list[Output], probe: Probe) -> None:
    """Logs the step that was just done, to the metrics and on stderr."""
    optimizer, window = parts.optimizer, parts.job.config.sleep.window
    tokens = int(state.tokens)
    row: Row = {
        "tokens": tokens,
        **loss_by_window([out.window_loss for out in outputs], batch, window),
        **{f"lr_{method}": rate for method, rate in optimizer.learning_rates().items()},
        "grad_norm": float(optimizer.grad_norm),
        "skipped": int(optimizer.skipped),
        **probe.summary(parts.model),
        **parts.throughput.rates(state.step, tokens, batch),
    }
    parts.metrics.write("train", state.step, row)
    parts.job.progress.report(state.step, row["loss"], row["tokens_per_s"])


def evaluate(parts: Parts, state: TrainState) -> None:
    """If an evaluation is due, writes how well the model predicts with N passes and with one; at
    the end of training also with each number in between (up to EACH_UP_TO).

    Warns if one pass is as good as N.
    """
    if state.evaluated:
        return
    evaluation, metrics, say = parts.job.evaluation, parts.metrics, parts.job.progress.say
    at_n, N = evaluation.run(parts.model), parts.model.sleep.passes
    rows, warning = [at_n], None
    if N > 1:
        is_over = state.step == parts.job.config.train.steps
        fewer = range(1, min(N, EACH_UP_TO + 1) if is_over else 2)
        rows += [evaluation.run(parts.model, n) for n in fewer]
        retention = metrics.last.get("train", {}).get("retention")
        warning = sleep_changes_nothing(at_n, rows[1], retention)
    for row in rows:
        metrics.write("eval", state.step, row)
    accuracy = "".join(f"  {name} {value:.3f}" for name, value in at_n.get("accuracy", {}).items())
    sets = "".join(f"  {name} {each['loss']:.4f}" for name, each in at_n.get("sets", {}).items())
    say(f"step {state.step}  held-out loss {at_n['loss']:.4f}{sets}{accuracy}")
    if warning:
        say(f"warning: {warning}")
        metrics.write("warning", state.step, {"message": warning})
    state.evaluated = True


def save(parts: Parts, state: TrainState) -> None:
    """Starts to save the last step, unless it is saved already."""
    watchdog.doing("saving step", state.step)
    snapshot = partial(state.snapshot, parts.engine, parts.optimizer, parts.model)
    parts.saver.save(state.step, snapshot)


def _save_and_flush(parts: Parts, state: TrainState) -> None:
    """Saves what a stopped run must leave. UserError: too many steps in a row were skipped."""
    if streak := parts.guard.settle():
        raise UserError(
            f"{streak.what}; no checkpoint is written; the resumed run handles the skipped steps"
        )
    parts.wandb.end()  # while the checkpoint is written
    save(parts, state)
    parts.saver.wait()
    parts.metrics.flush()
    parts.wandb.wait()
