"""hypnos launch status, logs, cancel: a started run's progress and logs; ends it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands import argument, command
from launch.commands.values import path, positive, whole
from pretrain.errors import UserError

if TYPE_CHECKING:
    from launch.starts import Start

ASK_EVERY = 20  # after so many reads of a followed log, check that its writer is still there
RUN = argument("run", metavar="RUN", type=path, help="a run's folder")


@command(
    "status",
    "what is queued and running, a run's progress, why its starts ended",
    description="A run's progress, from its folder; its job, from Slurm; every start so far, and "
    "why it ended.",
    example="hypnos launch status runs/depo-small",
    arguments=[RUN],
)
def status(run: Path) -> None:
    from launch import progress

    if said := progress.unlaunched(run):
        print(progress.progress(run), said, sep="\n")
        return
    every = progress.known(run)
    print(progress.progress(run))
    print(progress.job(run, every))
    if not every:
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("start", "job", "nodes", "began", "steps", "ended"):
        table.add_column(column, overflow="fold")
    for start in every:
        steps = (
            f"{start.step or 0} to {start.end.step or 0}" if start.end else f"{start.step or 0} to"
        )
        job = f"{start.launcher} {start.job}"
        ended = start.end.why if start.end else ""
        nodes = ",".join(start.nodes)
        table.add_row(str(start.number), job, nodes, progress.ago(start.time), steps, ended)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)


@command(
    "logs",
    "print the output of a run's ranks",
    description="Prints a rank's output: by default of the newest start, and of the rank that "
    "failed first, or else of rank 0.",
    example="hypnos launch logs runs/depo-small --follow\n"
    "hypnos launch logs runs/depo-small "
    "--start 2 --rank 3",
    arguments=[
        RUN,
        argument("--start", type=positive, metavar="NUMBER", help="a start, see `status`"),
        argument("--rank", type=whole, metavar="RANK", help="number of a rank, from 0"),
        argument("--follow", action="store_true", help="keep printing until the start ends"),
    ],
)
def logs(run: Path, start: int | None, rank: int | None, follow: bool) -> None:
    from launch import progress, starts

    every = progress.known(run)
    if not every:
        raise UserError(f"{run}: not started yet; {progress.job(run, every)}")
    chosen = next((each for each in every if each.number == start), None) if start else every[-1]
    if chosen is None:
        see = f"`hypnos launch status {shlex.quote(str(run))}`"
        raise UserError(f"--start {start}: {run} has {len(every)} starts; see {see}")
    folder = chosen.logs(run)
    failed = starts.first_failed(folder)
    number = rank if rank is not None else failed or 0
    log = starts.log_of(folder, number)
    if number >= chosen.ranks:
        raise UserError(
            f"{log}: does not exist; this start has {chosen.ranks} ranks, numbered from 0"
        )
    if not log.exists():
        launchers = [folder / "mpirun.log"]
        launchers += [place / f"logs/slurm-{chosen.job}.log" for place in (run, run.parent)]
        where = next((f"; see {path}" for path in launchers if path.exists()), "")
        raise UserError(f"{log}: does not exist, as the rank has not started{where}")
    print(f"==> {log} <==", file=sys.stderr, flush=True)
    with log.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
        turn = 0
        while follow and not _over(run, chosen, asks=turn % ASK_EVERY == 0):
            sys.stdout.flush()
            time.sleep(0.5)
            shutil.copyfileobj(file, sys.stdout.buffer)
            turn += 1
        shutil.copyfileobj(file, sys.stdout.buffer)  # what was written during the check


def _over(run: Path, start: Start, asks: bool) -> bool:
    """Whether a start has ended, or another has begun, or (if `asks`) its launcher is gone."""
    from launch import progress, starts

    newest = starts.starts(run)[-1]
    if newest.number == start.number and newest.end is None:
        return asks and progress.is_gone(run, newest)
    return True


@command(
    "cancel",
    "end a run: it saves, and does not start again",
    description="Cancels a run's Slurm job, or ends the launch on this machine. Ranks that are "
    "training save first, within the time that Slurm gives them (KillWait).",
    example="hypnos launch cancel runs/depo-small",
    arguments=[RUN],
)
def cancel(run: Path) -> None:
    from launch import progress, starts
    from launch.world import this_host

    every = progress.known(run)
    job = starts.newest_job(run)
    if job is not None:
        if not progress.in_queue(job):
            raise UserError(f"{run}: job {job} is over: {progress.slurm_state(job)}")
        done = subprocess.run(["scancel", job], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{run}: scancel {job}: {done.stderr.strip()}")
        print(f"job {job} cancelled")
        return
    last = every[-1]
    if last.end is not None:
        raise UserError(f"{run}: start {last.number} is over: {last.end.why}")
    if last.host != this_host():
        fix = f"run `hypnos launch cancel {shlex.quote(str(run))}` there"
        raise UserError(f"{run}: started on {last.host}; {fix}")
    if not progress.is_running(run, last):
        raise UserError(f"{run}: process {last.job} has already ended")
    try:
        os.kill(int(last.job), signal.SIGTERM)
    except PermissionError:
        whose = f"process {last.job} is another user's, who must end it"
        raise UserError(f"{run}: {whose}") from None
    print(f"told process {last.job} to save and end")
