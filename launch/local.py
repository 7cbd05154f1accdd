"""Runs the ranks of a world on this host: started together, ended together.

    stdout, stderr    rank 0's are printed as they come; each rank's go to a log of its own
    one rank fails    its last lines are printed first; the others get SIGTERM, then SIGKILL
    a signal          is forwarded to all ranks: SIGTERM and SIGUSR1 make them save and end
    this process dies the kernel kills the ranks (Linux), so that none is left behind

The ranks' store is hosted here, not in rank 0, so ranks that outlive rank 0 can still report.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.processes import (
    GRACE,
    HELD,
    Rank,
    default_threads,
    passing_signals_on,
    told_to_end,
)
from launch.starts import RankEnd, log_of
from pretrain.exit_status import FINISHED, PEER_GONE, REQUEUE


def run_ranks(command: Sequence[str], *, ranks: int, logs: Path) -> int:
    """Runs a command as every rank of a world on this host.

    Args:
        logs: folder for rank-R.log, and rank-R.end if the rank did not finish.
    Returns:
        0 if all ranks returned 0; 75 if all others returned 75; else the status of the first rank
        that failed (128 + n if signal n killed it).
    """
    from launch.store import listen

    logs.mkdir(parents=True, exist_ok=True)
    store = listen("127.0.0.1")
    starting = (_start(command, rank, ranks, store.port, logs) for rank in range(ranks))
    with passing_signals_on(starting) as (started, received):
        return _wait(started, received, logs)


def _start(command: Sequence[str], rank: int, ranks: int, port: int, logs: Path) -> Rank:
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher hosts the store
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    environment = {"OMP_NUM_THREADS": default_threads(ranks)} | os.environ | variables
    return Rank(command, environment, log_of(logs, rank), shown=rank == 0, held=HELD)


def _wait(ranks: list[Rank], received: list[int], logs: Path) -> int:
    """Waits for all ranks, but at most GRACE seconds after the first failure."""
    running, failed, asked = dict(enumerate(ranks)), FINISHED, False
    deadline = float("inf")
    while running:
        time.sleep(0.05)
        ended = [(n, status) for n, rank in running.items() if (status := rank.status) is not None]
        for number, status in sorted(ended, key=lambda end: end[1] == PEER_GONE):  # causes first
            del running[number]
            if status:
                RankEnd.now(number, status, told=asked or told_to_end(received)).write(logs)
            if status and (not failed or (failed == REQUEUE and not asked)):
                failed = status
            if status not in (FINISHED, REQUEUE) and not asked:
                asked, deadline = True, time.monotonic() + GRACE
                if not told_to_end(received):
                    _tell(number, status, ranks[number])
                for rank in running.values():
                    rank.process.terminate()
        if time.monotonic() > deadline:
            for rank in running.values():
                rank.process.kill()
    for rank in ranks:
        rank.join()
    return failed


def _tell(number: int, status: int, rank: Rank) -> None:
    """Reports the first failure, with the rank's last lines."""
    rank.join()
    last = [] if rank.shown else list(rank.last)
    end = f"rank {number} ended with status {status} ({rank.log})"
    print(f"hypnos: error: {end}{':' * bool(last)}", file=sys.stderr)
    for line in last:
        print("  " + line.decode(errors="replace").rstrip(), file=sys.stderr)
    sys.stderr.flush()
