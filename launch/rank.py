"""Runs one rank under srun or mpirun: its output goes to a log of its own, its end is recorded.

stdout, stderr    rank 0's are printed as they come; each rank's go to LOGS/rank-R.log
it fails          LOGS/rank-R.end says how, LOGS/failed which rank was the first
a signal          is forwarded; after SIGTERM, if some rank has failed, SIGKILL follows: the
                  launcher ends the others, which would wait for the dead one to save with them
this dies         the kernel kills the rank (Linux)
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.outcome import described
from launch.processes import GRACE, HELD, Rank, passing_signals_on, told_to_end
from launch.starts import RankEnd, first_failed, log_of
from launch.world import this_host
from pretrain.exit_status import UNFIT

# seconds for a folder to become visible on a network file system; and for ranks of other hosts to
# start: they report in place of one whose host cannot write
WAIT_S = 10.0


def run_rank(command: Sequence[str], rank: int, logs: Path) -> int:
    """Runs a command as the rank that a launcher has started here; returns its exit status.

    Args:
        logs: a start's folder of logs, which exists already.
    """
    deadline = time.monotonic() + WAIT_S
    while not logs.is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    if not logs.is_dir():
        what = f"rank {rank} on {this_host()}: {logs} does not exist"
        fix = "mount the file system of run.dir on all hosts"
        print(f"hypnos: error: {what}; {fix}", file=sys.stderr)
        return UNFIT
    process = Rank(command, os.environ, log_of(logs, rank), shown=rank == 0, held=HELD)
    with passing_signals_on([process]) as (_, received):
        status = _wait(process, received, logs)
        process.join()
    if status:
        end = RankEnd.now(rank, status, told=told_to_end(received))
        end.write(logs)
        if end.of_itself:
            what = f"rank {rank} on {end.host} ended with {described(status)} ({process.log})"
            print(f"hypnos: error: {what}", file=sys.stderr, flush=True)
    return status


def _wait(process: Rank, received: list[int], logs: Path) -> int:
    """Waits for the rank to end, but at most GRACE seconds once another has failed."""
    deadline = float("inf")
    while (status := process.status) is None:
        time.sleep(0.1)
        if (
            signal.SIGTERM in received
            and deadline == float("inf")
            and first_failed(logs) is not None
        ):
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            process.process.kill()
    return status
