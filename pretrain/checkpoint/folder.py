"""The folder of a run's checkpoints: which there are, which one is the newest, which are kept."""

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
NAME = re.compile(r"step-(0|[1-9][0-9]{0,14})")  # step-007 is no checkpoint
GIVEN_UP = re.compile(rf"given-up-{NAME.pattern}(-[0-9]+)?")
UNFINISHED = re.compile(r"\.step-[0-9]+\.(draft|old|replaced)|\.latest\.draft")


def steps(run: Path) -> list[int]:
    """The steps that a run has checkpoints of, oldest first."""
    found = [NAME.fullmatch(path.name) for path in (run / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def strays(run: Path) -> list[str]:
    """A line about each thing beside a run's checkpoints that is none."""
    known = {LATEST, *(f"step-{step}" for step in steps(run)), *given_up(run)}
    return files.strays(run / "checkpoints", known)


def given_up(run: Path) -> list[str]:
    """The names of checkpoints that have been taken out of a run's series, see `make_latest`."""
    found = (path.name for path in (run / "checkpoints").glob("given-up-step-*"))
    return sorted(name for name in found if GIVEN_UP.fullmatch(name))


def checkpoint_dir(run: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return run / "checkpoints" / f"step-{step}"


def pointed_at(run: Path) -> int | None:
    """The step that `latest` names; None without it. UserError: damaged."""
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
    """Removes what a run that was killed has left half written, or half deleted, and puts back what
    it had replaced. Nothing else: what others keep there is theirs.
    """
    for path in (run / "checkpoints").glob(".step-*.replaced"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".replaced"))
        if not final.exists():
            path.rename(final)
    for path in (run / "checkpoints").glob(".*"):
        if UNFINISHED.fullmatch(path.name):
            _remove(path)


def make_latest(run: Path, step: int) -> str | None:
    """Makes a checkpoint the latest of its run, and takes all that come after it out of the series.

    They are of a future that was given up, or damaged: if they kept their names, a run that comes
    by would take them for its past, go back to them, and keep them in the place of its own. Nothing
    is deleted: whoever went back may want them yet. The pointer moves first, so that a start that
    is killed here is made again by the next.

    Returns:
        a line about those that have another name now, if there are any.
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
    """The name under which a checkpoint is written."""
    return run / "checkpoints" / f".step-{step}.draft"


def make_draft(run: Path, step: int) -> None:
    """Makes an empty draft. What cannot be removed of one before it is in no index: harmless."""
    remove_draft(run, step)
    draft_dir(run, step).mkdir(parents=True, exist_ok=True)


def remove_draft(run: Path, step: int) -> None:
    """Gives a checkpoint up: what is half written takes room."""
    _remove(draft_dir(run, step))


def publish(run: Path, step: int, keep: int, keep_every: int, keep_all: bool = False) -> None:
    """Gives a draft that is whole its name, points `latest` at it, and deletes old ones.

    Args:
        keep: so many of the newest stay. keep_every: so do those of every so many steps; 0: none.
        keep_all: delete none: the last that a run can go back to may be among them.
    """
    final = checkpoint_dir(run, step)
    replaced = final.with_name(f".{final.name}.replaced")
    # the one that the run goes on from is written anew after a rollback, or a first evaluation
    if final.exists():
        final.rename(replaced)
    draft_dir(run, step).rename(final)
    _remove(replaced)
    make_latest(run, step)  # after a rollback there may be later ones
    for number in [] if keep_all else steps(run)[:-keep]:
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

    What cannot be removed is left to the next `remove_incomplete`: on a network's disk a reader may
    have a file of it open. Nothing takes it for a checkpoint.
    """
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
