"""A bounded cache of pieces of objects on a local disk, shared by all processes of a host.

    FOLDER/used                  total bytes in the cache; locked while it changes
    FOLDER/ab/abcd.../0-262144   a piece (start-bytes) of the object with that sha256; its crc32
    FOLDER/ab/abcd.../whole      an object that is needed whole, verified
    ....draft                    either of them while it is written; locked by the writer

Names are content hashes, so newly prepared data are never confused with old data. A draft is
renamed when it is complete, so what a killed process leaves is never read: the next one that gets
the lock starts again. Locks end with their process. When the cache is full, the least recently used
files are removed first, pieces before whole objects.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.errors import UserError, write_fix

KEPT = 0.98  # an eviction frees space down to this share of the limit
# how many least recently used files one scan remembers as eviction candidates
REMEMBERED = 100_000
POLL_S = 0.005  # between two checks whether another process's draft is done
CRC_BYTES = 4
WHOLE, DRAFT = "whole", ".draft"
_PIECE = re.compile(rf"({WHOLE}|\d+-\d+)({re.escape(DRAFT)})?")


class Cache:
    """A folder of at most `limit` bytes, plus what is being written: a piece per thread."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        # (is a whole object, last used, bytes, path), from the last scan
        self._oldest: deque[tuple[bool, int, int, str]] = deque()

    def path(self, sha256: str, part: str) -> Path:
        """The path of a part of an object, cached or not."""
        return self.folder / sha256[:2] / sha256 / part

    def read(self, path: Path) -> bytes | None:
        """A cached piece; None if it is missing or damaged, and must be fetched."""
        try:
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None
        piece, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
        return piece if crc == _crc(piece) else None

    def add(self, path: Path, fetch: Callable[[], bytes], limit: float) -> bytes:
        """Fetches a missing piece; only one of the processes that want it does so.

        TimeoutError: another process has been fetching it for `limit` seconds.
        """
        with self._draft(path, limit) as draft:
            if (there := self.read(path)) is not None:
                return there
            piece = fetch()
            self._keep(path, self._write(draft, [piece, _crc(piece)]))
        return piece

    def add_whole(self, path: Path, size: int, chunks: Callable[[], Iterable[bytes]]) -> None:
        """Fetches an object of `size` bytes that is needed whole, unless it is there or another
        process is fetching it. Exceptions of `chunks` are passed on, and nothing is kept.
        """
        if size > self.limit * KEPT:
            raise UserError(
                f"data.cache_gb = {self.limit / 1e9:g}: the index of one corpus alone takes "
                f"{size / 1e9:.3g} GB: raise it"
            )
        with self._draft(path, float("inf")) as draft:
            if not path.exists():
                self._write(draft, chunks())
                os.fsync(draft)
                self._keep(path, size)

    @contextmanager
    def _draft(self, path: Path, limit: float) -> Iterator[int]:
        """A locked draft of `path`; removed at the end unless it was renamed."""
        draft, deadline = path.with_name(path.name + DRAFT), time.monotonic() + limit
        with self._usable():
            draft.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with self._usable():
                descriptor = os.open(draft, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(descriptor, deadline)
                if not _names(draft, descriptor):  # another has renamed or removed it: once more
                    continue
                try:
                    yield descriptor
                finally:
                    if _names(draft, descriptor):
                        draft.unlink()
                return
            finally:
                os.close(descriptor)

    def _lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                with self._usable():
                    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process has not read it yet") from None
                time.sleep(POLL_S)

    def _write(self, draft: int, parts: Iterable[bytes]) -> int:
        """Writes the parts to the draft; returns the number of bytes."""
        size = 0
        with self._usable():
            os.truncate(draft, 0)  # what a killed process has left
        for part in parts:
            left = memoryview(part)
            while left:
                with self._usable():
                    written = os.pwrite(draft, left, size)  # fewer where a disk is about to be full
                left, size = left[written:], size + written
        return size

    def _keep(self, path: Path, size: int) -> None:
        """Adds the draft of `path` to the total, makes room for it, and renames it."""
        with self._usable():
            used = os.open(self.folder / "used", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(used, fcntl.LOCK_EX)
                known = os.pread(used, 20, 0)  # nothing, or NULs after a power cut: count anew
                total = (int(known) if known.isdigit() else self.limit) + size
                if total > self.limit:
                    total = self._make_room(total - size, size) + size
                os.pwrite(used, f"{total:020}".encode(), 0)
            finally:
                os.close(used)
            os.rename(path.with_name(path.name + DRAFT), path)

    def _make_room(self, used: int, size: int) -> int:
        """Removes the least recently used files until `size` more bytes fit; returns what remains
        of the `used` bytes. Candidates of the last scan that nobody has used since are still the
        oldest.
        """
        enough = KEPT * self.limit - size
        for look_again in (False, True):
            if look_again or not self._oldest:
                used = self._look()
            while used > enough and self._oldest:
                _, last_used, its_size, path = self._oldest.popleft()
                with suppress(FileNotFoundError):
                    if os.stat(path).st_mtime_ns == last_used:
                        os.unlink(path)
                        used -= its_size
            if used <= enough:
                break
        return used

    def _look(self) -> int:
        """Scans the cache for the least recently used files, pieces first; returns the total
        bytes.
        """
        found: list[tuple[bool, int, int, str]] = []
        for file in _files(self.folder):
            with suppress(FileNotFoundError):
                if file.name.endswith(DRAFT):
                    _remove_left_over(Path(file.path))
                else:
                    stat = file.stat()
                    found.append((file.name == WHOLE, stat.st_mtime_ns, stat.st_size, file.path))
        self._oldest = deque(heapq.nsmallest(REMEMBERED, found))
        return sum(size for _, _, size, _ in found)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Inside, an error concerns the local disk, not the store, so it is not retried."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> UserError:
        fix = f"{write_fix(error)}, or set data.cache to a folder on a local disk"
        return UserError(f"data.cache = {self.folder}: cannot be used: {error.strerror}; {fix}")


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files that this cache has written and may remove; nothing else in its folder."""
    for prefix in os.scandir(folder):
        if not (re.fullmatch("[0-9a-f]{2}", prefix.name) and prefix.is_dir()):
            continue
        for each in os.scandir(prefix):
            if re.fullmatch("[0-9a-f]{64}", each.name):
                yield from (file for file in os.scandir(each) if _PIECE.fullmatch(file.name))


def _crc(piece: bytes) -> bytes:
    return zlib.crc32(piece).to_bytes(CRC_BYTES, "little")


def _names(path: Path, descriptor: int) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_left_over(draft: Path) -> None:
    """Removes a draft if its process was killed."""
    with draft.open("rb") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.unlink()
