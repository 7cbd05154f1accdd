"""Splits as they are read, wherever they lie: a part of a shard is on a local disk when it is read.

    LocalSplit    a folder: its files are read where they are
    StoredSplit   a prefix of an object store: pieces of its objects go through a local cache

Documents are drawn from everywhere, so what is brought of a shard are pieces, and those that the
next batches need are brought while the trainer is at others.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

from pretrain.config.schema import DataConfig
from pretrain.data.cache import WHOLE, Cache
from pretrain.data.index import DOCUMENT, DOCUMENTS, Index, Shard
from pretrain.data.open_files import OpenFiles
from pretrain.data.records import check_bytes, check_size
from pretrain.data.store import Place, StorePath, place
from pretrain.errors import UserError

PIECE = 1 << 18  # bytes: a fast store gives them in about the time that its answer takes to begin
THREADS = 16  # that ask for pieces
BATCHES_AHEAD = 4  # whose pieces are asked for, beyond those that are made
Coming = Future[bytes]  # a piece on its way
Submit = Callable[[Callable[[Shard, int], bytes], Shard, int], Coming]


class Split(Protocol):
    """Where the files of one split come from."""

    batches_ahead: int  # how many are planned before the first of them is read

    def check_sizes(self, shards: list[Shard]) -> None:
        """UserError names a shard that is missing or has another size."""
        ...

    def documents(self, index: Index) -> Path:
        """documents.idx, here. UserError."""
        ...

    def ahead(self, shard: Shard, size: int, offset: int) -> None:
        """Begin to bring what will be read."""
        ...

    def read(self, shard: Shard, size: int, offset: int) -> bytes:
        """`size` bytes at `offset`, or fewer at the shard's end. OSError or UserError."""
        ...

    def discard(self, shard: Shard, size: int, offset: int) -> None:
        """What was read is damaged: have it anew when it is read again."""
        ...


class LocalSplit:
    """A folder."""

    batches_ahead = 1

    def __init__(self, folder: Path, files: OpenFiles) -> None:
        self._folder, self._files = folder, files

    def check_sizes(self, shards: list[Shard]) -> None:
        """Looks at each."""
        for shard in shards:
            check_size(self._folder / shard.name, shard.bytes)

    def documents(self, index: Index) -> Path:
        """It is here."""
        return self._folder / DOCUMENTS

    def ahead(self, shard: Shard, size: int, offset: int) -> None:
        """The system reads ahead as it sees fit."""

    def read(self, shard: Shard, size: int, offset: int) -> bytes:
        """From a file that stays open."""
        return self._files.read(f"{self._folder}/{shard.name}", size, offset)

    def discard(self, shard: Shard, size: int, offset: int) -> None:
        """Nothing to discard: files are re-read."""


class StoredSplit:
    """A prefix of an object store."""

    batches_ahead = BATCHES_AHEAD

    def __init__(self, folder: StorePath, cache: Cache, submit: Submit) -> None:
        self._folder, self._cache, self._submit = folder, cache, submit
        # pending fetches; failed ones stay until read, so the reader gets the error
        self._coming: dict[Path, Coming] = {}

    def check_sizes(self, shards: list[Shard]) -> None:
        """By one listing; over http there is none, and what is missing is told when it is read."""
        found = self._folder.sizes()
        for shard in shards if found else ():
            if shard.name not in found:
                raise UserError(f"{self._folder / shard.name}: missing; copy it again")
            check_bytes(self._folder / shard.name, found[shard.name], shard.bytes)

    def documents(self, index: Index) -> Path:
        """Brought here unless it is; checked as it comes."""
        there, size = self._folder / DOCUMENTS, index.samples * DOCUMENT.itemsize
        path = self._cache.path(index.documents_sha256, WHOLE)

        def checked() -> Iterator[bytes]:
            digest = hashlib.sha256()
            for chunk in there.chunks(size):
                digest.update(chunk)
                yield chunk
            if digest.hexdigest() != index.documents_sha256:
                raise UserError(f"{there}: damaged: its content is not what index.json says")

        self._cache.add_whole(path, size, checked)
        return path

    def ahead(self, shard: Shard, size: int, offset: int) -> None:
        """Begins to bring the pieces that are not here."""
        for start in _starts(size, offset):
            path = self._path(shard, start)
            if path not in self._coming and not path.exists():
                self._coming[path] = coming = self._submit(self._bring, shard, start)
                coming.add_done_callback(partial(self._done, path))

    def read(self, shard: Shard, size: int, offset: int) -> bytes:
        """From pieces, here or on their way."""
        starts = _starts(size, offset)
        content = b"".join([self._piece(shard, start) for start in starts])
        return content[offset - starts[0] :][:size]

    def discard(self, shard: Shard, size: int, offset: int) -> None:
        """Another object may have lain there for a while."""
        for start in _starts(size, offset):
            self._path(shard, start).unlink(missing_ok=True)

    def forget(self) -> None:
        """Nothing is on its way any more."""
        self._coming.clear()

    def _done(self, path: Path, coming: Coming) -> None:
        """A piece that is here need not be remembered; why one is not is told to who reads it."""
        if not coming.cancelled() and coming.exception() is None:
            self._coming.pop(path, None)

    def _piece(self, shard: Shard, start: int) -> bytes:
        path = self._path(shard, start)
        coming = self._coming.pop(path, None)
        if coming is not None:
            return coming.result()
        here = self._cache.read(path)
        return here if here is not None else self._bring(shard, start)

    def _bring(self, shard: Shard, start: int) -> bytes:
        path, there = self._path(shard, start), self._folder / shard.name
        stop = min(start + PIECE, shard.bytes)

        def attempt(limit: float) -> bytes:
            return self._cache.add(path, lambda: there.read_range(start, stop, limit), limit)

        return there.attempts(attempt)

    def _path(self, shard: Shard, start: int) -> Path:
        return self._cache.path(shard.sha256, f"{start}-{min(start + PIECE, shard.bytes)}")


def _starts(size: int, offset: int) -> range:
    """Where the pieces begin that hold `size` bytes at `offset`."""
    return range(offset - offset % PIECE, offset + size, PIECE)


class Files:
    """What reads all splits of a stream: it has the files that are open, the cache and threads."""

    def __init__(self, config: DataConfig) -> None:
        self._retry = config.retry
        self._open = OpenFiles()
        self._cache = Cache(Path(config.cache).expanduser(), int(config.cache_gb * 1e9))
        self._closed = threading.Event()
        self._threads: ThreadPoolExecutor | None = None
        self._stored: list[StoredSplit] = []

    def place(self, text: str) -> Place:
        """Where a setting says that a corpus lies."""
        return place(text, self._retry, self._closed)

    def split(self, folder: Place) -> Split:
        """To read it."""
        if isinstance(folder, Path):
            return LocalSplit(folder, self._open)
        self._stored.append(StoredSplit(folder, self._cache, self._submit))
        return self._stored[-1]

    def stop(self) -> None:
        """Whoever waits for a store, in any thread, gives up."""
        self._closed.set()

    def close(self) -> None:
        """Stops, ends the threads and closes what is open; a later read begins anew."""
        self.stop()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        for split in self._stored:
            split.forget()
        self._open.close()
        self._closed.clear()

    def _submit(self, bring: Callable[[Shard, int], bytes], shard: Shard, start: int) -> Coming:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "store")
        return self._threads.submit(bring, shard, start)
