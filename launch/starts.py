"""The record of a run's starts in its folder: launch.jsonl, and a folder of logs for each start.

    RUN/launch.jsonl       one JSON object per line: "submitted" to a queue, "start", "end"
    RUN/logs/start-3/      rank-R.log  the output of rank R
                           rank-R.end  how it ended, unless it finished
                           failed      the rank that failed first (the one that created this file)

One process at a time writes launch.jsonl: first the submitter, then the job. Ranks write their own
files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.world import this_host
from pretrain.errors import UserError, shortened
from pretrain.exit_status import FINISHED, PEER_GONE, REQUEUE
from pretrain.files import append_line, parse_json, write_atomically, writes_user_file

JOURNAL = "launch.jsonl"


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended, if it did not finish."""

    rank: int
    host: str
    status: int
    told: bool  # whether it was told to end, by a signal
    time: float

    @classmethod
    def now(cls, rank: int, status: int, told: bool) -> RankEnd:
        """The end of a rank on this host, now."""
        return cls(rank, this_host(), status, told, time.time())

    @property
    def of_itself(self) -> bool:
        """Whether it failed by itself, not because of others or a signal."""
        return self.status not in (FINISHED, REQUEUE, PEER_GONE) and not self.told

    def write(self, logs: Path) -> None:
        """Writes the record; the first rank that fails by itself is also recorded as such.

        On a full disk, which may be why the rank failed, nothing is written; its status remains.
        """
        with contextlib.suppress(OSError):  # includes: another rank has failed first
            write_atomically(
                logs / f"rank-{self.rank}.end", json.dumps(dataclasses.asdict(self)) + "\n"
            )
            if self.of_itself:
                with (logs / "failed").open("x") as file:
                    file.write(f"{self.rank}\n")


@dataclass(frozen=True)
class End:
    """How a start ended."""

    status: int
    why: str  # a line
    step: int | None  # of the newest checkpoint at that time
    time: float
    rank: int | None = None  # the one that failed first
    hosts: tuple[str, ...] = ()  # where it failed
    exclude: tuple[str, ...] = ()  # hosts that the next start must not use
    lost: bool = False  # whether these hosts were lost, with no record from their ranks


@dataclass(frozen=True)
class Start:
    """One start of a run."""

    number: int
    launcher: str  # local, mpi or slurm
    job: str  # the Slurm job's number, or the launcher's pid
    host: str  # where it was launched
    nodes: tuple[str, ...]
    ranks: int
    step: int | None  # of the newest checkpoint at that time; None: there was none
    time: float
    end: End | None = field(default=None, compare=False)

    def logs(self, run: Path) -> Path:
        return run / "logs" / f"start-{self.number}"


def begin(run: Path, launcher: str, job: str, nodes: tuple[str, ...], ranks: int) -> Start:
    """Records a start, and makes its folder of logs."""
    step, host = newest_step(run), this_host()
    number = max((start.number for start in starts(run)), default=0) + 1
    start = Start(number, launcher, job, host, nodes, ranks, step, time.time())
    with writes_user_file(run):
        start.logs(run).mkdir(parents=True, exist_ok=True)
    _write(run, "start", dataclasses.asdict(start))
    return start


def finish(run: Path, start: Start, end: End) -> None:
    """Records the end of a start."""
    _write(run, "end", {"number": start.number, **dataclasses.asdict(end)})


def submitted(run: Path, job: str) -> None:
    """Records that a Slurm job was submitted for the run."""
    with writes_user_file(run):
        run.mkdir(parents=True, exist_ok=True)
    _write(run, "submitted", {"job": job, "time": time.time()})


def starts(run: Path) -> list[Start]:
    """All starts of a run, the oldest first."""
    found: dict[int, Start] = {}
    for kind, row in _rows(run):
        if kind == "start":
            start = Start(**row | {"nodes": tuple(row["nodes"]), "end": None})
            found[start.number] = start
        elif kind == "end" and (number := row.pop("number")) in found:
            lists = {name: tuple(row[name]) for name in ("hosts", "exclude")}
            found[number] = dataclasses.replace(found[number], end=End(**row | lists))
    return list(found.values())


def newest_job(run: Path) -> str | None:
    """The Slurm job that was submitted or started last; None if there was none, or the newest start
    used another launcher.
    """
    job = None
    for kind, row in _rows(run):
        if kind in ("submitted", "start"):
            job = row["job"] if row.get("launcher", "slurm") == "slurm" else None
    return job


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint, intact or not; None: there is none."""
    names = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdecimal()), default=None)


def log_of(logs: Path, rank: int) -> Path:
    """The path of a rank's log."""
    return logs / f"rank-{rank}.log"


def rank_ends(logs: Path) -> dict[int, RankEnd]:
    """How each rank ended that did not finish; without those that left no record, or an incomplete
    one because their host was lost.
    """
    ends = []
    for path in logs.glob("rank-*.end"):
        with contextlib.suppress(ValueError, TypeError):
            ends.append(RankEnd(**parse_json(path.read_text())))
    return {end.rank: end for end in ends}


def first_failed(logs: Path) -> int | None:
    """The rank that first failed by itself; None: none did."""
    path = logs / "failed"
    written = path.read_text() if path.exists() else ""
    return int(written) if written.endswith("\n") else None  # else it is still being written


def _write(run: Path, kind: str, row: dict[str, Any]) -> None:
    with writes_user_file(run / JOURNAL):
        append_line(run / JOURNAL, json.dumps({"kind": kind, **row}))


def _rows(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind and content of each row; skips one that was cut short by a crash."""
    path = run / JOURNAL
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or "kind" not in row:
            what = f"this line is not from `hypnos launch`: {shortened(line, 40)}"
            raise UserError(f"{path}: {what}; remove it")
        yield row.pop("kind"), row
