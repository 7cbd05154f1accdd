"""The file formats that documents are read from, streamed: UTF-8 text, JSON lines, Parquet."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pretrain.errors import UserError
from pretrain.files import parse_json, read_whole

# of one JSON object; a compressed file of a few KB could hold one that fills the memory
LINE_BYTES = 1 << 27
ZSTD_BYTES = 1 << 11  # decompressed at once, for a bit of Zstandard can become 30,000 times as much


@dataclass
class Document:
    """One text that is kept whole, and where it came from."""

    text: str
    source: str


class BadText(UserError):
    """A text file that cannot be read as UTF-8."""


def read_text(path: Path, name: str) -> Iterator[Document]:
    """The whole file, line ends as they are."""
    try:
        text = read_whole(path).decode()
    except OSError as error:
        raise BadText(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadText(
            f"{path}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8 or leave it out"
        ) from None
    if text:
        yield Document(text, name)


def read_json_lines(path: Path, name: str, key: str) -> Iterator[Document]:
    """The field `key` of every line; blank lines and empty texts are passed over."""
    lines = _lines(path)
    for number in count(1):
        place = f"{path}, line {number}"
        try:
            line = next(lines, None)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{place}: cannot be read: {reason}; the file may be damaged") from None
        if line is None:
            return
        if len(line) > LINE_BYTES:
            raise UserError(f"{place}: more than {LINE_BYTES >> 20} MiB; split the text")
        if line.strip() and (text := _field(line, key, place)):
            yield Document(text, f"{name}:{number}")


def _field(line: bytes, key: str, place: str) -> str:
    """The text under `key` of one JSON object."""
    try:
        record = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place}: {error}; repair the line") from None
    if not isinstance(record, dict) or key not in record:
        raise UserError(f'{place}: no field "{key}"; name the field that holds the text')
    text = record[key]
    if not isinstance(text, str):
        raise UserError(f'{place}: "{key}" is not text; name the field that holds the text')
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell them
        raise UserError(
            f'{place}: "{key}" holds a lone surrogate, which is no text; repair the line'
        ) from None
    return text


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a plain, gzip or Zstandard file, streamed; one that is too long is cut."""
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            file: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            file = io.BufferedReader(_ZstdFile(raw))
        else:
            file = raw
        yield from iter(lambda: file.readline(LINE_BYTES + 1), b"")


class _ZstdFile(io.RawIOBase):
    """Decompresses Zstandard frames. The library's own reader takes a truncated file for a complete
    one.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False  # bytes of the current frame were read
        self._ready = memoryview(b"")  # slicing it copies nothing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            chunk = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
                self._begun = False
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


def read_parquet(path: Path, name: str, column: str) -> Iterator[Document]:
    """Every row's `column`, a few hundred rows at a time; empty texts are passed over."""
    with _parquet_errors(path):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    if column not in names:
        raise UserError(
            f'{path}: no column "{column}", only {", ".join(names)}; name the column that holds the text'
        )
    kind = file.schema_arrow.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(
            f'{path}: column "{column}" is not text; name the column that holds the text'
        )
    batches = file.iter_batches(batch_size=256, columns=[column])
    row = 0
    while True:
        with _parquet_errors(path):
            batch = next(batches, None)
            texts: list[str | None] = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            return
        for text in texts:
            if text is None:
                raise UserError(f'{path}, row {row}: "{column}" is null; remove the row')
            if text:
                yield Document(text, f"{name}:{row}")
            row += 1


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: invalid UTF-8 in the text column: {error.reason}; repair the file"
        ) from None
    except (OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read as Parquet: {first}; the file may be damaged"
        ) from None
