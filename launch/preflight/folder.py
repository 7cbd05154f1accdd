"""Checks that all ranks see the same run folder: each leaves a token in it, and reads rank 0's.

The folder may not exist yet, and a refused run must not create it. So the nearest ancestor that
exists on rank 0 is used, the same number of levels up on each rank.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 5.0  # within which a network file system shows one host's files to another
PREFIX = ".preflight-"


@dataclass(frozen=True)
class Meeting:
    """Where tokens are left: in which ancestor of the run's folder, under which name; from rank
    0.
    """

    levels: int
    name: str

    def folder(self, run: Path) -> Path:
        """The folder on this rank, whose current folder may differ from rank 0's."""
        run = Path(os.path.abspath(run))
        return [run, *run.parents][self.levels] / self.name


def begin(run: Path, name: str) -> Meeting:
    """Rank 0 makes the folder, with a token of its own. OSError: it cannot."""
    run = Path(os.path.abspath(run))
    levels = next(i for i, folder in enumerate([run, *run.parents]) if folder.is_dir())
    meeting = Meeting(levels, PREFIX + name)
    meeting.folder(run).mkdir()
    leave_token(meeting, run, 0)
    return meeting


def leave_token(meeting: Meeting, run: Path, rank: int) -> str:
    """Leaves this rank's token beside rank 0's; returns "", or why it could not."""
    folder = meeting.folder(run)
    try:
        if rank and not _appears(folder / "0"):
            return f"{folder.parent} is not the folder that rank 0 sees: rank 0's files are missing"
        (folder / str(rank)).write_text(str(rank))
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return ""


def missing_tokens(meeting: Meeting, run: Path, ranks: Iterable[int]) -> set[int]:
    """The ranks whose tokens rank 0 does not see, after waiting up to PATIENCE_S."""
    folder, deadline = meeting.folder(run), time.monotonic() + PATIENCE_S
    while True:
        missing = set(ranks) - {int(path.name) for path in folder.iterdir()}
        # looking up a path asks the file system's server again; listing may use a cache
        missing = {rank for rank in missing if not (folder / str(rank)).exists()}
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.1)


def end(meeting: Meeting, run: Path) -> None:
    """Rank 0 removes all tokens."""
    shutil.rmtree(meeting.folder(run), ignore_errors=True)


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
