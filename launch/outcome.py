"""Decides why a start of a run ended, whether to start again, and without which hosts.

    finished, a user's error, or told to stop        no other start
    its time was up (75)                             another start
    a rank failed                                    another start; a host where that has happened
                                                     twice is excluded, an unfit one at once
    a host was lost: its ranks left no record        another start without it

But if the last `retries` starts of the job produced no new checkpoint, there is no other: a job
that always fails before the first save would loop for ever.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from launch.processes import LAST_LINES
from launch.starts import End, Start, first_failed, log_of, newest_step, rank_ends
from pretrain.exit_status import FINISHED, PEER_GONE, REQUEUE, TERMINATED, UNFIT, USER_ERROR
from pretrain.tail import lines_backwards

NO_OTHER_START = (FINISHED, USER_ERROR, TERMINATED, 128 + signal.SIGINT)


@dataclass(frozen=True)
class Verdict:
    """What to do after a start."""

    end: End
    again: bool
    why_not: str  # a line, if the starts make no progress


def judge(
    run: Path,
    start: Start,
    earlier: Sequence[Start],
    status: int,
    retries: int,
    down: Collection[str] = (),
) -> Verdict:
    """Why a start has ended, and what to do next.

    Args:
        start: the one that has ended, its end not recorded yet.
        earlier: the starts before it.
        status: of the launcher: srun, mpirun.
        retries: how many starts of one job in a row may produce no new checkpoint.
        down: hosts that the scheduler has lost.
    """
    before = [other for other in earlier if other.job == start.job]
    end = why_ended(run, start, status, down)
    end = replace(end, exclude=_excluded(end, before))
    why_not = "" if end.status in (FINISHED, USER_ERROR) else _stalled(end, start, before, retries)
    return Verdict(end, end.status not in NO_OTHER_START and not why_not, why_not)


def _stalled(end: End, start: Start, before: Sequence[Start], retries: int) -> str:
    """A line if the last starts of a job have produced no new checkpoint."""
    count = 0
    for other in [replace(start, end=end), *reversed(before)]:
        if other.end is None or other.end.step != other.step:
            break
        count += 1
    if count < retries:
        return ""
    since = "there is none yet" if end.step is None else f"the newest is of step {end.step}"
    starts = f"{count} starts in a row" if count > 1 else "this start"
    return f"{starts} brought no new checkpoint ({since}), so the run is not restarted"


def why_ended(run: Path, start: Start, status: int, down: Collection[str] = ()) -> End:
    """Why a start ended, from what its ranks left in the folder of logs; arguments as `judge`."""
    logs = start.logs(run)
    ends, step, now = rank_ends(logs), newest_step(run), time.time()
    if status == FINISHED:
        return End(FINISHED, "finished", step, now)
    first = first_failed(logs)
    if first is not None:
        end = ends[first]
        if end.status == UNFIT and (found := _preflight(run)):
            why, hosts = found
            return End(UNFIT, why, step, now, first, hosts)
        why = f"rank {first} on {end.host} ended with {described(end.status)}"
        return End(end.status, why, step, now, first, (end.host,))
    began = [rank for rank in range(start.ranks) if log_of(logs, rank).exists()]
    unheard = not began and status == 128 + signal.SIGUSR1  # before any handler
    if unheard or any(end.status == REQUEUE for end in ends.values()):
        # mpirun's ranks get SIGUSR1 even if the signal was SIGTERM (launch/mpi.py)
        if start.launcher == "mpi" and status in NO_OTHER_START:
            return End(status, f"stopped: {described(status)}", step, now)
        return End(REQUEUE, "the time limit was reached", step, now)
    if not began:
        # 143 is also srun's status for tasks that it has ended itself; jobs are told to end in
        # slurm.sbatch
        ended = start.launcher == "slurm" and status == TERMINATED
        why = f"no rank started ({described(status)})"
        return End(PEER_GONE if ended else status, why, step, now)
    silent = [rank for rank in range(start.ranks) if rank not in ends]
    # a scheduler that has lost a host may kill the other hosts' ranks before they leave a record
    gone = [rank for rank in silent if _hosts(start, [rank])[0] in down]
    silent = gone or silent
    lost = _hosts(start, silent)
    if gone or (silent and 2 * len(lost) <= len(start.nodes)):  # if more, hosts are not the cause
        of_ranks = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
        why = f"{', '.join(lost)} lost: {of_ranks} left no exit record"
        return End(PEER_GONE, why, step, now, silent[0], lost, lost=True)
    if told := [end.status for end in ends.values() if end.told]:
        return End(told[0], f"stopped: {described(told[0])}", step, now)
    return End(status, f"ended with {described(status)}", step, now)


def _preflight(run: Path) -> tuple[str, tuple[str, ...]] | None:
    """The preflight's record (launch/preflight): its first problem, and the unfit hosts."""
    path = run / "preflight.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found["problems"][0], tuple(found["bad_hosts"])


def _hosts(start: Start, ranks: Sequence[int]) -> tuple[str, ...]:
    """The hosts of ranks: launchers fill one host after the other."""
    each = max(1, start.ranks // max(1, len(start.nodes)))
    found = (start.nodes[min(rank // each, len(start.nodes) - 1)] for rank in ranks)
    return tuple(dict.fromkeys(found))


def _excluded(end: End, before: Sequence[Start]) -> tuple[str, ...]:
    """Hosts to exclude from the next start: those excluded so far, and those blamed for this
    end.
    """
    so_far = [host for start in before if start.end for host in start.end.exclude]
    blamed = [host for start in before if start.end for host in start.end.hosts]
    at_once = end.status == UNFIT or end.lost
    new = [host for host in end.hosts if at_once or host in blamed]
    if end.status in NO_OTHER_START:
        new = []
    return tuple(dict.fromkeys(so_far + new))


def described(status: int) -> str:
    """A status in words."""
    if status > 128 and status - 128 in set(signal.Signals):
        return f"status {status} ({signal.Signals(status - 128).name})"
    return f"status {status}"


def tell(run: Path, start: Start, end: End) -> None:
    """Prints to stderr why a start ended, and the last lines of the rank that failed first."""
    print(f"hypnos: start {start.number} of {run}: {end.why}", file=sys.stderr)
    if end.rank is not None:
        log = log_of(start.logs(run), end.rank)
        # one more, since the last one may be empty
        end_of_log = "\n".join([*islice(lines_backwards(log), LAST_LINES + 1)][::-1])
        lines = end_of_log.splitlines()[-LAST_LINES:] or ["(it is empty)"]
        print(f"the end of {log}:", *lines, sep="\n  ", file=sys.stderr)
    sys.stderr.flush()
