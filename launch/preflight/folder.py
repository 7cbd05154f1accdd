"""Whether all ranks see one run folder: each leaves a token in it, and reads rank 0's.

The folder itself may not exist yet, and a run that is refused is to leave none. So it is tried in
the nearest folder above that exists on rank 0, the same number of levels up on each rank.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 5.0  # in which a network file system shows to one host what another has written
PREFIX = ".preflight-"


@dataclass(frozen=True)
class Meeting:
    """Where tokens are left: in which folder above the run's, under which name. Rank 0 sends it."""

    levels: int
    name: str

    def folder(self, run: Path) -> Path:
        """Of this rank, whose current folder may be another than rank 0's."""
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
    """Leaves this rank's token beside rank 0's; "", or why it could not."""
    folder = meeting.folder(run)
    try:
        if rank and not _appears(folder / "0"):
            return f"{folder.parent} is not the folder that rank 0 sees: rank 0's files are missing"
        (folder / str(rank)).write_text(str(rank))
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return ""


def missing_tokens(meeting: Meeting, run: Path, ranks: Iterable[int]) -> set[int]:
    """The ranks whose tokens rank 0 does not see, after some patience."""
    folder, deadline = meeting.folder(run), time.monotonic() + PATIENCE_S
    while True:
        missing = set(ranks) - {int(path.name) for path in folder.iterdir()}
        # opening asks the file system's server anew, which listing may not
        missing = {rank for rank in missing if not (folder / str(rank)).exists()}
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.1)


def end(meeting: Meeting, run: Path) -> None:
    """Rank 0 takes all tokens away."""
    shutil.rmtree(meeting.folder(run), ignore_errors=True)


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
