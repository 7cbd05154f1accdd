"""Tokenises a corpus into shards: on all cores of a machine, or a part on each of several."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.data.corpus import Corpus
from pretrain.data.folder import Tally
from pretrain.data.index import INDEX, SPLITS, Index, find_splits, read_index, splits_of
from pretrain.data.merge import merge_units, remove
from pretrain.data.pool import Write, in_processes
from pretrain.data.progress import Progress
from pretrain.data.units import Done, Target, Unit, cut, size_of, write_unit
from pretrain.errors import UserError, not_written
from pretrain.files import (
    has_checksum,
    is_hidden,
    parse_json,
    read_whole,
    with_checksum,
    write_atomically,
)
from pretrain.locks import alone_in
from pretrain.origin import cores
from pretrain.whole import appearing_whole
from tokenizer.encode import Tokenizer

SHARD_TOKENS = 50_000_000
PART = "part.json"  # what a part was made from: the same for all parts that are merged
PART_NAME = re.compile(r"part-(\d+)-of-(\d+)")


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    holdout: float = 0.01,
    shard_tokens: int = SHARD_TOKENS,
    workers: int = 0,
) -> dict[str, Index]:
    """Tokenise `corpus` into out/train and out/heldout; returns the index of each.

    `holdout` is the share of documents that is held out, chosen by a hash of the text, so that a
    text and all its copies are always on the same side. A shard is closed once it holds
    `shard_tokens` tokens, or where a unit of work ends (`units.cut`); a document never spans two
    shards. `workers` cores encode in parallel (0: all). The same corpus gives the same bytes,
    whatever their number.

    `out` appears atomically. UserError if it exists and is not empty, if the corpus cannot be read
    or is empty, or if one split gets no document.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(not is_hidden(p) for p in out.iterdir())):
        raise UserError(f"{out}: already exists and is not empty; give another folder")
    target = Target(tokenizer, holdout, shard_tokens)
    with appearing_whole(out) as work:
        units = _units(corpus, shard_tokens)
        if not _write(units, corpus, target, work, workers):
            raise corpus.is_empty()
        folders = [work / unit.name for unit in units]
        indexes = merge_units(folders, work, holdout)
        remove(folders)
    return indexes


def prepare_part(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: str | Path,
    part: tuple[int, int],
    *,
    holdout: float = 0.01,
    shard_tokens: int = SHARD_TOKENS,
    workers: int = 0,
) -> Path | None:
    """Does part i of n (from 1) of `prepare`, as a folder in `out` for `merge`; returns its path.

    It appears atomically. None: it already exists, made from the same input. UserError: like
    `prepare`, or it exists and was made from something else.
    """
    number, parts = part
    folder = Path(out) / f"part-{number:05d}-of-{parts:05d}"
    for source in corpus.sources:
        if Path(out).resolve().is_relative_to(Path(source).resolve()):
            raise UserError(
                f"{out}: is inside {source}, so a part would read the earlier ones as text; "
                "give a folder outside it"
            )
    if any((Path(out) / split).exists() for split in SPLITS):
        raise UserError(f"{out}: has already been merged; give another folder")
    target = Target(tokenizer, holdout, shard_tokens)
    units = _units(corpus, shard_tokens)
    made_of = _made_of(corpus, units, target)
    if folder.exists():
        if _read_part(folder) != made_of:
            raise UserError(f"{folder}: made from other files or settings; remove it")
        return None
    with appearing_whole(folder) as work:
        _write(units[number - 1 :: parts], corpus, target, work, workers)
        write_atomically(work / PART, with_checksum(made_of))
    return folder


def merge(out: str | Path) -> dict[str, Index]:
    """Merges the parts in `out` into what `prepare` would have written, byte for byte; returns the
    index of each split. It can be interrupted and started again.

    UserError: a part is missing, damaged, or made from something else than the others; another
    process is merging them.
    """
    out = Path(out)
    with ExitStack() as inside:
        if out.is_dir():  # otherwise it holds no parts
            with _writes(out):
                inside.enter_context(alone_in(out, "is merging these parts; wait for it"))
        if parts := _find_parts(out):
            _merge_parts(parts, out)
        for left in out.glob(".part-*"):  # an earlier call was interrupted while cleaning up
            if PART_NAME.fullmatch(left.name[1:]):  # and it is no draft of a part
                shutil.rmtree(left)
        return {folder.name: read_index(folder) for folder in find_splits(out)}


def _merge_parts(parts: Sequence[Path], out: Path) -> None:
    made_of = _read_part(parts[0])
    for part in parts[1:]:
        if (other := _read_part(part)) != made_of:
            name = next(n for n in made_of | other if other.get(n) != made_of.get(n))
            mine, first = (json.dumps(made.get(name)) for made in (other, made_of))
            raise UserError(
                f"{part}: made from other files or settings than {parts[0].name} ({name}: {mine} "
                f"instead of {first}); remove the wrong ones and prepare them again"
            )
    units = sorted((unit for part in parts for unit in part.glob("unit-*")), key=lambda p: p.name)
    whole = all((out / split / INDEX).is_file() for split in splits_of(made_of["holdout"]))
    if len(units) != made_of["units"] and not whole:
        raise UserError(
            f"{out}: holds only {len(units)} of {made_of['units']} units; prepare the parts again"
        )
    with _writes(out):
        merge_units(units, out, made_of["holdout"])
        remove(parts)


@contextmanager
def _writes(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(not_written(out, error)) from None


def _find_parts(out: Path) -> list[Path]:
    """All parts, in order; empty if they are merged already."""
    found = {
        (int(said[1]), int(said[2])): path
        for path in out.glob("part-*")
        if (said := PART_NAME.fullmatch(path.name))
    }
    merged = any((out / split / INDEX).is_file() for split in SPLITS)
    counts = {parts for _, parts in found}
    if merged and not counts:
        return []
    if len(counts) != 1:
        why = "holds parts i/N of different N" if counts else "holds no parts"
        raise UserError(f"{out}: {why}; make them with `hypnos data prepare --part 1/N` to N/N")
    (parts,) = counts
    missing = [str(i) for i in range(1, parts + 1) if (i, parts) not in found]
    if missing and not merged:
        named = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise UserError(
            f"{out}: {len(missing)} of {parts} parts are missing: {named}; prepare them"
        )
    return [found[key] for key in sorted(found)]


def _units(corpus: Corpus, shard_tokens: int) -> list[Unit]:
    corpus.tally = Tally()
    entries = corpus.find()
    corpus.files, corpus.files_read = len(entries), 0
    return cut(entries, shard_tokens)


def _made_of(corpus: Corpus, units: Sequence[Unit], target: Target) -> dict[str, Any]:
    """Everything that determines the bytes of a part."""
    entries = [entry for unit in units for entry in unit.entries]
    listing = json.dumps([[entry.name, size_of(entry)] for entry in entries])
    return {
        "tokenizer": target.tokenizer.fingerprint,
        "holdout": target.holdout,
        "shard_tokens": target.shard_tokens,
        "text_field": corpus.text_field,
        "skip_bad": corpus.skip_bad,
        "units": len(units),
        "files": hashlib.sha256(listing.encode()).hexdigest(),
    } | ({"separator": corpus.separator} if corpus.separator else {})


def _read_part(folder: Path) -> dict[str, Any]:
    path, fix = folder / PART, "remove the part and prepare it again"
    try:
        content = read_whole(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {fix}") from None
    if not has_checksum(content):
        raise UserError(f"{path}: damaged; {fix}")
    record: dict[str, Any] = parse_json(content)
    return {name: value for name, value in record.items() if name != "sha256"}


def _write(
    units: Sequence[Unit], corpus: Corpus, target: Target, folder: Path, workers: int
) -> int:
    """Writes the units, in several processes if there are several; updates `corpus.tally`. Returns
    how many documents were written.
    """
    most = workers or cores()
    processes = max(1, min(most, len(units)))
    write: Write = partial(
        write_unit, corpus=corpus, target=target, folder=folder, threads=max(1, most // processes)
    )
    progress: dict[int, Done] = {}
    corpus.files = sum(len(unit.entries) for unit in units)
    with Progress("tokenise") as shown:

        def tell(number: int, done: Done) -> None:
            progress[number] = done
            totals = [sum(column) for column in zip(*progress.values(), strict=True)]
            corpus.files_read, documents, chars, tokens = totals
            shown.update(f"{totals[0]}/{corpus.files} files", documents, chars, tokens)

        if processes == 1:
            written = [write(unit, tell=partial(tell, unit.number)) for unit in units]
        else:
            written = in_processes(write, units, processes, tell)
    for tally, _ in written:
        corpus.tally.add(tally)
    return sum(done.documents for _, done in written)
