"""Verifies the shards of a prepared corpus, and gives their statistics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.config.schema import DataConfig
from pretrain.data.index import DOCUMENTS, INDEX, Shard, find_splits, read_index
from pretrain.data.records import check_documents, check_size, chunks, map_documents
from pretrain.data.splits import Files, Split
from pretrain.data.store import CHUNK, Place
from pretrain.errors import UserError
from pretrain.files import strays


def verify(path: str | Place) -> list[str]:
    """Read every byte of a prepared corpus, or of one of its splits, and compare it with the index.

    Returns one line for each damaged file, naming it; none when all is well.
    """
    problems = []
    for folder in find_splits(path):
        try:
            index = read_index(folder)
            check_documents(folder / DOCUMENTS, index)
        except UserError as error:
            problems.append(str(error))
            continue
        for shard in index.shards:
            try:
                _verify_shard(folder / shard.name, shard)
            except UserError as error:
                problems.append(str(error))
    return problems


def strays_beside(path: str | Place) -> list[str]:
    """A line about each file in the splits' folders that is in no index, and so is not read.

    Object stores are not searched for them.
    """
    return [
        line
        for folder in find_splits(path)
        if isinstance(folder, Path)
        for line in strays(
            folder, {INDEX, DOCUMENTS, *(shard.name for shard in read_index(folder).shards)}
        )
    ]


def _verify_shard(path: Place, shard: Shard) -> None:
    """UserError unless the tar has the size and hash that the index gives."""
    check_size(path, shard.bytes)
    digest = hashlib.sha256()
    for chunk in chunks(path, shard.bytes, CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != shard.sha256:
        raise UserError(
            f"{path}: damaged: its content is not what {INDEX} says; "
            "copy it again or prepare the corpus again"
        )


@dataclass
class Stats:
    """Statistics of one split. Lengths are tokens of a document, without EOS."""

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


def stats(path: str | Place) -> list[Stats]:
    """The statistics of all splits of a prepared corpus."""
    files = Files(DataConfig())
    return [_stats(folder, files.split(folder)) for folder in find_splits(path)]


def _stats(folder: Place, split: Split) -> Stats:
    index = read_index(folder)
    documents = split.documents(index)
    check_documents(documents, index)
    lengths = map_documents(documents, index)["tokens"]
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
