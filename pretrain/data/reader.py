"""One document's tokens by number, without reading its neighbours."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.index import DOCUMENT, DOCUMENTS, DTYPES, Index, document_key, read_index
from pretrain.errors import UserError
from pretrain.files import sha256
from tokenizer.encode import Tokenizer

OPEN_FILES = 64  # shards kept open


class Shards:
    """One split, opened for random access.

    Opening checks what can be checked without reading the tars: the index, the tokenizer, the size
        of every
    tar, and that every document lies within its own. Reading a document checks its bytes. Each
    failure is a UserError that names the file.

    index     the split's index
    lengths   [documents] uint32 tokens of each document, EOS not among them; mapped, not loaded
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.index = read_index(folder)
        if (self.index.tokenizer, self.index.vocab_size) != (
            tokenizer.fingerprint,
            tokenizer.vocab_size,
        ):
            raise UserError(
                f"{folder}: made with another tokenizer ({self.index.tokenizer[:12]}, {self.index.vocab_size} pieces) "
                f"than this one ({tokenizer.fingerprint[:12]}, {tokenizer.vocab_size}); "
                "set data.tokenizer to its own, or prepare the corpus again"
            )
        self._records = read_documents(folder, self.index)
        self.lengths: NDArray[np.uint32] = self._records["tokens"]
        for shard in self.index.shards:
            check_size(folder / shard.name, shard.bytes)
        # first document of the next shard
        self._ends = np.cumsum([shard.samples for shard in self.index.shards])
        self._dtype = DTYPES[self.index.dtype]
        # shard -> descriptor, least recently used first
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return self.index.samples

    def document(self, number: int) -> NDArray[Any]:
        """[tokens] ids of a document, uint16 or uint32."""
        record = self._records[number]
        shard = int(np.searchsorted(self._ends, number, side="right"))
        path = self.folder / self.index.shards[shard].name
        size = int(record["tokens"]) * self._dtype.itemsize
        try:
            payload = _read_exactly(self._file(shard, path), size, int(record["offset"]))
        except OSError as error:
            raise UserError(
                f"{path}: document {document_key(number)} cannot be read: {error.strerror}"
            ) from None
        if zlib.crc32(payload) != record["crc32"]:
            raise UserError(
                f"{path}: document {document_key(number)} is damaged; copy the shard anew or prepare again"
            )
        ids = np.frombuffer(payload, self._dtype)
        if ids.max() >= self.index.vocab_size:
            raise UserError(
                f"{path}: document {document_key(number)} has ids beyond the vocabulary; prepare again"
            )
        return ids

    def close(self) -> None:
        """Close the tars; a later read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, shard: int, path: Path) -> int:
        if shard not in self._files:
            if len(self._files) == OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(path, os.O_RDONLY)
        self._files.move_to_end(shard)
        return self._files[shard]


def read_documents(folder: Path, index: Index) -> NDArray[np.void]:
    """[documents] DOCUMENT: documents.idx, checked against the folder's index and mapped."""
    path = folder / DOCUMENTS
    check_size(path, index.samples * DOCUMENT.itemsize)
    if sha256(path) != index.documents_sha256:
        raise UserError(
            f"{path}: damaged: its content is not what index.json says; copy it anew or prepare again"
        )
    records = np.memmap(path, DOCUMENT, mode="r")
    _check_places(path, index, records)
    return records


def _check_places(path: Path, index: Index, records: NDArray[np.void]) -> None:
    """UserError unless every document has tokens and lies within its shard."""
    start, width = 0, DTYPES[index.dtype].itemsize
    for shard in index.shards:
        offsets, sizes = (
            records[name][start : start + shard.samples] for name in ("offset", "tokens")
        )
        sizes = sizes.astype(np.int64) * width
        wrong = (
            (sizes == 0)
            | (offsets > shard.bytes)
            | (offsets.astype(np.int64) + sizes > shard.bytes)
        )
        if wrong.any():
            key = document_key(start + int(wrong.argmax()))
            raise UserError(
                f"{path}: document {key} does not lie within {shard.name}; prepare the corpus again"
            )
        if sizes.sum() != shard.tokens * width:
            raise UserError(
                f"{path}: {shard.name} has not the tokens that index.json says; prepare the corpus again"
            )
        start += shard.samples


def check_size(path: Path, size: int) -> None:
    """UserError unless the file is there and has `size` bytes."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; copy it anew or prepare again"
        ) from None
    if found != size:
        kind = "truncated" if found < size else "damaged"
        raise UserError(
            f"{path}: {kind}: {found} bytes instead of {size}; copy it anew or prepare again"
        )


def _read_exactly(file: int, size: int, offset: int) -> bytes:
    """`size` bytes at `offset`, or fewer at the file's end. One pread may return less than asked
    for.
    """
    parts: list[bytes] = []
    while size and (part := os.pread(file, size, offset)):
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
