"""The folder of a run's checkpoints: which there are, which one is the newest, and which are kept."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.errors import UserError
from pretrain.files import write_atomically

NAME = re.compile(r"step-(0|[1-9][0-9]{0,14})")  # as `place` writes it: step-007 is no checkpoint


def steps(run: Path) -> list[int]:
    """The steps that a run has checkpoints of, oldest first."""
    found = [NAME.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def checkpoint_dir(run: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return run / "checkpoints" / f"step-{step}"


def pointed_at(run: Path) -> int | None:
    """The step that `latest` names (alone on its line, if written by hand); None without it.
    UserError: damaged.
    """
    pointer = run / "checkpoints" / "latest"
    if not os.path.lexists(pointer):
        return None
    content = b""
    if pointer.is_file():
        with pointer.open("rb") as file:
            content = file.read(100)
    named = NAME.match(content.decode(errors="replace"))
    if named is None or content not in (f"{named[0]}\n".encode(), _pointer(named[0]).encode()):
        raise UserError(f"{pointer}: damaged, it names no checkpoint")
    return int(named[1])


def _pointer(name: str) -> str:
    """What is in `latest`: a name, and its crc32, as one flipped bit would make it another step's."""
    return f"{name} {zlib.crc32(name.encode()):08x}\n"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Inside, the run is this process's alone. UserError if another has it; a process that ends
    gives it back.
    """
    path = run / "lock"
    if path.is_symlink():
        raise UserError(f"{path}: is a link to another place; remove it")
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{run}: another run is writing here ({file.read().strip()}); wait for it, or set another run.name"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def remove_incomplete(run: Path) -> None:
    """Removes what a run that was killed has left half written, or half deleted, and puts back what
    it had replaced.
    """
    for path in (run / "checkpoints").glob(".step-*.replaced"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        if not final.exists():
            path.rename(final)
    for path in (run / "checkpoints").glob(".*"):
        _remove(path)


def draft(run: Path, step: int) -> Path:
    """The name under which a checkpoint is written."""
    return run / "checkpoints" / f".step-{step}.draft"


def begin(run: Path, step: int) -> None:
    """Makes an empty draft."""
    give_up(run, step)
    draft(run, step).mkdir(parents=True)


def give_up(run: Path, step: int) -> None:
    """Removes a draft."""
    _remove(draft(run, step))


def publish(run: Path, step: int, keep: int, keep_every: int) -> None:
    """Gives a draft that is whole its name, points `latest` at it, and deletes what is no longer
    kept.

    Args:
        keep: so many of the newest stay. keep_every: so do those of every so many steps; 0: no
            others.
    """
    final = checkpoint_dir(run, step)
    replaced = final.with_name(f".{final.name}.replaced")
    # a damaged one, or one of a future that was given up: a resumed run has come here again
    if final.exists():
        final.rename(replaced)
    draft(run, step).rename(final)
    _remove(replaced)
    write_atomically(final.with_name("latest"), _pointer(final.name))
    for number in [n for n in steps(run) if n <= step][:-keep]:
        if not keep_every or number % keep_every:
            _delete(checkpoint_dir(run, number))


def _delete(folder: Path) -> None:
    """Renamed first: half a folder must not look like a checkpoint."""
    doomed = folder.with_name(f".{folder.name}.old")
    _remove(doomed)
    with suppress(OSError):
        folder.rename(doomed)
        _remove(doomed)


def _remove(path: Path) -> None:
    """A folder with what is in it, or a file; of a link, the link alone.

    What cannot be removed is left to the next remove_incomplete: a reader may have a file of it open on a
        network's disk, and
    nothing takes it for a checkpoint.
    """
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
