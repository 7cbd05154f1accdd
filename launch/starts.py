"""What a run's folder says of its starts: launch.jsonl, and a folder of logs for each start.

    RUN/launch.jsonl       a JSON object a line: "submitted" to a queue, "start", "end" of a start
    RUN/logs/start-3/      rank-R.log  what rank R wrote
                           rank-R.end  how it ended, unless it finished
                           failed      the rank that failed first: that could create this file

One process at a time writes launch.jsonl: who submits, then the job. Ranks write what is theirs.
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
    """How a rank ended that did not finish."""

    rank: int
    host: str
    status: int
    told: bool  # it was told to end, by a signal
    time: float

    @classmethod
    def now(cls, rank: int, status: int, told: bool) -> RankEnd:
        """The end of a rank of this host, at this moment."""
        return cls(rank, this_host(), status, told, time.time())

    @property
    def of_itself(self) -> bool:
        """Whether it failed for a reason of its own."""
        return self.status not in (FINISHED, REQUEUE, PEER_GONE) and not self.told

    def write(self, logs: Path) -> None:
        """Leaves word; of those that fail of themselves, the first is written down as such.

        On a full disk, which may be why the rank failed, none is left: its status says it, too.
        """
        with contextlib.suppress(OSError):  # also that there is a first one already
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
    step: int | None  # of the newest checkpoint then
    time: float
    rank: int | None = None  # the one that failed first
    hosts: tuple[str, ...] = ()  # where it failed
    exclude: tuple[str, ...] = ()  # hosts that the next start does without
    lost: bool = False  # those hosts went, without a word of their ranks


@dataclass(frozen=True)
class Start:
    """One start of a run."""

    number: int
    launcher: str  # local, mpi or slurm
    job: str  # Slurm's number of it, or that of the launching process
    host: str  # where it was launched
    nodes: tuple[str, ...]
    ranks: int
    step: int | None  # of the newest checkpoint then; None: there was none
    time: float
    end: End | None = field(default=None, compare=False)

    def logs(self, run: Path) -> Path:
        return run / "logs" / f"start-{self.number}"


def begin(run: Path, launcher: str, job: str, nodes: tuple[str, ...], ranks: int) -> Start:
    """Writes a start down, and makes its folder of logs."""
    step, host = newest_step(run), this_host()
    number = max((start.number for start in starts(run)), default=0) + 1
    start = Start(number, launcher, job, host, nodes, ranks, step, time.time())
    with writes_user_file(run):
        start.logs(run).mkdir(parents=True, exist_ok=True)
    _write(run, "start", dataclasses.asdict(start))
    return start


def finish(run: Path, start: Start, end: End) -> None:
    """Writes the end of a start down."""
    _write(run, "end", {"number": start.number, **dataclasses.asdict(end)})


def submitted(run: Path, job: str) -> None:
    """Writes down that Slurm has a job for the run."""
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
    """The Slurm job that was submitted or started last; None: since then it was started elsewhere,
    or never there.
    """
    job = None
    for kind, row in _rows(run):
        if kind in ("submitted", "start"):
            job = row["job"] if row.get("launcher", "slurm") == "slurm" else None
    return job


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint, whole or not; None: there is none."""
    names = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdecimal()), default=None)


def log_of(logs: Path, rank: int) -> Path:
    """Where a rank's output goes."""
    return logs / f"rank-{rank}.log"


def rank_ends(logs: Path) -> dict[int, RankEnd]:
    """Of each rank that did not finish, how it ended; those that left no word are missing, and one
    whose host was lost while it wrote has left none.
    """
    ends = []
    for path in logs.glob("rank-*.end"):
        with contextlib.suppress(ValueError, TypeError):
            ends.append(RankEnd(**parse_json(path.read_text())))
    return {end.rank: end for end in ends}


def first_failed(logs: Path) -> int | None:
    """The rank that failed first for a reason of its own; None: none did."""
    path = logs / "failed"
    written = path.read_text() if path.exists() else ""
    return int(written) if written.endswith("\n") else None  # or it is being written


def _write(run: Path, kind: str, row: dict[str, Any]) -> None:
    with writes_user_file(run / JOURNAL):
        append_line(run / JOURNAL, json.dumps({"kind": kind, **row}))


def _rows(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind of each row, and the rest. One cut short by a crash is none."""
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
