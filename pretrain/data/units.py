"""Units of work: runs of files of a corpus, each written by one process into its own shards.

A unit is a run of consecutive files, cut by size. What is written depends only on its files, so the
units of a corpus can be distributed over any number of processes and machines.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.data.corpus import Corpus, Entry
from pretrain.data.folder import Tally
from pretrain.data.formats import Document
from pretrain.data.index import splits_of
from pretrain.data.writer import SplitWriter
from tokenizer.encode import Tokenizer

SHARDS = 4  # that a unit fills, approximately
BYTES_PER_TOKEN = 4  # of a file, approximately
# Documents and characters encoded at once: enough to keep the encoding threads busy, few enough for
# memory.
GROUP, GROUP_CHARS = 256, 4_000_000


@dataclass(frozen=True)
class Target:
    """How documents become shards."""

    tokenizer: Tokenizer
    holdout: float  # share of the documents
    shard_tokens: int


class Unit(NamedTuple):
    """Some consecutive files of a corpus."""

    number: int
    entries: list[Entry]

    @property
    def name(self) -> str:
        """The name of the folder that it is written to."""
        return f"unit-{self.number:06d}"


class Done(NamedTuple):
    """How much has been written."""

    files: int = 0
    documents: int = 0
    chars: int = 0
    tokens: int = 0


def cut(entries: Sequence[Entry], shard_tokens: int) -> list[Unit]:
    """Cuts the files into units; each ends with the file that fills it."""
    units: list[Unit] = []
    room = 0
    for entry in entries:
        if room <= 0:
            units.append(Unit(len(units), []))
            room = SHARDS * BYTES_PER_TOKEN * shard_tokens
        units[-1].entries.append(entry)
        room -= size_of(entry)
    return units


def size_of(entry: Entry) -> int:
    """Size of a file in bytes; 0 if it cannot be determined (the error comes when it is read)."""
    try:
        return os.stat(entry.path).st_size
    except OSError:
        return 0


def write_unit(
    unit: Unit,
    corpus: Corpus,
    target: Target,
    folder: Path,
    threads: int,
    tell: Callable[[Done], None],
) -> tuple[Tally, Done]:
    """Writes folder/unit-N, with a folder for each split; returns what was read and left out, and
    how much was written.

    Args:
        tell: called now and then with how much has been written so far.
    """
    corpus = copy(corpus)
    corpus.tally, corpus.files_read = Tally(), 0
    with ExitStack() as files:
        (folder / unit.name).mkdir(parents=True)
        writers = {
            split: files.enter_context(
                closing(
                    SplitWriter(folder / unit.name / split, target.tokenizer, target.shard_tokens)
                )
            )
            for split in splits_of(target.holdout)
        }
        for documents in _groups(corpus.read(unit.entries)):
            texts = (document.text for document in documents)
            encoded = target.tokenizer.encode_many(texts, threads)
            for document, ids in zip(documents, encoded, strict=True):
                writers[side(document.text, target.holdout)].add(document, ids)
            tell(_done(corpus.files_read, writers.values()))
        for writer in writers.values():
            writer.finish()
        done = _done(corpus.files_read, writers.values())
    tell(done)
    return corpus.tally, done


def _done(files: int, writers: Collection[SplitWriter]) -> Done:
    totals = (sum(getattr(w, name) for w in writers) for name in ("samples", "chars", "tokens"))
    return Done(files, *totals)


def side(text: str, holdout: float) -> str:
    """The split that a document belongs to."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < holdout * 2**64 else "train"


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Groups documents into lists that are encoded at once."""
    group: list[Document] = []
    total = 0
    for document in documents:
        group.append(document)
        total += len(document.text)
        if len(group) == GROUP or total >= GROUP_CHARS:
            yield group
            group, total = [], 0
    if group:
        yield group
