"""One interface to splits in a folder and on an object store.

    LocalSplit    a folder: its files are read in place
    StoredSplit   a prefix of an object store: pieces of its objects go through a local cache

Documents are drawn from all over a corpus, so only pieces of shards are fetched, and those for the
next batches are fetched ahead of the trainer.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pretrain.config.schema import DataConfig
from pretrain.data.cache import WHOLE, Cache
from pretrain.data.index import DOCUMENT, DOCUMENTS, Index, Shard
from pretrain.data.open_files import OpenFiles
from pretrain.data.records import check_bytes, check_size
from pretrain.data.store import Place, StorePath, place
from pretrain.errors import UserError

PIECE = 1 << 18  # bytes: a fast store transfers them in about the latency of a request
THREADS = 16  # that fetch pieces
BATCHES_AHEAD = 4  # whose pieces are fetched, beyond the batches that are ready
Coming = Future[bytes]  # a piece being fetched
Submit = Callable[[Callable[[Shard, int], bytes], Shard, int], Coming]


class LocalSplit:
    """A folder."""

    batches_ahead = 1  # how many are planned before the first of them is read

    def __init__(self, folder: Path, files: OpenFiles) -> None:
        self._folder, self._files = folder, files

    def check_sizes(self, shards: list[Shard]) -> None:
        """UserError if a file is missing or has the wrong size."""
        for shard in shards:
            check_size(self._folder / shard.name, shard.bytes)

    def documents(self, index: Index) -> Path:
        """documents.idx, which is local already."""
        return self._folder / DOCUMENTS

    def ahead(self, shard: Shard, size: int, offset: int) -> None:
        """Does nothing: the operating system reads ahead."""

    def read(self, shard: Shard, size: int, offset: int) -> bytes:
        """`size` bytes at `offset` of a file that stays open, or fewer at its end. OSError."""
        return self._files.read(f"{self._folder}/{shard.name}", size, offset)

    def discard(self, shard: Shard, size: int, offset: int) -> None:
        """Does nothing: files are re-read."""


class StoredSplit:
    """A prefix of an object store."""

    batches_ahead = BATCHES_AHEAD

    def __init__(self, folder: StorePath, cache: Cache, submit: Submit) -> None:
        self._folder, self._cache, self._submit = folder, cache, submit
        # pending fetches; failed ones stay until read, so the reader gets the error
        self._coming: dict[Path, Coming] = {}

    def check_sizes(self, shards: list[Shard]) -> None:
        """UserError if a shard is missing from the listing or has the wrong size there; http has no
        listing, so there a missing shard is an error when it is read.
        """
        found = self._folder.sizes()
        for shard in shards if found else ():
            if shard.name not in found:
                raise UserError(f"{self._folder / shard.name}: missing; copy it again")
            check_bytes(self._folder / shard.name, found[shard.name], shard.bytes)

    def documents(self, index: Index) -> Path:
        """A local path of documents.idx: fetched and verified unless it is cached. UserError."""
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
        """Starts to fetch the pieces of what will be read that are not cached."""
        for start in _starts(size, offset):
            path = self._path(shard, start)
            if path not in self._coming and not path.exists():
                self._coming[path] = coming = self._submit(self._bring, shard, start)
                coming.add_done_callback(partial(self._done, path))

    def read(self, shard: Shard, size: int, offset: int) -> bytes:
        """`size` bytes at `offset`, or fewer at the shard's end, from pieces that are cached or
        being fetched. UserError.
        """
        starts = _starts(size, offset)
        content = b"".join([self._piece(shard, start) for start in starts])
        return content[offset - starts[0] :][:size]

    def discard(self, shard: Shard, size: int, offset: int) -> None:
        """Removes the cached pieces of what is damaged: the store may have had another object
        there for a while.
        """
        for start in _starts(size, offset):
            self._path(shard, start).unlink(missing_ok=True)

    def forget(self) -> None:
        """Drops all pending fetches."""
        self._coming.clear()

    def _done(self, path: Path, coming: Coming) -> None:
        """Forgets a fetched piece; a failed one is kept, so that its reader gets the error."""
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


Split = LocalSplit | StoredSplit


def _starts(size: int, offset: int) -> range:
    """The offsets of the pieces that hold `size` bytes at `offset`."""
    return range(offset - offset % PIECE, offset + size, PIECE)


class Files:
    """What all splits of a stream share: open files, the cache and the fetching threads."""

    def __init__(self, config: DataConfig) -> None:
        self._retry = config.retry
        self._open = OpenFiles()
        self._cache = Cache(Path(config.cache).expanduser(), int(config.cache_gb * 1e9))
        self._closed = threading.Event()
        self._threads: ThreadPoolExecutor | None = None
        self._stored: list[StoredSplit] = []

    def place(self, text: str) -> Place:
        """The place that a setting names for a corpus."""
        return place(text, self._retry, self._closed)

    def split(self, folder: Place) -> Split:
        """A reader for the split in `folder`."""
        if isinstance(folder, Path):
            return LocalSplit(folder, self._open)
        self._stored.append(StoredSplit(folder, self._cache, self._submit))
        return self._stored[-1]

    def stop(self) -> None:
        """Makes all threads that wait for a store give up."""
        self._closed.set()

    def close(self) -> None:
        """Stops, ends the threads and closes open files; a later read starts afresh."""
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
