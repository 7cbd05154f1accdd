"""Documents from Parquet: one column, of any kind of string."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.data.compression import TooLarge
from pretrain.data.formats import Document, Rejected
from pretrain.errors import shortened

ROWS = 256  # in memory at once

_IS_TEXT = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
    pa.types.is_null,
)


def read_parquet(path: Path, name: str, column: str) -> Iterator[Document | Rejected]:
    """Every row's `column`: strings or bytes of UTF-8, plain or dictionary-encoded."""
    with path.open("rb") as raw:
        with errors(path):
            file = pq.ParquetFile(raw)
            check_column(file.schema_arrow, column, path)
        batches = file.iter_batches(batch_size=ROWS, columns=[column])
        row = 0
        while True:
            with errors(path):
                batch = next(batches, None)
                texts = [] if batch is None else as_bytes(batch.column(0)).to_pylist()
            if batch is None:
                return
            for text in texts:
                yield document(text, column, f"{path}, row {row}", f"{name}:{row}")
                row += 1


def check_column(schema: pa.Schema, column: str, path: Path) -> None:
    """Rejects a file without such a text column."""
    fix = "name the column that holds the text (--text-field)"
    if schema.names.count(column) != 1:
        detail = f": its columns are {shortened(', '.join(schema.names))}"
        raise Rejected(str(path), f'not exactly one column "{column}"', detail, fix=fix)
    kind = stored = schema.field(column).type
    while pa.types.is_dictionary(stored) or isinstance(stored, pa.BaseExtensionType):
        is_dictionary = pa.types.is_dictionary(stored)
        stored = stored.value_type if is_dictionary else stored.storage_type
    if not any(is_text(stored) for is_text in _IS_TEXT):
        raise Rejected(str(path), f'column "{column}" is {kind}, not text', fix=fix)


def as_bytes(array: pa.Array) -> pa.Array:
    """Strings as bytes, which Arrow does not validate, so that invalid UTF-8 rejects only its
    row.
    """
    while pa.types.is_dictionary(array.type) or isinstance(array.type, pa.BaseExtensionType):
        is_dictionary = pa.types.is_dictionary(array.type)
        array = array.dictionary_decode() if is_dictionary else array.storage
    return array.cast(pa.large_binary())


def document(text: bytes | None, column: str, place: str, source: str) -> Document | Rejected:
    """The document of one row."""
    if text is None:
        return Rejected(place, f'"{column}" is null', fix="repair it")
    try:
        return Document(text.decode(), source)
    except UnicodeDecodeError as error:
        return Rejected(place, "invalid UTF-8", f" at byte {error.start}", fix="repair it")


@contextmanager
def errors(path: Path, format: str = "Parquet") -> Iterator[None]:
    """Inside, errors of Arrow's reader become Rejected, TooLarge, or an OSError."""
    try:
        yield
    except MemoryError:
        raise TooLarge("does not fit in memory") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # last: in a column's name
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first = str(error).partition("\n")[0]
        raise Rejected(
            str(path),
            f"cannot be read as {format}",
            f": {first}",
            fix="copy it again if it is damaged",
        ) from None
