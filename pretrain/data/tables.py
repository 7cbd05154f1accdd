"""Documents from a column of .csv or .tsv files with a header, quoted as usual."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pretrain.data.compression import open_stream
from pretrain.data.formats import Document, Rejected
from pretrain.data.json_rows import MAX_LINE
from pretrain.errors import shortened

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, name: str, column: str, delimiter: str) -> Iterator[Document | Rejected]:
    """The field under `column` of every row."""
    csv.field_size_limit(MAX_LINE)
    with (
        open_stream(path) as file,
        # invalid UTF-8 becomes lone surrogates, so that only its row is rejected
        io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            lines = filter(None, rows)  # empty ones do not count
            header = next(lines, None)
            if header is None:
                return
            if header.count(column) != 1:
                raise Rejected(
                    str(path),
                    f'not exactly one column "{column}"',
                    f": its columns are {shortened(', '.join(header))}",
                    fix="name the column that holds the text (--text-field)",
                    is_metadata=True,
                )
            at = header.index(column)
            for number, row in enumerate(lines, 1):
                place = f"{path}, row {number}"
                yield _document(row, at, len(header), place, f"{name}:{number}")
        except csv.Error as error:
            place = f"{path}, line {rows.line_num}"
            raise Rejected(place, "malformed table", f": {error}", fix="repair it") from None


def _document(row: list[str], at: int, width: int, place: str, source: str) -> Document | Rejected:
    if len(row) != width:
        return Rejected(
            place, "not as many fields as in the header", f": {len(row)} instead of {width}",
            fix="repair it",
        )  # fmt: skip
    try:
        row[at].encode()
    except UnicodeEncodeError:
        return Rejected(place, "invalid UTF-8", fix="convert the file to UTF-8")
    return Document(row[at], source)
