"""documents.idx: where each document of a split is stored; memory-mapped, and checked in one pass.

It has 16 GB for a billion documents. Each document that a rank reads is checked on its own
(location and crc32), so the file as a whole may be checked later, and by only one rank per host.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.index import DOCUMENT, DTYPES, Index, document_key
from pretrain.data.store import Place
from pretrain.errors import UserError, storage_error

Records = NDArray[np.void]  # [documents] DOCUMENT
CHUNK = 1 << 16  # records checked at once


def map_documents(path: Path, index: Index) -> Records:
    """documents.idx, memory-mapped; checks only its size. UserError: the size is wrong."""
    size = index.samples * DOCUMENT.itemsize
    check_size(path, size)
    # numpy's memmap would keep the file open, and there may be hundreds of corpora
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    records: Records = mapped.numpy().view(DOCUMENT)
    records.flags.writeable = False
    return records


def check_documents(path: Place, index: Index, stopped: Callable[[], bool] = lambda: False) -> None:
    """UserError unless documents.idx matches its hash in index.json, and each document has tokens
    and lies within its shard. Takes little memory, and returns early once `stopped`.
    """
    size = index.samples * DOCUMENT.itemsize
    check_size(path, size)
    ends = np.cumsum([shard.samples for shard in index.shards])
    shard_bytes = np.array([shard.bytes for shard in index.shards])
    digest, tokens, seen = hashlib.sha256(), np.zeros(len(index.shards), np.int64), 0
    first_outside: int | None = None
    for chunk in chunks(path, size, CHUNK * DOCUMENT.itemsize):
        if stopped():
            return
        digest.update(chunk)
        records = np.frombuffer(chunk, DOCUMENT)
        shards = np.searchsorted(ends, np.arange(seen, seen + len(records)), side="right")
        outside = _outside(records, shard_bytes[shards], DTYPES[index.dtype].itemsize)
        if first_outside is None and outside.any():
            first_outside = seen + int(outside.argmax())
        np.add.at(tokens, shards, records["tokens"].astype(np.int64))
        seen += len(records)
    if digest.hexdigest() != index.documents_sha256:
        raise UserError(
            f"{path}: damaged: its content is not what index.json says; "
            "copy it again or prepare the corpus again"
        )
    if first_outside is not None:
        number = int(np.searchsorted(ends, first_outside, side="right"))
        shard = index.shards[number]
        raise lies_outside(path, first_outside - (int(ends[number]) - shard.samples), shard.name)
    for shard, of_shard in zip(index.shards, tokens.tolist(), strict=True):
        if of_shard != shard.tokens:
            raise UserError(
                f"{path}: {shard.name} does not have as many tokens as index.json says; "
                "prepare the corpus again"
            )


def chunks(path: Place, size: int, at_once: int) -> Iterator[bytes]:
    """All `size` bytes of a file, `at_once` at a time. UserError."""
    if not isinstance(path, Path):
        yield from path.chunks(size, at_once)
        return
    try:
        with path.open("rb") as file:
            while chunk := file.read(at_once):
                yield chunk
    except OSError as error:
        told = f"{path}: cannot be read: {error.strerror}; copy it again"
        raise storage_error(error)(told) from None


def _outside(records: Records, shard_bytes: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """[n] which documents, of ids of `width` bytes, have no tokens or do not lie within their
    shard.

    Args:
        records: [n]. shard_bytes: [n], of the shard of each.
    """
    offsets, sizes = records["offset"], records["tokens"].astype(np.int64) * width
    beyond = (offsets > shard_bytes) | (offsets.astype(np.int64) + sizes > shard_bytes)
    wrong: NDArray[np.bool_] = (sizes == 0) | beyond
    return wrong


def lies_outside(path: Place, document: int, shard: str) -> UserError:
    """The error for a document outside its shard."""
    return UserError(
        f"{path}: document {document_key(document)} does not lie within {shard}; "
        "prepare the corpus again"
    )


class BackgroundCheck:
    """`check_documents` in a thread, for large files."""

    def __init__(self, path: Path, index: Index) -> None:
        self._path, self._index = path, index
        self._error: UserError | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._check, name="check", daemon=True)
        self._thread.start()

    def _check(self) -> None:
        try:
            check_documents(self._path, self._index, self._stopped.is_set)
        except UserError as error:
            self._error = error

    def raise_if_damaged(self) -> None:
        """UserError once damage has been found; does not wait."""
        if self._error:
            raise self._error

    def close(self) -> None:
        """Ends the thread, finished or not."""
        self._stopped.set()
        self._thread.join()


def check_size(path: Place, size: int) -> None:
    """UserError unless the file exists and has `size` bytes."""
    try:
        found = path.stat().st_size if isinstance(path, Path) else path.size()
    except OSError as error:
        why = error.strerror or "not found"
        told = f"{path}: cannot be read: {why}; copy it again or prepare the corpus again"
        raise storage_error(error)(told) from None
    check_bytes(path, found, size)


def check_bytes(path: Place, found: int, size: int) -> None:
    """UserError unless a file of `found` bytes has `size`."""
    if found != size:
        kind = "truncated" if found < size else "damaged"
        raise UserError(
            f"{path}: {kind}: {found} bytes instead of {size}; "
            "copy it again or prepare the corpus again"
        )
