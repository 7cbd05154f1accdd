"""The progress of a started run, from its folder, and from Slurm or the processes of this host."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import psutil

from launch import starts
from launch.starts import Start
from launch.world import this_host
from pretrain.errors import UserError
from pretrain.tail import rows_backwards


def known(run: Path) -> list[Start]:
    """The starts of a run. UserError: it was neither started nor submitted by `hypnos launch`."""
    if not (run / starts.JOURNAL).exists():
        what = "no such folder" if not run.is_dir() else f"no {starts.JOURNAL} in it"
        raise UserError(f"{run}: {what}; name the folder of a run that `hypnos launch` has started")
    every = starts.starts(run)
    if not every and starts.newest_job(run) is None:
        why = "it records no start and no Slurm job"
        raise UserError(f"{run / starts.JOURNAL}: {why}; start the run with `hypnos launch`")
    return every


def unlaunched(run: Path) -> str | None:
    """What is known of a run that was started without `hypnos launch`; None: it was not, or is no
    run.
    """
    metrics = run / "metrics.jsonl"
    is_run = metrics.exists() and (run / "config.toml").exists()
    if (run / starts.JOURNAL).exists() or not is_run:
        return None
    return (
        "started without `hypnos launch`, so its starts, logs and job are not on record; last row "
        f"of {metrics.name}: {ago(metrics.stat().st_mtime)}"
    )


def progress(run: Path) -> str:
    """A run's last step, loss and checkpoint, in a line."""
    rows = rows_backwards(run / "metrics.jsonl")
    last = next((row for row in rows if row.get("kind") == "train"), None)
    if last is None:
        return f"{run}: no step yet"
    saved = starts.newest_step(run)
    settings = tomllib.loads((run / "config.toml").read_text())
    loss = "not finite" if last["loss"] is None else f"{last['loss']:.4f}"
    where = f"{run}: step {last['step']} of {settings['train']['steps']}, loss {loss}"
    if saved is None:
        return f"{where}; nothing saved yet"
    when = (run / "checkpoints" / f"step-{saved}").stat().st_mtime
    return f"{where}; saved: step {saved}, {ago(when)}"


def job(run: Path, every: list[Start]) -> str:
    """What is known of a run's newest job, in a line."""
    number = starts.newest_job(run)
    if number is not None:
        return f"job {number}: {slurm_state(number)}"
    last = every[-1]
    name = f"process {last.job} on {last.host}"
    if last.end is not None:
        return f"{name}: over"
    if last.host != this_host():
        return f"{name}: cannot be checked from this host"
    gone = "no longer running; no end was recorded"
    return f"{name}: {'running' if is_running(run, last) else gone}"


def check_over(run: Path) -> None:
    """UserError if the last submitted job or start is still going, as far as can be seen from here.
    Two at once would write to one folder, and `status` and `cancel` would only know the second.
    """
    fix = f"wait until it ends, or end it with `hypnos launch cancel {shlex.quote(str(run))}`"
    job = starts.newest_job(run)
    if job is not None:
        if shutil.which("squeue") and in_queue(job):
            raise UserError(f"{run}: job {job} is already in Slurm's queue; {fix}")
        return
    for last in starts.starts(run)[-1:]:
        here = last.end is None and last.host == this_host()
        # in a restarted container, a new process may have the same pid
        if here and int(last.job) != os.getpid() and is_running(run, last):
            raise UserError(f"{run}: process {last.job} is already training it; {fix}")


def is_gone(run: Path, newest: Start) -> bool:
    """Whether the launcher of the newest start is gone, as far as can be seen from here."""
    job = starts.newest_job(run)
    if job is not None:
        try:
            return shutil.which("squeue") is not None and not in_queue(job)
        except UserError:  # Slurm does not answer now, so the job may still be there
            return False
    return newest.host == this_host() and not is_running(run, newest)


def slurm_state(job: str) -> str:
    """A job's current state in Slurm; sites without accounting forget jobs after minutes."""
    if shutil.which("squeue") is None:
        raise UserError(f"job {job} is a Slurm job, and there is no Slurm here; use a cluster node")
    shown = "%T|%r|%M of %l|%N"
    line = _queued(job, shown)
    if line:
        state, reason, run_time, nodes = line.splitlines()[0].split("|")
        excluded = _field(job, "ExcNodeList")
        where = f" on {nodes}, {run_time}" if nodes else f" ({reason})"
        return f"{state.lower()}{where}" + (f", without {excluded}" if excluded else "")
    state = _field(job, "JobState")
    return (
        f"{state.lower()}, status {_field(job, 'ExitCode')}"
        if state
        else "over; Slurm has forgotten it"
    )


def in_queue(job: str) -> bool:
    """Whether a job is running or waiting in Slurm."""
    return bool(_queued(job, "%T"))


def down(nodes: Sequence[str]) -> tuple[str, ...]:
    """Those of some nodes that are down in Slurm.

    Empty if its commands are missing, as in some containers: then only the ranks' records tell.
    """
    if shutil.which("sinfo") is None:
        return ()
    lines = _said("sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N %T")
    states = dict(line.split() for line in lines.splitlines())  # one line per node and partition
    return tuple(node for node, state in states.items() if state.startswith("down"))


def _queued(job: str, shown: str) -> str:
    """squeue's output for a job; "" if it is over. UserError: Slurm does not answer."""
    command = ["squeue", "--noheader", f"--jobs={job}", f"--format={shown}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Invalid job id" not in done.stderr:  # or it has forgotten the job
        raise UserError(f"job {job}: Slurm did not answer ({done.stderr.strip()}); try again later")
    return done.stdout


def _field(job: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", _said("scontrol", "show", "job", "--oneliner", job))
    return "" if found is None or found[1] == "(null)" else found[1]


def _said(*command: str) -> str:
    """A Slurm command's output; "" if it does not know the job."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def is_running(run: Path, start: Start) -> bool:
    """Whether the `hypnos launch` of a start is running on this host. The copy of a run's folder
    names it, too, but it writes the logs of the original.
    """
    logs = start.logs(run).resolve()
    try:
        process = psutil.Process(int(start.job))
        if "launch" not in process.cmdline():
            return False
        folders = {Path(file.path).parent for file in process.open_files()}
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True
    return logs in folders or not any(folder.name == logs.name for folder in folders)


def ago(then: float) -> str:
    """As "3 min ago"."""
    seconds = max(0, int(time.time() - then))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
