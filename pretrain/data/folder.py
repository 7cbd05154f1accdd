"""Finds the files of a source, and tallies what is read and left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from pretrain.data.suffixes import ROW_SUFFIXES, TEXT_SUFFIXES, split_suffix
from pretrain.errors import UserError, shortened
from tokenizer.hub import download_first

MAX_SUFFIXES = 10  # how many a line names


class Tally:
    """Counts what was done with the files and rows of all sources, by kind."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()  # files, by suffix
        self.separator = ""  # at which text files were split
        self.unread: Counter[str] = Counter()  # files whose suffix is not among those read
        self._left_out: dict[tuple[str, str], tuple[int, str]] = {}  # count, and the first place

    def add_file(self, suffix: str, separator: str) -> None:
        """Count one file that was read (text files are split at the separator, if there is one)."""
        self.read[suffix] += 1
        self.separator = separator

    def leave_out(self, unit: str, kind: str, place: str | Path) -> None:
        """Count one "row", "file" or "folder" that is left out for the reason `kind`."""
        count, first = self._left_out.get((unit, kind), (0, str(place)))
        self._left_out[unit, kind] = count + 1, first

    def add(self, other: Tally) -> None:
        """Add the counts of another tally, of sources that come after this one's."""
        self.read.update(other.read)
        self.separator = self.separator or other.separator
        self.unread.update(other.unread)
        for what, (count, place) in other._left_out.items():
            mine, first = self._left_out.get(what, (0, place))
            self._left_out[what] = mine + count, first

    def lines(self) -> list[str]:
        """Lines on what was read and what was left out, with the first place for each kind."""
        lines = []
        texts = f"split at each {self.separator!r}" if self.separator else "each as one text"
        for are_rows, how in ((True, "row by row"), (False, texts)):
            read = {s: n for s, n in self.read.items() if _holds_rows(s) == are_rows}
            if read:
                lines.append(f"read {_count(Counter(read))}, {how}")
        for (unit, kind), (count, first) in self._left_out.items():
            what, which = (unit, "") if count == 1 else (f"{unit}s", "the first: ")
            lines.append(f"left out {count:,} {what}: {kind} ({which}{shortened(first, 300)})")
        if self.unread:
            lines.append(f"left out {_count(self.unread)}: choose suffixes with --suffix")
        return lines


def _holds_rows(name: str) -> bool:
    """Whether a file with this name or suffix holds one document per row."""
    return split_suffix(f"_{name}")[0] in ROW_SUFFIXES


def _count(suffixes: Counter[str]) -> str:
    """1,204 files (1,200 .py, 4 .txt)."""
    common = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{n:,} {suffix or 'without a suffix'}" for suffix, n in common]
    if len(named) > MAX_SUFFIXES:
        others = len(named) - MAX_SUFFIXES
        named[MAX_SUFFIXES:] = [f"{others:,} other suffixes"]
    total = suffixes.total()
    return f"{total:,} file{'s' if total > 1 else ''} ({', '.join(named)})"


def find_files(
    source: Path,
    suffixes: Collection[str] | None,
    tally: Tally,
    *,
    skip_bad: bool,
    without: Collection[str] = (),
) -> list[tuple[Path, str]]:
    """(file, the source name of its documents): a file itself, or a folder's files, sorted.

    suffixes: those to read in folders, in any case; None: all known ones, except READMEs beside or
        above files of rows (they are dataset cards), and the caches that `datasets` made from files
        beside them.
    skip_bad: leave out folders that cannot be read.
    without: names of folders to skip.
    """
    if not os.path.isdir(source):
        if not os.path.lexists(source):
            hint = download_first(source, dataset=True) or "; give a folder or a file of text"
            raise UserError(f"{source}: no such file or folder{hint}")
        return [(source, str(source))]
    names = [
        path.relative_to(source).as_posix() for path in _walk(source, without, tally, skip_bad)
    ]
    chosen = [name for name in names if _is_wanted(name, suffixes)]
    here = Counter("".join(split_suffix(name)) for name in names if not _is_wanted(name, suffixes))
    if not chosen:
        found = f"which holds {_count(here)}" if here else "which holds no files"
        raise UserError(
            f"{source}: no file to read in this folder, {found}; choose suffixes with --suffix"
        )
    tally.unread.update(here)
    if suffixes is None:
        for name in (derived := sorted(filter(_is_derived, chosen))):
            tally.leave_out("file", "cache of `datasets`, derived from other files", source / name)
        chosen = list(set(chosen).difference(derived))
        for name in (cards := _cards(chosen)):
            tally.leave_out("file", "README taken as dataset card of data beside it", source / name)
        chosen = list(set(chosen).difference(cards))
    return [(source / name, f"{source.name}/{name}") for name in sorted(chosen)]


def _is_wanted(name: str, suffixes: Collection[str] | None) -> bool:
    if suffixes is None:
        return split_suffix(name)[0] in TEXT_SUFFIXES + ROW_SUFFIXES
    whole = name.lower()
    bare = whole.removesuffix(split_suffix(name)[1])
    return any(ending.endswith(suffix.lower()) for ending in (whole, bare) for suffix in suffixes)


def _cards(names: list[str]) -> list[str]:
    """The READMEs with files of rows beside or below them: dataset cards."""
    rows = [PurePosixPath(name) for name in names if _holds_rows(name)]
    above = {folder for path in rows for folder in path.parents}
    return [name for name in names if _is_readme(name) and PurePosixPath(name).parent in above]


def _is_derived(name: str) -> bool:
    """Whether `datasets` names files so that hold the result of a map or a filter of the files
    beside them: the same documents once more.
    """
    return re.fullmatch(r"cache-[0-9a-f]{16}.*\.arrow", PurePosixPath(name).name) is not None


def _is_readme(name: str) -> bool:
    path = Path(name.lower())
    return path.stem == "readme" and path.suffix in TEXT_SUFFIXES


def _walk(source: Path, without: Collection[str], tally: Tally, skip_bad: bool) -> Iterator[Path]:
    """Files below `source`, following links, each real folder once; hidden files are only
    counted.
    """

    def unreadable(error: OSError) -> None:
        if not skip_bad:
            raise UserError(
                f"{error.filename}: cannot be read: {error.strerror}; fix its permissions, or "
                "leave out such folders with --skip-bad"
            )
        tally.leave_out("folder", f"cannot be read: {error.strerror}", error.filename)

    seen: set[tuple[int, int]] = set()
    for top, folders, names in os.walk(source, onerror=unreadable, followlinks=True):
        status = os.stat(top)
        if (status.st_dev, status.st_ino) in seen:
            tally.leave_out("folder", "a link to a folder that has already been read", top)
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        _check_snapshots(Path(top))
        for unit, entries in (("folder", folders), ("file", names)):
            for name in sorted(entry for entry in entries if entry.startswith(".")):
                tally.leave_out(unit, "hidden", Path(top, name))
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in without)
        yield from (Path(top, name) for name in names if not name.startswith("."))


def _check_snapshots(folder: Path) -> None:
    """UserError if a folder holds several versions of one dataset, as in a Hugging Face hub
    cache.
    """
    if folder.name == "snapshots" and (folder.parent / "blobs").is_dir():
        versions = sorted(version.name for version in folder.iterdir() if version.is_dir())
        if len(versions) > 1:
            raise UserError(
                f"{folder}: holds {len(versions)} versions of one dataset ({', '.join(versions)}); "
                "give the folder of one as the source"
            )
