"""Documents from Arrow files: the stream format, which `datasets` caches, and Feather."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pretrain.data.formats import Document, Rejected
from pretrain.data.parquet import ROWS, as_bytes, check_column, document, errors

MAGIC = b"ARROW1"  # starts the file format; without it, it is the stream format


def read_arrow(path: Path, name: str, column: str) -> Iterator[Document | Rejected]:
    """Every row's `column`: strings or bytes of UTF-8, plain or dictionary-encoded."""
    with path.open("rb") as raw:
        with errors(path, "Arrow"):
            is_file = raw.read(len(MAGIC)) == MAGIC
            raw.seek(0)
            reader = pa.ipc.open_file(raw) if is_file else pa.ipc.open_stream(raw)
            check_column(reader.schema, column, path)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        row = 0
        while True:
            with errors(path, "Arrow"):
                if (batch := next(batches, None)) is None:
                    return
                texts = batch.column(column)
                texts.validate(full=True)  # a damaged file could point anywhere
            for first in range(0, len(texts), ROWS):
                with errors(path, "Arrow"):
                    some = as_bytes(texts[first : first + ROWS]).to_pylist()
                for text in some:
                    yield document(text, column, f"{path}, row {row}", f"{name}:{row}")
                    row += 1
