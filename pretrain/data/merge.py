"""Merges the units of a prepared corpus into splits: shards are renamed, never copied.

It can be interrupted at any moment and resumed: a shard is either still in its unit's folder, or in
the split's draft under its new name, which follows from the units alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from pretrain.data.index import DOCUMENTS, INDEX, Index, Shard, read_index, shard_name, splits_of
from pretrain.data.records import check_size
from pretrain.errors import UserError
from pretrain.files import sync

COPIED = 1 << 24  # bytes of documents.idx copied at once


def merge_units(units: Sequence[Path], out: Path, holdout: float) -> dict[str, Index]:
    """Merges the units, in order, into out/train and out/heldout; returns the index of each.

    UserError: a unit is damaged, or a split would have no document.
    """
    splits = splits_of(holdout)
    todo = [split for split in splits if not (out / split / INDEX).is_file()]
    parts = {split: [read_index(unit / split) for unit in units] for split in todo}
    counts = {split: sum(index.samples for index in parts[split]) for split in todo}
    for split, count in counts.items():
        if not count:
            raise _leaves_none(holdout, sum(counts.values()), split)
    for split in todo:
        _merge([unit / split for unit in units], parts[split], out, split)
    return {split: read_index(out / split) for split in splits}


def _leaves_none(holdout: float, documents: int, split: str) -> UserError:
    """The error that one split has no document, and how to give it one."""
    if documents == 1:
        return UserError(
            f"--holdout {holdout:g} of 1 document leaves none for {split}, because documents are "
            r"never cut: --separator '\n\n' makes each paragraph a document, and --holdout 0 holds "
            "out none"
        )
    return UserError(
        f"--holdout {holdout:g} of {documents} documents leaves none for {split}; give another "
        "fraction, 0 to hold out none, or a corpus with more documents"
    )


def _merge(folders: Sequence[Path], indexes: Sequence[Index], out: Path, split: str) -> None:
    draft = out / f".{split}.draft"
    draft.mkdir(exist_ok=True)
    shards: list[Shard] = []
    digest = hashlib.sha256()
    with (draft / DOCUMENTS).open("wb") as documents:
        for folder, index in zip(folders, indexes, strict=True):
            _append(folder, index, documents, digest)
            for shard in index.shards:
                shards.append(replace(shard, name=shard_name(len(shards))))
                _rename(folder / shard.name, draft / shards[-1].name, shard.bytes)
    names = {shard.name for shard in shards}
    for stray in [path for path in draft.glob("*.tar") if path.name not in names]:
        stray.unlink()
    sync(draft / DOCUMENTS)
    totals = {
        name: sum(getattr(index, name) for index in indexes)
        for name in ("samples", "tokens", "chars")
    }
    merged = replace(indexes[0], **totals, documents_sha256=digest.hexdigest(), shards=shards)
    merged.write(draft)
    sync(draft)
    draft.rename(out / split)
    sync(out)


def _append(folder: Path, index: Index, documents: IO[bytes], digest: Any) -> None:
    """Appends a unit's documents.idx to the split's, whose hash is `digest`."""
    mine = hashlib.sha256()
    with (folder / DOCUMENTS).open("rb") as part:
        while content := part.read(COPIED):
            mine.update(content)
            digest.update(content)
            documents.write(content)
    if mine.hexdigest() != index.documents_sha256:
        raise UserError(f"{folder / DOCUMENTS}: damaged; remove its part and prepare that again")


def _rename(shard: Path, target: Path, size: int) -> None:
    """Moves a shard, unless that is done already. If it is still in its unit, that one counts: the
    draft may be from parts that have been prepared again since.
    """
    done = target.exists() and not shard.exists()
    check_size(target if done else shard, size)
    if not done:
        shard.rename(target)


def remove(folders: Sequence[Path]) -> None:
    """Removes merged folders. All are hidden first, so that half of one is never taken for
    whole.
    """
    hidden = [folder.with_name(f".{folder.name}") for folder in folders]
    for folder, name in zip(folders, hidden, strict=True):
        folder.rename(name)
    for name in hidden:
        shutil.rmtree(name)
