"""Files on an object store (s3://, gs://, https://), through fsspec, with retries.

A request that fails, times out or returns too little is retried with increasing pauses, within a
stated time. Every fsspec protocol works whose package is installed; credentials, endpoints and
proxies are configured as usual for the store (environment, ~/.aws, fsspec's configuration).
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pretrain.errors import StorageFailed, UserError, shortened

RETRY_S = 300.0  # how long to retry an object, unless set otherwise
ATTEMPT_S = 20.0  # in which one attempt must be complete
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
QUIET_S = 5.0  # between two messages about failures: when a store fails, all objects do
CHUNK, CHUNKS_AHEAD = 1 << 22, 4  # bytes and chunks ahead, when a whole object is read
T = TypeVar("T")


class Closed(Exception):
    """The reader was closed meanwhile."""


class Failed(Exception):
    """A request failed: `error`, of whatever type the client raised, says why."""

    def __init__(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        super().__init__(" ".join(why.split()))
        self.error = error


class StorePath:
    """An object or a prefix, used like a Path.

    Args:
        retry: seconds for which each object is retried.
        closed: once it is set, no more requests are made.
    """

    _whole: dict[str, bytes] = {}  # noqa: RUF012  (small objects, which a process reads once)

    def __init__(
        self, url: str, retry: float = RETRY_S, closed: threading.Event | None = None
    ) -> None:
        self.url, self.retry = url.rstrip("/"), retry
        self.closed = closed or threading.Event()

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(f"{self.url}/{name}", self.retry, self.closed)

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    def is_file(self) -> bool:
        """Whether it is an object. Only for small ones: the object is read."""
        try:
            self.read_bytes()
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self) -> bytes:
        """All of a small object; FileNotFoundError."""
        if self.url not in self._whole:
            self._whole[self.url] = self.attempts(self._read, FileNotFoundError)
        return self._whole[self.url]

    def size(self) -> int:
        """Its size in bytes. FileNotFoundError."""
        fs, path = self._filesystem()
        fs.invalidate_cache()
        found = self.attempts(lambda limit: _call(fs, "info", path, limit=limit), FileNotFoundError)
        return int(found["size"])

    def sizes(self) -> dict[str, int]:
        """Sizes of the objects directly below a prefix, by name; empty if the store cannot list."""
        fs, path = self._filesystem()
        if "http" in fs.protocol:
            return {}
        fs.invalidate_cache()
        found = self.attempts(lambda limit: _call(fs, "ls", path, detail=True, limit=limit))
        return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in found}

    def read_range(self, start: int, stop: int, limit: float) -> bytes:
        """Bytes start .. stop - 1, in one attempt of `limit` seconds. Failed."""
        fs, path = self._filesystem()
        content: bytes = _call(fs, "cat_file", path, start=start, end=stop, limit=limit)
        if len(content) != stop - start:
            raise Failed(OSError(f"received {len(content)} bytes instead of {stop - start}"))
        return content

    def chunks(self, size: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """All of an object of `size` bytes, in order; some chunks are fetched ahead."""
        mine = StorePath(self.url, self.retry)  # so that it can be closed separately

        def read(start: int) -> bytes:
            stop = min(start + chunk, size)
            return mine.attempts(lambda limit: mine.read_range(start, stop, limit))

        threads = ThreadPoolExecutor(CHUNKS_AHEAD, "store")
        starts = iter(range(0, size, chunk))
        coming = deque(threads.submit(read, start) for start in islice(starts, CHUNKS_AHEAD))
        try:
            while coming:
                yield coming.popleft().result()
                coming.extend(threads.submit(read, start) for start in islice(starts, 1))
        finally:
            mine.closed.set()
            threads.shutdown(cancel_futures=True)

    def attempts(self, attempt: Callable[[float], T], *final: type[Exception]) -> T:
        """The result of `attempt`, which is given its time limit in seconds; retried if it has
        Failed, or waited too long for another process.

        Args:
            final: errors of the store that are raised at once.
        Raises:
            UserError: it has failed for `retry` seconds. Closed.
        """
        began = time.monotonic()
        left, pause, number = self.retry, FIRST_PAUSE_S, 0
        while True:
            number += 1
            try:
                return attempt(min(ATTEMPT_S, max(1.0, left)))
            except (Failed, TimeoutError) as caught:
                failed = caught if isinstance(caught, Failed) else Failed(caught)
            if isinstance(failed.error, final):
                raise failed.error
            left = began + self.retry - time.monotonic()
            if left <= 0:
                may_pass = not isinstance(failed.error, FileNotFoundError)
                kind = StorageFailed if may_pass and not _is_refused(failed.error) else UserError
                raise kind(self._gave_up(number, self.retry - left, failed)) from None
            why = shortened(str(failed), 200)
            _say(f"{self}: attempt {number} failed ({why}); will retry for {left:.0f} s")
            if self.closed.wait(min(left, pause * random.uniform(0.5, 1))):
                raise Closed
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _gave_up(self, number: int, seconds: float, failed: Failed) -> str:
        if isinstance(failed.error, FileNotFoundError):
            fix = "put it back, or name another copy of these shards"
        elif _is_refused(failed.error):
            fix = "check the credentials that the store's client finds on this machine"
        else:
            fix = "start again when the store answers, or raise data.retry"
        tried = f"{number} attempt{'s' if number > 1 else ''} in {seconds:.0f} s"
        return f"{self}: cannot be read: {tried}, the last: {shortened(str(failed), 200)}; {fix}"

    def _read(self, limit: float) -> bytes:
        fs, path = self._filesystem()
        try:
            content: bytes = _call(fs, "cat_file", path, limit=limit)
        except Failed as failed:
            if _is_refused(failed.error):  # in later reads, they may just be in renewal
                raise UserError(self._gave_up(1, 0, failed)) from None
            raise
        return content

    def _filesystem(self) -> tuple[Any, str]:
        """The fsspec filesystem (fsspec caches one per protocol), and its name for this path."""
        try:
            import fsspec

            is_s3 = self.url.startswith(("s3://", "s3a://"))
            options = _without_retries(fsspec.config.conf) if is_s3 else {}
            fs, path = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            why = " ".join(str(error).split())
            raise UserError(
                f"{self}: {why}; s3:// needs `pip install -e '.[store]'` in the clone"
            ) from None
        if is_s3:
            fs.retries = 1
        return fs, path


Place = Path | StorePath


def place(text: str, retry: float = RETRY_S, closed: threading.Event | None = None) -> Place:
    """The place that a text names: a URL or a path. See `StorePath`."""
    return StorePath(text, retry, closed) if is_remote(text) else Path(text).expanduser()


def is_remote(text: str) -> bool:
    """Whether it is a URL."""
    return "://" in text


def _without_retries(configured: dict[str, Any]) -> dict[str, Any]:
    """s3fs options that turn off the client's own retries, so that we count all attempts."""
    theirs = configured.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}} | theirs}


def _is_refused(error: Exception) -> bool:
    """Whether access was refused for lack of credentials, as s3fs, botocore or aiohttp report
    it.
    """
    return (
        isinstance(error, PermissionError)
        or "Credentials" in type(error).__name__
        or getattr(error, "status", None) in (401, 403)
    )


def _call(fs: Any, method: str, *args: Any, limit: float, **kwargs: Any) -> Any:
    """Calls a method of a filesystem, within `limit` seconds if it supports a timeout. Failed."""
    from fsspec.asyn import sync

    try:
        if not fs.async_impl:
            return getattr(fs, method)(*args, **kwargs)
        return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=limit, **kwargs)
    except TimeoutError:
        raise Failed(TimeoutError(f"no answer in {limit:.0f} s")) from None
    except Exception as error:
        raise Failed(error) from error


_said = [-QUIET_S]  # when the last message was printed, on the monotonic clock
_saying = threading.Lock()


def _say(line: str) -> None:
    with _saying:
        if time.monotonic() - _said[0] >= QUIET_S:
            _said[0] = time.monotonic()
            print(line, file=sys.stderr, flush=True)
