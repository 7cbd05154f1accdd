"""What `reproduce` and `scale`, the commands that train many runs, share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch import HYPNOS
from launch.commands import Argument, argument
from launch.commands.values import new_file, positive, tell
from pretrain.errors import UserError
from pretrain.exit_status import REQUEUE

if TYPE_CHECKING:
    from pathlib import Path

    from pretrain.study.one_run import Run
    from pretrain.study.runner import Job

JOBS = argument(
    "--jobs",
    type=positive,
    metavar="COUNT",
    help="runs at a time (default: GPUs, or cores)",
)
DRY_RUN = argument(
    "--dry-run",
    action="store_true",
    help="only print what the runs need: parameters, FLOPs, memory, time, cost",
)
DRY_RUN_HARDWARE = argument(
    "--hardware",
    metavar="NAME|FILE",
    help="hardware for --dry-run, as in `hypnos plan` (default: h100)",
)


def array_argument(then: str) -> Argument:
    """--array. `then`: what to do once those runs are trained."""
    return argument(
        "--array",
        type=new_file,
        metavar="FILE",
        help="train nothing: write the remaining runs for `hypnos launch slurm CONFIG "
        f"--array FILE`; {then}",
    )


def check_flags(
    array: Path | None, minutes: int | None, dry_run: bool, hardware: str | None
) -> str:
    """The hardware of a dry run. UserError: flags that exclude, or need, each other."""
    if array and minutes is not None:
        raise UserError("--minutes: --array trains nothing; leave one of them out")
    if array and dry_run:
        raise UserError("--array: --dry-run writes nothing; leave one of them out")
    if hardware and not dry_run:
        raise UserError(f"--hardware {hardware} is for --dry-run: give that, too, or leave it out")
    return hardware or "h100"


def evaluate_trained(runs: Sequence[Run], folder: Path, jobs: int | None) -> None:
    """Evaluates here the runs that an array's tasks have trained; trains nothing."""
    from pretrain.study.one_run import is_done
    from pretrain.study.progress import StudyProgress
    from pretrain.study.runner import is_trained, run_all

    if trained := [r for r in runs if not is_done(folder, r) and is_trained(folder, r)]:
        with StudyProgress() as progress:
            tell_end(run_all(trained, folder, hypnos=HYPNOS, jobs=jobs, show=progress.show))


def write_left(runs: Sequence[Run], folder: Path, array: Path) -> str:
    """Writes the unfinished runs that can be trained now; returns what to do next."""
    from pretrain.study.runner import write_array

    count = write_array(runs, folder.absolute(), array)
    if not count:
        return "all are trained; next: run this without --array to see what is wrong"
    others, ranks = len(runs) - count, runs[0].ranks
    more = f" of {ranks} ranks" if ranks > 1 else ""
    more += f", and {others} wait for some of these" if others else ""
    following = shlex.join([str(runs[0].config), "--array", str(array)])
    return f"{count} runs{more}; next: hypnos launch slurm {following} ..."


def tell_end(jobs: Sequence[Job]) -> None:
    """Prints a line for each failed run, with the log that says why; and how many are left."""
    for job in jobs:
        if job.state == "failed" and job.tries:
            tell(f"{job.run.name} failed {job.tries} times: {job.log}")
        elif job.state == "failed":
            there = f"{job.run.trunk} has ended without its checkpoint of step {job.run.branch}"
            tell(f"{job.run.name} was not started: {there}")
    if left := sum(job.state == "waiting" for job in jobs):
        tell(f"{left} of {len(jobs)} runs left: run the same command to continue")


def status_of(states: Sequence[str]) -> int:
    """The exit status for the states of all runs."""
    if "failed" in states:
        return 1
    return 0 if all(state == "done" for state in states) else REQUEUE
