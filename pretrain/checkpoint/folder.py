"""A run's folder of checkpoints: which exist, which one is the latest, which are kept."""

from __future__ import annotations

import itertools
import re
import shutil
from contextlib import suppress
from pathlib import Path

from pretrain import files
from pretrain.errors import UserError, shortened
from pretrain.files import read_whole, write_atomically

LATEST = "latest"
NAME = re.compile(r"step-(0|[1-9][0-9]{0,14})")  # step-007 is not a checkpoint
GIVEN_UP = re.compile(rf"given-up-{NAME.pattern}(-[0-9]+)?")
UNFINISHED = re.compile(r"\.step-[0-9]+\.(draft|old|replaced)|\.latest\.draft")


def steps(run: Path) -> list[int]:
    """The steps that a run has checkpoints of, oldest first."""
    found = [NAME.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def strays(run: Path) -> list[str]:
    """A line about each file or folder among a run's checkpoints that does not belong there."""
    known = {LATEST, *(f"step-{step}" for step in steps(run)), *given_up(run)}
    return files.strays(run / "checkpoints", known)


def given_up(run: Path) -> list[str]:
    """The names of checkpoints that were taken out of a run's series, see `make_latest`."""
    found = (path.name for path in (run / "checkpoints").glob("given-up-step-*"))
    return sorted(name for name in found if GIVEN_UP.fullmatch(name))


def checkpoint_dir(run: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return run / "checkpoints" / f"step-{step}"


def pointed_at(run: Path) -> int | None:
    """The step that `latest` names; None if there is no `latest`. UserError: it is damaged."""
    pointer = run / "checkpoints" / LATEST
    try:
        content = read_whole(pointer)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{pointer}: cannot be read: {error.strerror}") from None
    named = NAME.fullmatch(content.decode(errors="replace").removesuffix("\n"))
    if named is None:
        raise UserError(f"{pointer}: damaged, it names no checkpoint")
    return int(named[1])


def remove_incomplete(run: Path) -> None:
    """Removes what a killed run has left half written or half deleted, and restores what it was
    replacing. Touches nothing else in the folder.
    """
    for path in (run / "checkpoints").glob(".step-*.replaced"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        if not final.exists():
            path.rename(final)
    for path in (run / "checkpoints").glob(".*"):
        if UNFINISHED.fullmatch(path.name):
            _remove(path)


def make_latest(run: Path, step: int) -> str | None:
    """Makes a checkpoint the latest of its run, and renames all later ones.

    The later ones were given up by going back, or are damaged: under their old names a run that
    reaches their steps would take them for its own, resume from them, and keep them in place of its
    own. Nothing is deleted: the user may still want them. `latest` is updated first, so that if
    this is killed, the next start repeats it.

    Returns:
        a line about the renamed ones, if there are any.
    """
    write_atomically(checkpoint_dir(run, step).with_name(LATEST), f"step-{step}\n")
    later = [number for number in steps(run) if number > step]
    for number in later:
        name = f"given-up-step-{number}"
        numbered = (f"{name}-{again}" for again in itertools.count(2))
        free = next(n for n in itertools.chain([name], numbered) if n not in given_up(run))
        checkpoint_dir(run, number).rename(run / "checkpoints" / free)
    if not later:
        return None
    names = shortened(", ".join(f"step-{number}" for number in later))
    return (
        f"{run / 'checkpoints'}: {names} renamed to given-up-step-N, as the run resumes "
        f"from the earlier step-{step}; delete them if you do not need them"
    )


def draft_dir(run: Path, step: int) -> Path:
    """The folder in which a checkpoint is written before it is published."""
    return run / "checkpoints" / f".step-{step}.draft"


def make_draft(run: Path, step: int) -> None:
    """Makes an empty draft. Files of an earlier draft that cannot be removed are harmless: they are
    in no index.
    """
    remove_draft(run, step)
    draft_dir(run, step).mkdir(parents=True, exist_ok=True)


def remove_draft(run: Path, step: int) -> None:
    """Removes the draft of a checkpoint that failed, to free its space."""
    _remove(draft_dir(run, step))


def publish(run: Path, step: int, keep: int, keep_every: int, keep_all: bool = False) -> None:
    """Renames a complete draft, points `latest` at it, and deletes old checkpoints.

    Args:
        keep: how many of the newest to keep. keep_every: also keep those of every so many steps;
            0: none.
        keep_all: delete none, since the last one that the run can go back to may be among them.
    """
    final = checkpoint_dir(run, step)
    replaced = final.with_name(f".{final.name}.replaced")
    # after a rollback or a first evaluation, the checkpoint that the run resumed from is rewritten
    if final.exists():
        final.rename(replaced)
    draft_dir(run, step).rename(final)
    _remove(replaced)
    make_latest(run, step)  # after a rollback there may be later checkpoints
    for number in [] if keep_all else steps(run)[:-keep]:
        if not keep_every or number % keep_every:
            _delete(checkpoint_dir(run, number))


def _delete(folder: Path) -> None:
    """Deletes a checkpoint; renames it first, so that half a folder never looks like one."""
    doomed = folder.with_name(f".{folder.name}.old")
    _remove(doomed)
    with suppress(OSError):
        folder.rename(doomed)
        _remove(doomed)


def _remove(path: Path) -> None:
    """Removes a folder with its content, or a file; of a link, only the link.

    What cannot be removed, because on a network file system a reader has a file open, is left to
    the next `remove_incomplete`. Nothing takes it for a checkpoint.
    """
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
