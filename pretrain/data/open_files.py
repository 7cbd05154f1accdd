"""Keeps a bounded number of repeatedly read files open."""

from __future__ import annotations

import os
import resource
from collections import OrderedDict

MAX_OPEN = 256


class OpenFiles:
    """Reads pieces of files and keeps the files open, the least recently read closed first.

    A stream has one of these for all its corpora. It keeps at most MAX_OPEN files open, and at most
    half of those that the process may still open, since others need files too.
    """

    def __init__(self) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = limit - len(os.listdir("/dev/fd"))
        self.most = (
            MAX_OPEN if limit == resource.RLIM_INFINITY else min(MAX_OPEN, max(1, left // 2))
        )
        self._descriptors: OrderedDict[str, int] = OrderedDict()  # least recently read first

    def read(self, path: str, size: int, offset: int) -> bytes:
        """`size` bytes at `offset`, or fewer at the file's end. OSError if it cannot be read."""
        file = self._descriptor(path)
        parts: list[bytes] = []
        while size and (part := os.pread(file, size, offset)):  # it may return less than asked for
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close all files; a later read opens its file again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, path: str) -> int:
        if path not in self._descriptors:
            if len(self._descriptors) == self.most:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        self._descriptors.move_to_end(path)
        return self._descriptors[path]
