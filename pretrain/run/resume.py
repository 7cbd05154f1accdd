"""Takes a run's folder, and finds the checkpoint to resume from or to go back to.

Rank 0 chooses and verifies the checkpoint for all ranks. After too many skipped steps in a row a
run may go back to the newest checkpoint that was not taken within such a streak.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pretrain.checkpoint import Checkpoint, latest_valid, open_checkpoint
from pretrain.checkpoint.folder import checkpoint_dir, make_latest, remove_incomplete
from pretrain.config.fields import differences
from pretrain.config.load import dump, load
from pretrain.config.resume import check_unchanged
from pretrain.config.run_folder import CONFIG, check_same_tokenizer, keep_tokenizer
from pretrain.config.schema import Config, GuardConfig
from pretrain.data.source import BatchSource
from pretrain.errors import UserError
from pretrain.files import write_atomically, writes_user_file
from pretrain.locks import run_lock
from pretrain.origin import add_origin
from pretrain.run.agreement import on_rank_0
from pretrain.run.guard import SkipStreak


def take_folder(
    run: Path, config: Config, source: BatchSource, cleanup: ExitStack
) -> Checkpoint | None:
    """Locks the run's folder for this job, until `cleanup`; a refused resume leaves it as it is.

    Returns:
        The checkpoint to resume from, or the one of another run to start from (run.init_from);
        None: neither, the run starts from scratch.
    Raises:
        UserError: on every rank, if another job has the folder, it cannot be written, no checkpoint
            is intact, or a setting or the data have changed that affect the steps done so far.
    """
    found = _chosen(
        run, "locking the run's folder", lambda: _take_folder(run, config, source, cleanup)
    )
    if found is None and config.run.init_from:
        what = "verifying the weights to start with"
        folder = on_rank_0(what, lambda: _start(config))
        return Checkpoint.open(Path(folder), checked=True).beginning(config.run.init_moments)
    return found


def _start(config: Config) -> str:
    """The folder of the checkpoint, verified, whose weights a run starts from."""
    checkpoint, start = open_checkpoint(config.run.init_from)
    fix = "leave it out to keep the shape of the weights, or leave run.init_from out"
    check_unchanged(checkpoint.folder, checkpoint.config, config, fix, shape_only=True)
    check_same_tokenizer(start, config)
    if config.run.init_moments:
        _check_moments(checkpoint, config)
    return str(checkpoint.folder)


def _check_moments(checkpoint: Checkpoint, config: Config) -> None:
    """UserError: a checkpoint's moments do not fit the run that is to start from them."""
    if checkpoint.begins_run:
        fix = "leave run.init_moments out"
        raise UserError(f"{checkpoint.folder}: was imported, so it has no moments; {fix}")
    for name in ("name", "update"):
        had, has = (getattr(of.optimizer, name) for of in (checkpoint.config, config))
        if had != has:
            raise UserError(
                f'optimizer.{name} = "{has}": {checkpoint.folder} has the moments of "{had}"; set '
                "that, or leave run.init_moments out"
            )


def checkpoint_before(streak: SkipStreak, run: Path, guard: GuardConfig) -> Checkpoint:
    """The checkpoint to go back to. UserError, on every rank, if the run stops instead."""
    if guard.then == "stop":
        fix = 'set guard.then = "rollback" to continue with the data after them'
        raise streak.stop('guard.then = "stop"', fix)
    checkpoint = _chosen(
        run, "looking for a checkpoint", lambda: _step(latest_valid(run, _warn, _is_good))
    )
    if checkpoint is None:
        why = "there is no good checkpoint to go back to"
        raise streak.stop(why, "lower train.checkpoint_every")
    times = checkpoint.state["rollbacks"]["here"]
    if times >= guard.rollbacks:
        why = f"the run has already gone back {times} times to step {checkpoint.step}"
        raise streak.stop(why, f"raise guard.rollbacks = {guard.rollbacks}")
    return checkpoint


def _chosen(run: Path, what: str, choose: Callable[[], int | None]) -> Checkpoint | None:
    """Opens on every rank the checkpoint of the step that rank 0 chooses."""
    step = on_rank_0(what, choose)
    return None if step is None else Checkpoint.open(checkpoint_dir(run, step), checked=True)


def is_finished(checkpoint: Checkpoint | None, config: Config) -> bool:
    """Whether nothing is left to do for the run of a checkpoint."""
    if checkpoint is None or checkpoint.step < config.train.steps:
        return False
    return bool(checkpoint.state["evaluated"])


def _take_folder(run: Path, config: Config, source: BatchSource, cleanup: ExitStack) -> int | None:
    with writes_user_file(run):
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        cleanup.enter_context(run_lock(run, _warn))
        remove_incomplete(run)
        found = latest_valid(run, _warn)
        if found:
            reshaped = any(of.startswith("model.") for of, *_ in differences(found.config, config))
            weights = "" if reshaped else f" with its weights: run.init_from={run}"
            fix = f"set it back, or begin another run{weights or ':'} run.name=NEW"
            only = found.begins_run
            check_unchanged(found.folder, found.config, config, fix, shape_only=only)
            if not (found.begins_run or is_finished(found, config)):
                source.check_state_dict(found.state["data"])
        keep_tokenizer(run, config, resumes=found is not None)
        if found and (line := make_latest(run, found.step)):
            _warn(line)
    # of a finished run no setting counts any more
    if not (is_finished(found, config) and (run / CONFIG).exists()):
        with writes_user_file(run / CONFIG):
            write_atomically(run / CONFIG, dump(config))
    # checkpoints hold the configuration too: refuse now what could not be read back
    load(run / CONFIG)
    if found is None or found.step < config.train.steps:
        with writes_user_file(run):
            add_origin(run)
    return _step(found)


def _step(checkpoint: Checkpoint | None) -> int | None:
    return checkpoint.step if checkpoint else None


def _is_good(checkpoint: Checkpoint) -> bool:
    """Whether it was taken after an accepted step, and not within a streak of skipped ones."""
    return int(checkpoint.state["optimizer"]["in_a_row"]) == 0


def _warn(line: str) -> None:
    """Printed in any case, even if the run shows no progress."""
    print(line, file=sys.stderr, flush=True)
