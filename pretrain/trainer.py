"""The training loop, from top to bottom.

A run is a folder, run.dir/run.name:

    config.toml      the resolved configuration;  tokenizer.model  what the data are written in
    metrics.jsonl    see pretrain/run/metrics.py;  tensorboard/ has the same
    checkpoints/     see pretrain/checkpoint/

`train` goes on by itself from the newest intact checkpoint there, and refuses a configuration that
would have given another result so far.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from contextlib import ExitStack
from itertools import accumulate as running_sum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel import mesh, watchdog
from parallel.engine import Engine
from parallel.stages import Stage, balanced
from pretrain.checkpoint import Checkpoint, Saver, latest_valid
from pretrain.checkpoint.folder import checkpoint_dir, remove_incomplete, run_lock
from pretrain.config.checks import validate
from pretrain.config.load import dump, load
from pretrain.config.memory import check_memory
from pretrain.config.resume import check_unchanged
from pretrain.config.run_folder import keep_tokenizer
from pretrain.config.schema import Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.data.source import BatchSource
from pretrain.data.stream import TextStream
from pretrain.errors import UserError
from pretrain.evaluate import Evaluation, make_evaluation, sleep_changes_nothing
from pretrain.files import write_atomically, writes_user_file
from pretrain.model.flops import block_costs
from pretrain.model.probe import Probe
from pretrain.model.sleep import SleepLM
from pretrain.run.agreement import agree, on_rank_0
from pretrain.run.console import TrainProgress
from pretrain.run.guard import Guard, Rollbacks, SkipStreak, before_streak, reset_if_skipped
from pretrain.run.metrics import Metrics, Throughput
from pretrain.run.optimizer import MuonAdamW, rate
from pretrain.run.remarks import remarks
from pretrain.run.state import CarriedState, TrainState, after_rollback, at_the_beginning, give_back
from pretrain.run.step import accumulate
from pretrain.run.stop import Stop
from pretrain.run.verdict import mean_loss
from pretrain.tasks import TaskSource, make_task


def train(config: Config, progress: bool = True) -> Path:
    """Trains to train.steps, from the beginning or from the run's newest checkpoint. Returns the
    run's folder.

    Runs in one process, or as every rank of a launcher (torchrun, for example).

    Args:
        config: as `pretrain.config.load.load` gives it.
        progress: say on stderr how far it is.
    Raises:
        UserError: the configuration does not fit the data, the ranks or the checkpoint; or too many
            steps in a row were skipped.
    """
    parallel = config.parallel
    mesh.join(parallel.timeout)
    with ExitStack() as cleanup:
        cleanup.enter_context(watchdog.watching(parallel.timeout))
        agree(config)
        try:
            mesh.initialize(parallel.tp, parallel.pp, parallel.sequence_parallel, parallel.timeout)
        except ValueError as error:
            start = f"torchrun --nproc-per-node={parallel.tp * parallel.pp} -m launch train ..."
            what = f"parallel.tp = {parallel.tp}, parallel.pp = {parallel.pp}: {error}"
            raise UserError(f"{what}; start a multiple of tp x pp, as by {start}") from None
        torch.manual_seed(config.run.seed)
        _check_rows_divide(config)
        source = make_source(config)
        cleanup.callback(source.close)
        config, shown = _resolved(config, source), progress and dist.get_rank() == 0
        evaluation = make_evaluation(config)
        for batch in evaluation.batches:
            _check_tokens_divide(batch.size[1], config)
        trouble = None
        while True:
            with ExitStack() as attempt:
                outcome = _train(config, source, evaluation, shown, trouble, attempt)
            if isinstance(outcome, Path):
                return outcome
            trouble = outcome
            gc.collect()  # the old model's memory, before there is a new one


def _train(
    config: Config,
    source: BatchSource,
    evaluation: Evaluation,
    shown: bool,
    trouble: SkipStreak | None,
    cleanup: ExitStack,
) -> Path | SkipStreak:
    """Trains to the end, or until too many steps in a row were skipped. After `trouble` it goes on
    from before it.
    """
    settings, run = config.train, Path(config.run.dir) / config.run.name
    checkpoint = _resume_point(run, config, trouble, cleanup)
    start = checkpoint.step if checkpoint else 0
    progress = TrainProgress(config.run.name, start, settings.steps, shown)
    cleanup.callback(progress.close)
    if checkpoint and not trouble and start >= settings.steps and checkpoint.state["evaluated"]:
        progress.say(f"{run} is at step {start} already; set train.steps higher to go on")
        return run

    model = SleepLM(config.model, config.sleep, make_stage(config))
    if checkpoint:
        progress.say(f"resuming {run} at step {start}")
        checkpoint.load_weights(model)
    else:
        model.initialize(config.run.seed)
    if not trouble:
        for line in remarks(config, checkpoint.config if checkpoint else None, start):
            progress.say(line)
    optimizer = MuonAdamW(model.named_parameters(), config.optimizer, config.guard.spike)
    engine = Engine(
        model,
        optimizer,
        zero=config.parallel.zero,
        precision=settings.precision,
        microbatches=settings.microbatches,
        offload=config.parallel.offload,
        tied=model.tied,
    )
    cleanup.callback(engine.close)
    if trouble:
        now = after_rollback(trouble, checkpoint, model, optimizer, source, config)
    elif checkpoint:
        now = give_back(checkpoint, model, optimizer, source, config)
    else:
        now = at_the_beginning(source, settings.microbatches)
    begun = start if checkpoint else None
    metrics = on_rank_0(
        "opens metrics.jsonl",
        lambda: cleanup.enter_context(Metrics(run, begun, now.evaluated, now.rollbacks.total)),
    )
    guard = Guard(config.guard, metrics, progress.say, now.rollbacks.total)
    meter = Throughput(config, source, start, int(now.tokens))
    rates = {"muon": config.optimizer.muon_lr} if config.optimizer.name == "muon" else {}
    rates["adamw"] = config.optimizer.adamw_lr
    saver = cleanup.enter_context(
        Saver(run, config, begun if now.evaluated and not trouble else None)
    )

    def save() -> None:
        watchdog.doing("saves step", now.step)
        saver.save(now.step, lambda: now.take(engine, optimizer, model))

    found: SkipStreak | None = None

    def save_and_leave() -> None:
        if told := found or guard.settle():
            raise UserError(
                f"{told.what}; nothing new is saved: the run that goes on will see to that"
            )
        save()
        saver.wait()
        if metrics:
            metrics.flush()

    def evaluate() -> None:
        nonlocal now
        if not now.evaluated:
            _evaluate(evaluation, model, now.step, metrics, progress)
            now = dataclasses.replace(now, evaluated=True)

    stop = Stop(start, save_and_leave, progress.say, config.parallel.timeout)
    cleanup.enter_context(stop.watching())
    if trouble:
        if metrics:
            metrics.write(
                "rollback", start, {"from": trouble.step, "rollbacks": now.rollbacks.total}
            )
        progress.say(f"{trouble.what}; going on from step {start} with the data after them")
        save()  # in the checkpoint's place: a run that is killed goes on after the trouble, too
    for line in (*source.describe(settings.steps), *evaluation.describe()):
        progress.say(line)
    evaluate()
    for step in range(start, settings.steps):
        done, here = step + 1, now.data
        watchdog.doing("takes the rows of step", done)
        batch = source.next()
        parts = _microbatches(batch, config)
        scored, read = _count(batch)
        probe = Probe() if done == 1 or _due(done, settings.log_every, settings.steps) else None
        outputs = accumulate(engine, model, parts, now.lanes.states, scored, config.parallel, probe)
        saver.raise_if_failed()
        with stop.update(done):
            optimizer.rate = rate(step, settings.steps, config.optimizer)
            watchdog.doing("updates the weights of step", done)
            optimizer.loss = mean_loss([out.window_loss for out in outputs], scored)
            engine.step()
            found = guard.after(done, optimizer.judge.verdict, source.samples())
            if _due(done, settings.checkpoint_every, settings.steps):
                found = found or guard.settle()
            progress.advance(done)
            tokens = now.tokens + read
            if probe is not None:
                row = {
                    "tokens": int(tokens),
                    **_losses([out.window_loss for out in outputs], batch, config),
                }
                row |= {f"lr_{name}": optimizer.rate * lr for name, lr in rates.items()}
                row |= {
                    "grad_norm": float(optimizer.grad_norm),
                    "skipped": int(optimizer.skipped),
                    **probe.summary(),
                }
                row |= meter.rates(done, row["tokens"], batch)
                if metrics:
                    metrics.write("train", done, row)
                progress.report(done, row["loss"], row["tokens_per_s"])
            lanes = CarriedState(
                [reset_if_skipped(out.state, optimizer.accepted) for out in outputs], batch.carries
            )
            evaluated = not _due(done, settings.eval_every, settings.steps)
            now = TrainState.here(
                done, lanes, source, tokens, Rollbacks(now.rollbacks.total), evaluated
            )
        if found:
            saver.wait()
            if found.step < done:  # what has been trained on since is undone, and comes again
                source.load_state_dict(here)
            return found
        with meter.paused():
            evaluate()
            if done % settings.checkpoint_every == 0:
                save()
    save()
    saver.wait()
    progress.say(f"done; next: hypnos eval {run}, hypnos report {run}")
    return run


def make_source(config: Config) -> BatchSource:
    """The stream of this rank's batches that data.task names."""
    window, batch, seed = config.sleep.window, config.train.batch, config.run.seed
    rank, ranks = mesh.dp_rank(), mesh.dp_size()
    if config.data.task == "text":
        return TextStream(config.data, window, batch, seed, rank=rank, ranks=ranks)
    return TaskSource(make_task(config, window), batch, seed, rank=rank, ranks=ranks)


def _check_rows_divide(config: Config) -> None:
    share = mesh.dp_size() * config.train.microbatches
    if config.train.batch % share:
        raise UserError(
            f"train.batch = {config.train.batch} does not divide by {mesh.dp_size()} data-parallel ranks x "
            f"train.microbatches = {config.train.microbatches}; make it a multiple of {share}"
        )


def _resolved(config: Config, source: BatchSource) -> Config:
    """The configuration with nothing left to be filled in, checked against the data and this
    machine.
    """
    vocab_size = config.model.vocab_size or source.vocab_size
    if vocab_size < source.vocab_size:
        raise UserError(
            f"model.vocab_size = {vocab_size} is less than the {source.vocab_size} tokens of the data; "
            "raise it, or leave it out to take the data's"
        )
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vocab_size=vocab_size)
    )
    validate(config)  # now that the vocabulary is known
    check_memory(config)
    return config


def make_stage(config: Config) -> Stage:
    """This rank's pipeline stage: parallel.stages, or as even as whole blocks can be, by FLOPs."""
    given = config.parallel.stages
    if given:
        return Stage(mesh.pp_rank(), tuple(running_sum(given, initial=0)))
    return Stage(mesh.pp_rank(), balanced(block_costs(config.model, config.sleep), mesh.pp_size()))


def _resume_point(
    run: Path, config: Config, trouble: SkipStreak | None, cleanup: ExitStack
) -> Checkpoint | None:
    """Takes the run's folder, and finds the checkpoint to go on from: rank 0 chooses and verifies
    it for all.
    """
    step = mesh.from_rank_0(
        on_rank_0("takes the run's folder", lambda: _take_folder(run, config, trouble, cleanup))
    )
    return None if step is None else Checkpoint.open(checkpoint_dir(run, step), checked=True)


def _take_folder(
    run: Path, config: Config, trouble: SkipStreak | None, cleanup: ExitStack
) -> int | None:
    """Makes the run's folder this process's own; the step to go on from, None for the beginning."""
    with writes_user_file(run):
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        cleanup.enter_context(run_lock(run))
        remove_incomplete(run)
        fits = before_streak if trouble else lambda _: True
        found = latest_valid(run, lambda line: print(line, file=sys.stderr, flush=True), fits)
        if found:
            check_unchanged(found.folder, found.config, config)
        keep_tokenizer(run, config, resumes=found is not None)
    with writes_user_file(run / "config.toml"):
        write_atomically(run / "config.toml", dump(config))
    # the checkpoints hold it too: what cannot be read again is refused now
    load(run / "config.toml")
    return found.step if found else None


def _due(done: int, every: int, steps: int) -> bool:
    """At every so many steps, and at the end."""
    return done % every == 0 or done == steps


def _microbatches(batch: Batch, config: Config) -> list[Batch]:
    """This rank's rows in equal parts."""
    share = batch.size[0] // config.train.microbatches
    _check_tokens_divide(batch.size[1], config)
    return [batch.rows(begin, begin + share) for begin in range(0, batch.size[0], share)]


def _check_tokens_divide(tokens: int, config: Config) -> None:
    """Where sequences are split, every window of a microbatch is shared out. tokens: of a row."""
    L, tp = config.sleep.window, config.parallel.tp
    rows = config.train.batch // mesh.dp_size() // config.train.microbatches
    for width in {min(L, tokens), tokens % L or L} if config.parallel.sequence_parallel else ():
        if rows * width % tp:
            raise UserError(
                f"parallel.sequence_parallel: a microbatch has windows of {rows} x {width} tokens, which do not divide "
                f"by parallel.tp = {tp}; change train.microbatches or sleep.window, or leave it out"
            )


def _count(batch: Batch) -> tuple[Tensor, Tensor]:
    """Scored tokens and valid tokens of the step, over all ranks; the host does not wait for them."""
    counts = torch.stack([(batch.targets != IGNORE).sum(), batch.valid.sum()]).to(
        mesh.device(), non_blocking=True
    )
    if mesh.dp_size() > 1:
        dist.all_reduce(counts, group=mesh.dp_group())
    return counts[0], counts[1]


def _losses(window_losses: list[Tensor], batch: Batch, config: Config) -> dict[str, Any]:
    """Loss per scored token, over all ranks: of the step, and by window (None where nothing is
    scored).

    Args:
        window_losses: of each microbatch [W]; of pipeline stages, the last has them and the others
            have zeros.
    """
    W, T = batch.starts.shape[1], batch.size[1]
    scored = F.pad(batch.targets != IGNORE, (0, W * config.sleep.window - T)).view(
        -1, W, config.sleep.window
    )
    sums = torch.stack(window_losses).sum(dim=0).double()
    both = torch.stack([sums, scored.sum(dim=(0, 2)).to(sums.device)])
    dist.all_reduce(both, group=mesh.dp_group())
    dist.all_reduce(both[0], group=mesh.pp_group())
    by_window = [s / n if n else None for s, n in zip(*both.tolist(), strict=True)]
    total, count = both.sum(dim=1).tolist()
    return {"loss": total / count, "loss_per_window": by_window}


def _evaluate(
    evaluation: Evaluation,
    model: SleepLM,
    step: int,
    metrics: Metrics | None,
    progress: TrainProgress,
) -> None:
    """Writes how well the model predicts with N passes and with one, and warns when that makes no
    difference.
    """
    at_n = evaluation.run(model)
    rows, warning = [at_n], None
    if model.sleep.passes > 1:
        at_one = evaluation.run(model, 1)
        rows, warning = [at_n, at_one], sleep_changes_nothing(at_n, at_one)
    if metrics:
        for row in rows:
            metrics.write("eval", step, row)
    accuracy = "".join(f"  {name} {value:.3f}" for name, value in at_n.get("accuracy", {}).items())
    progress.say(f"step {step}  held-out loss {at_n['loss']:.4f}{accuracy}")
    if warning:
        progress.say(f"warning: {warning}")
        if metrics:
            metrics.write("warning", step, {"message": warning})
