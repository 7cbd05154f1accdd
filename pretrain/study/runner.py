"""Runs many runs, several at a time: each is trained, then evaluated, in processes of its own.

    waiting --> training (--> evaluating) --> done
                   ^   |         |
                   '---'---------'-----> failed, after so many retries (a user's error: at once)

    DIR/runs/NAME        the run; if it ends early, it resumes from its checkpoint
    DIR/done/NAME.json   its record when it is done (`pretrain.study.one_run`)
    DIR/logs/NAME.log    the output of its processes

A branch waits for a checkpoint of another run, its trunk, and continues from there on its own.

Finished work is never repeated: the same call continues where the last one stopped.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from pretrain.checkpoint.folder import checkpoint_dir, draft_dir, publish, remove_draft, steps
from pretrain.exit_status import TERMINATED, USER_ERROR
from pretrain.files import parse_json, write_atomically
from pretrain.locks import alone_in
from pretrain.origin import cores
from pretrain.run.signals import die_with_parent, not_ignored
from pretrain.study.cards import least_used, visible
from pretrain.study.one_run import Run, all_done, check_begun, finish, is_done
from pretrain.tail import rows_backwards

POLL_S = 0.5


@dataclass
class Job:
    """A run in progress."""

    run: Run
    folder: Path  # of the study
    steps: int = 0  # train.steps
    state: str = "waiting"  # "training", "evaluating", "saving" before its time, "done", "failed"
    tries: int = 0
    cards: tuple[str, ...] = ()  # its GPUs
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / self.run.name

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """The log of its processes."""
        return self.folder / "logs" / f"{self.run.name}.log"

    def progress(self) -> dict[str, Any]:
        """The newest training row of metrics.jsonl; {} if there is none yet.

        A branch's file starts as a copy of its trunk's, which may have gone further.
        """
        rows = (row for row in rows_backwards(self.metrics) if row.get("kind") == "train")
        return next((row for row in rows if row["step"] <= self.steps), {})

    def own_evaluations(self) -> list[dict[str, Any]] | None:
        """The evaluations that training made at its last step, if these are all that is needed.

        For text they are not: a study compares losses row by row, which training does not log.
        """
        at_the_end = takewhile(lambda row: row["step"] >= self.steps, rows_backwards(self.metrics))
        found = {
            row["passes"]: row
            for row in at_the_end
            if row.get("kind") == "eval" and row["step"] == self.steps
            and "bits_per_byte" not in row
        }  # fmt: skip
        return [found[n] for n in self.run.passes] if found.keys() >= {*self.run.passes} else None


def run_all(
    runs: Sequence[Run],
    folder: Path,
    *,
    hypnos: Sequence[str],
    jobs: int | None = None,
    retries: int = 2,
    seconds: float = float("inf"),
    show: Callable[[list[Job]], None] = lambda jobs: None,
) -> list[Job]:
    """Trains and evaluates runs, `jobs` at a time, in the given order, each on its own GPUs if
    there are enough.

    Args:
        hypnos: the start of a `hypnos` command line.
        jobs: None: as many as there is a GPU (or without GPUs, a core) for each rank.
        retries: how often a failed run is restarted, from its newest checkpoint.
        seconds: after this time, running runs are asked to save and end, and no more are started.
        show: called twice a second with all jobs.
    Returns:
        A job for each run: "done", "failed", or "waiting" if the time was up.
    Raises:
        UserError: a configuration is refused, a run was evaluated with other settings, or another
            process is doing these runs.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    all_jobs = [_job(run, folder) for run in runs]
    deadline = time.monotonic() + seconds
    gpus = visible()
    room = jobs or len(gpus) or cores()
    threads = str(max(1, cores() // room))

    def takes(job: Job) -> int:
        return 1 if jobs else job.run.ranks

    environment = {"OMP_NUM_THREADS": threads} | os.environ
    others = "does these runs; wait for it, or choose another folder with --out"
    # a call that starts nothing does not need the lock
    with alone_in(folder, others) if seconds > 0 else nullcontext(), _ending(all_jobs, show):
        while any(job.state not in ("done", "failed") for job in all_jobs):
            for job in all_jobs:
                _advance(job, hypnos, environment, retries)
            ended = {job.run.name for job in all_jobs if job.state in ("done", "failed")}
            for job in all_jobs:
                _give_up_without_trunk(job, ended)
            taken = sum(takes(job) for job in all_jobs if job.process)
            if time.monotonic() > deadline:
                break
            for job in all_jobs:
                has_room = not taken or taken + takes(job) <= room  # alone, whatever it takes
                if job.state != "waiting" or not has_room or not branch_off(folder, job.run):
                    continue
                taken += takes(job)
                job.cards = least_used(
                    gpus, [j.cards for j in all_jobs if j.process], job.run.ranks
                )
                _begin(job, hypnos, environment)
            show(all_jobs)
            time.sleep(POLL_S)
    show(all_jobs)
    return all_jobs


def branch_off(folder: Path, run: Run) -> bool:
    """Gives a branch its start, unless it has one: its trunk's checkpoint and metrics. Returns
    False if the trunk is not that far yet.

    Files are linked, not copied: nobody writes into a checkpoint. Since the trunk's learning rate
    has not begun to decay there, the branch is bit for bit what a full run with its settings would
    be; so if only the record of a finished trunk is left, the branch starts from scratch.
    """
    here, there = folder / "runs" / run.name, folder / "runs" / run.trunk
    if not run.trunk or steps(here):
        return True
    found = checkpoint_dir(there, run.branch)
    if not found.exists():
        return run.trunk in all_done(folder)
    draft = draft_dir(here, run.branch)
    remove_draft(here, run.branch)
    shutil.copytree(found, draft, copy_function=_link)
    shutil.copyfile(there / "metrics.jsonl", here / "metrics.jsonl")  # later rows are dropped
    publish(here, run.branch, keep=1, keep_every=0)
    return True


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system can
        shutil.copy2(source, target)


def write_array(runs: Sequence[Run], folder: Path, path: Path) -> int:
    """Writes the unfinished runs, one per line, for `hypnos launch slurm --array`.

    Branches are included once their trunks are ready; runs that are trained are not.

    Returns:
        how many.
    """
    left = [
        run
        for run in runs
        if not is_done(folder, run) and not is_trained(folder, run) and branch_off(folder, run)
    ]
    lines = [
        shlex.join(
            [str(run.config), f"run.dir={folder / 'runs'}", f"run.name={run.name}", *run.overrides]
        )
        for run in left
    ]
    write_atomically(path, "".join(line + "\n" for line in lines))
    return len(left)


def is_trained(folder: Path, run: Run) -> bool:
    """Whether a run's final checkpoint exists."""
    return run.settings().train.steps in steps(folder / "runs" / run.name)


def _job(run: Run, folder: Path) -> Job:
    done = is_done(folder, run)
    if not done:
        check_begun(folder, run)
    return Job(run, folder, run.settings().train.steps, "done" if done else "waiting")


def _give_up_without_trunk(job: Job, ended: set[str]) -> None:
    """Fails a branch whose trunk has ended without a checkpoint at the branch point."""
    if job.state == "waiting" and job.run.trunk in ended and not branch_off(job.folder, job.run):
        job.state = "failed"


def _begin(job: Job, hypnos: Sequence[str], environment: dict[str, str]) -> None:
    """Starts to train a run, or continues with what an array has trained."""
    job.tries += 1
    if is_trained(job.folder, job.run):
        _judge(job, hypnos, environment)
        return
    job.state = "training"
    places = (f"run.dir={job.path.parent}", f"run.name={job.run.name}")
    how = ["train"] if job.run.ranks == 1 else ["launch", "local"]
    command = [*hypnos, *how, str(job.run.config), *job.run.overrides, *places]
    command += [] if job.run.ranks == 1 else ["--ranks", str(job.run.ranks)]
    job.process = _start(command, environment | _cards(job), job.log)


def _judge(job: Job, hypnos: Sequence[str], environment: dict[str, str]) -> None:
    """Does what is left to do for a trained run: evaluates it, or finishes it."""
    if (own := job.own_evaluations()) is None:
        _evaluate(job, hypnos, environment)
    else:
        _finish(job, own)


def _evaluate(job: Job, hypnos: Sequence[str], environment: dict[str, str]) -> None:
    job.state = "evaluating"
    passes = [str(n) for n in job.run.passes]
    command = [*hypnos, "eval", str(job.path), "--json", "--passes", *passes]
    part = job.path / ".evaluation.part"
    job.process = _start(command, environment | _cards(job), job.log, part)


def _cards(job: Job) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": ",".join(job.cards)} if job.cards else {}


def _start(
    command: list[str], environment: dict[str, str], log: Path, output: Path | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command with its messages going to a log, and its output to a file if given."""
    with log.open("ab") as words:
        words.write(f"$ {' '.join(command)}\n".encode())
        words.flush()
        with output.open("wb") if output else words as given:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=given, stderr=words,
                process_group=0,  # Ctrl-C reaches only us, and we forward it once
                preexec_fn=die_with_parent,  # otherwise the next start would find its run in use
            )  # fmt: skip


def _advance(job: Job, hypnos: Sequence[str], environment: dict[str, str], retries: int) -> None:
    """Decides what follows when a job's process has ended."""
    if job.process is None or (status := job.process.poll()) is None:
        return
    job.process = None
    if status == 0 and job.state == "training":
        _judge(job, hypnos, environment)
    elif status == 0:
        part = job.path / ".evaluation.part"
        _finish(job, [parse_json(line) for line in part.read_text(encoding="utf-8").splitlines()])
        part.unlink()
    elif status == USER_ERROR or job.tries > retries:
        job.state = "failed"
    else:
        job.state = "waiting"


def _finish(job: Job, found: list[dict[str, Any]]) -> None:
    finish(job.folder, job.run, found)
    job.state = "done"


@contextmanager
def _ending(jobs: list[Job], show: Callable[[list[Job]], None]) -> Iterator[None]:
    """On exit, for whatever reason, asks running runs to save, and waits until they have ended."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    heard = not_ignored(signal.SIGTERM, signal.SIGHUP)
    before = {s: signal.signal(s, leave) for s in heard}
    try:
        yield
    finally:
        running = [job for job in jobs if job.process]
        for job in running:
            assert job.process
            job.process.terminate()
            job.state = "saving"
        if running:
            show(jobs)  # a step in progress is completed first, which may take a while
        for job in running:
            assert job.process
            job.process.wait()
            job.process, job.state = None, "waiting"
        for s, handler in before.items():
            signal.signal(s, handler)
