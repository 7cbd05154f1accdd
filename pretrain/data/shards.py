"""Prepare a corpus as token shards, verify shards, and say what is in them."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.corpus import Corpus
from pretrain.data.formats import Document
from pretrain.data.index import (
    DOCUMENTS,
    INDEX,
    SPLITS,
    Index,
    Shard,
    find_splits,
    read_index,
)
from pretrain.data.progress import Progress
from pretrain.data.records import check_documents, check_size, read_documents
from pretrain.data.writer import SplitWriter
from pretrain.errors import UserError
from pretrain.files import is_hidden, sha256, strays, sync
from tokenizer.encode import Tokenizer

SHARD_TOKENS = 50_000_000


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    holdout: float = 0.01,
    shard_tokens: int = SHARD_TOKENS,
    threads: int = 0,
) -> dict[str, Index]:
    """Tokenise `corpus` into out/train and out/heldout; returns the index of each.

    `holdout` is the share of documents that is held out, chosen by a hash of the text: the same
    text is always on the same side, and copies of it too. A shard is closed once it holds
    `shard_tokens` tokens, and a document never crosses from one to the next. `threads` encode at
    once (0: one per core). The same corpus gives the same bytes.

    `out` appears whole or not at all. UserError when it is there and not empty, when the corpus
    cannot be read or is empty, or when one side gets no document.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(not is_hidden(p) for p in out.iterdir())):
        raise UserError(f"{out}: is there and not empty; give another folder")
    threads = threads or len(os.sched_getaffinity(0))
    with _appearing_whole(out) as work:
        return _write_splits(corpus, tokenizer, work, holdout, shard_tokens, threads)


@contextmanager
def _appearing_whole(out: Path) -> Iterator[Path]:
    """A folder to work in that becomes `out` at the end, or vanishes if anything goes wrong.

    One that a killed process has left is removed by the next. Whose process lives is told by its
    lock on the file beside the folder, which ends with the process.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{glob.escape(out.name)}.partial-*.lock"):
            _remove_left_over(left)
        with tempfile.NamedTemporaryFile(
            prefix=f".{out.name}.partial-", suffix=".lock", dir=out.parent
        ) as lock:
            with suppress(OSError):  # no locks on this file system: what is left over stays, too
                fcntl.flock(lock, fcntl.LOCK_EX)
            work = Path(lock.name).with_suffix("")
            work.mkdir()
            try:
                yield work
                sync(work)
                for stray in out.iterdir() if out.exists() else ():  # hidden: .DS_Store
                    stray.rename(work / stray.name)
                work.rename(out)
                sync(out.parent)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def _remove_left_over(lock: Path) -> None:
    """Removes a folder that was being written, and its lock, unless another process has it."""
    work = lock.with_suffix("")
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if work.is_dir():  # or its process is about to lock it
                shutil.rmtree(work)
                lock.unlink()
    except OSError:  # it lives, or is another user's, or there are no locks to ask
        return


def _write_splits(
    corpus: Corpus,
    tokenizer: Tokenizer,
    work: Path,
    holdout: float,
    shard_tokens: int,
    threads: int,
) -> dict[str, Index]:
    """Write train/ and, unless holdout is 0, heldout/ below `work`."""
    with ExitStack() as files, Progress("tokenise") as progress:
        splits = {
            name: files.enter_context(closing(SplitWriter(work / name, tokenizer, shard_tokens)))
            for name in (SPLITS if holdout else SPLITS[:1])
        }
        for documents in _groups(iter(corpus)):
            encoded = tokenizer.encode_many((document.text for document in documents), threads)
            for document, ids in zip(documents, encoded, strict=True):
                splits[_side(document.text, holdout)].add(document, ids)
            _report(progress, corpus, splits.values())
        _report(progress, corpus, splits.values())  # the last file has been read by now
        for name, split in splits.items():
            if not split.samples:
                count = sum(s.samples for s in splits.values())
                raise UserError(
                    f"--holdout {holdout:g} of {count} documents leaves none for {name}; "
                    "give another share, 0 to hold out none, or a corpus of more documents"
                )
        return {name: split.finish() for name, split in splits.items()}


def _report(progress: Progress, corpus: Corpus, splits: Collection[SplitWriter]) -> None:
    progress.update(
        f"{corpus.files_read}/{corpus.files} files",
        documents=sum(split.samples for split in splits),
        chars=sum(split.chars for split in splits),
        tokens=sum(split.tokens for split in splits),
    )


def _side(text: str, holdout: float) -> str:
    """The split that a document belongs to."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < holdout * 2**64 else "train"


def _groups(
    documents: Iterator[Document], size: int = 256, chars: int = 4_000_000
) -> Iterator[list[Document]]:
    """Lists of documents, enough to keep the encoding threads busy and few enough to hold in
    memory.
    """
    group: list[Document] = []
    total = 0
    for document in documents:
        group.append(document)
        total += len(document.text)
        if len(group) == size or total >= chars:
            yield group
            group, total = [], 0
    if group:
        yield group


def verify(path: str | Path) -> list[str]:
    """Read every byte of a prepared corpus, or of one of its splits, and compare it with the index.

    Returns one line for each damaged file, naming it; none when all is well.
    """
    problems = []
    for folder in find_splits(path):
        try:
            index = read_index(folder)
            check_documents(folder, index)
        except UserError as error:
            problems.append(str(error))
            continue
        for shard in index.shards:
            try:
                _verify_shard(folder / shard.name, shard)
            except UserError as error:
                problems.append(str(error))
    return problems


def strays_beside(path: str | Path) -> list[str]:
    """A line about each thing in the splits' folders that no index names: it is not read."""
    return [
        line
        for folder in find_splits(path)
        for line in strays(
            folder, {INDEX, DOCUMENTS, *(shard.name for shard in read_index(folder).shards)}
        )
    ]


def _verify_shard(path: Path, shard: Shard) -> None:
    """UserError unless the tar is the one that was written."""
    check_size(path, shard.bytes)
    if sha256(path) != shard.sha256:
        raise UserError(
            f"{path}: damaged: its content is not what {INDEX} says; copy it anew or prepare again"
        )


@dataclass
class Stats:
    """What is in one split. Lengths are tokens of a document, EOS not among them."""

    split: str
    shards: int
    documents: int
    tokens: int
    bytes: int
    chars_per_token: float
    shortest: int
    median: int
    mean: int
    longest: int
    tokenizer: str  # start of its fingerprint
    vocab_size: int


def stats(path: str | Path) -> list[Stats]:
    """The splits of a prepared corpus."""
    return [_stats(folder) for folder in find_splits(path)]


def _stats(folder: Path) -> Stats:
    index = read_index(folder)
    lengths = read_documents(folder, index)["tokens"]
    return Stats(
        split=folder.name,
        shards=len(index.shards),
        documents=index.samples,
        tokens=index.tokens,
        bytes=sum(shard.bytes for shard in index.shards),
        chars_per_token=index.chars / index.tokens,
        shortest=int(lengths.min()),
        median=int(np.median(lengths)),
        mean=round(float(lengths.mean())),
        longest=int(lengths.max()),
        tokenizer=index.tokenizer[:12],
        vocab_size=index.vocab_size,
    )
