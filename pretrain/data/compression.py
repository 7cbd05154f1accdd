"""Opens files as byte streams, decompressed by suffix: gzip, Zstandard, xz, bzip2.

Reads everything that the usual tools can write with documented options: several members, streams or
frames, skippable frames, and windows of up to 2 GiB (`zstd --long=31`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

MAX_WINDOW = 1 << 31  # bytes; the maximum of `zstd --long`
ZSTD_BYTES = 1 << 11  # compressed bytes per call: Zstandard can expand its input 30,000 times


class Damaged(Exception):
    """A compressed file that is truncated or corrupt, or not such a file at all."""


class TooLarge(Exception):
    """Reading takes more memory than there is."""


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, decompressed. Inside, errors are Damaged, TooLarge or an OSError."""
    with path.open("rb") as raw, _errors(), _decompressed(raw, path.suffix.lower()) as file:
        yield file


def _decompressed(raw: BinaryIO, suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if suffix in (".zst", ".zstd"):
        return io.BufferedReader(_ZstdFile(raw))
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    return raw


@contextmanager
def _errors() -> Iterator[None]:
    """Maps the errors of four libraries to ours."""
    try:
        yield
    except MemoryError:
        raise TooLarge("does not fit in memory") from None
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise Damaged(str(error)) from None
    except zstandard.ZstdError as error:
        if "not enough memory" in str(error):
            raise TooLarge(
                f"its window (zstd --long), of up to {MAX_WINDOW >> 30} GiB, does not fit in memory"
            ) from None
        if "ictionary" in str(error):
            raise Damaged("compressed with a dictionary (zstd -D); compress without one") from None
        raise Damaged(str(error)) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise Damaged(str(error)) from None  # gzip and bzip2 raise OSError for a damaged file


class _ZstdFile(io.RawIOBase):
    """Decompresses Zstandard frames. (The library's own reader accepts truncated files.)"""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._begin_frame()
        self._ready = memoryview(b"")  # slicing it copies nothing

    def _begin_frame(self) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        self._begun = False  # bytes of the current frame were read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            chunk = b""
            if self._frame.eof:
                chunk = self._frame.unused_data
                self._begin_frame()
            chunk = chunk or self._raw.read(ZSTD_BYTES)
            if not chunk:
                if self._begun:
                    raise EOFError("compressed file ends in the middle of a frame")
                return 0
            self._begun = True
            self._ready = memoryview(self._frame.decompress(chunk))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
