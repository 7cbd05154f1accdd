"""The index of one split of a prepared corpus: what lies in its folder, and the checks on reading
it.

index.json        this dataclass as JSON, and last in it the sha256 of all bytes before that
documents.idx     one DOCUMENT record per document, in the order of the shards: raw, mapped rather than read
shard-NNNNNN.tar  webdataset samples: KEY.u16 (or .u32), the ids, little-endian; KEY.json, source, chars, tokens
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import UserError
from pretrain.files import has_checksum, parse_json, with_checksum

FORMAT = 2
INDEX, DOCUMENTS = "index.json", "documents.idx"
MAX_BYTES = 1 << 26  # of index.json; 300,000 shards take less
SPLITS = ("train", "heldout")
DTYPES: dict[str, np.dtype[Any]] = {"u16": np.dtype("<u2"), "u32": np.dtype("<u4")}
DOCUMENT = np.dtype(
    [
        ("offset", "<u8"),  # bytes from the start of the tar to the ids
        ("tokens", "<u4"),  # how many, EOS not among them
        ("crc32", "<u4"),  # of the ids' bytes
    ]
)


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    bytes: int
    samples: int
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """One split."""

    format: int
    tokenizer: str  # fingerprint of the tokenizer that made the ids
    vocab_size: int
    eos: int
    pad: int
    dtype: str  # a key of DTYPES, and the suffix of the ids in the tars
    samples: int
    tokens: int  # EOS not among them
    chars: int
    documents_sha256: str  # of documents.idx
    shards: list[Shard]

    def write(self, folder: Path) -> None:
        """Write index.json and wait until it is on the disk."""
        with (folder / INDEX).open("wb") as file:
            file.write(with_checksum(asdict(self)))
            file.flush()
            os.fsync(file.fileno())

    @property
    def fingerprint(self) -> str:
        """Stands for all content of the split: ids, their order and the tokenizer."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_index(folder: Path) -> Index:
    """The index of `folder`; UserError names the file when it is missing, damaged or of another
    format.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; give a folder of `hypnos data prepare`"
        ) from None
    damaged = UserError(
        f"{path}: damaged, or of another version; copy it anew or prepare the corpus again"
    )
    if not has_checksum(content):
        raise damaged
    try:
        record = parse_json(content)
        del record["sha256"]
        if record["format"] != FORMAT:
            raise UserError(
                f"{path}: format {record['format']}, not {FORMAT}; prepare the corpus again"
            )
        shards = [Shard(**_check(Shard, shard)) for shard in record["shards"]]
        index = Index(**_check(Index, record) | {"shards": shards})
    except UserError:
        raise
    except (ValueError, KeyError, TypeError):
        raise damaged from None
    if not _sound(index):
        raise damaged
    return index


def find_split(path: str | Path, split: str) -> Path:
    """The folder of one split: `path` itself when it holds an index, else its `split` folder."""
    path = Path(path)
    if (path / INDEX).is_file():
        return path
    if (path / split / INDEX).is_file():
        return path / split
    raise UserError(
        f"{path}: holds no {split} shards, for there is no {INDEX}; give a folder of `hypnos data prepare`"
    )


def find_splits(path: str | Path) -> list[Path]:
    """All splits of a prepared corpus, or the one that `path` itself is."""
    path = Path(path)
    found = (
        [path]
        if (path / INDEX).is_file()
        else [path / s for s in SPLITS if (path / s / INDEX).is_file()]
    )
    if not found:
        raise UserError(
            f"{path}: holds no shards, for there is no {INDEX}; give a folder of `hypnos data prepare`"
        )
    return found


def _check(kind: type[Shard] | type[Index], record: dict[str, Any]) -> dict[str, Any]:
    """`record` if it has exactly the fields of `kind`, each of its type; TypeError if not."""
    if set(record) != {field.name for field in fields(kind)}:
        raise TypeError("fields")
    for field in fields(kind):
        value = record[field.name]
        if type(value).__name__ != str(field.type).split("[")[0]:
            raise TypeError(field.name)
        if isinstance(value, int) and not 0 <= value < 1 << 63:
            raise ValueError(field.name)
    return record


def _sound(index: Index) -> bool:
    """Whether the parts of an index agree with each other and name nothing outside its folder."""
    return (
        re.fullmatch("[0-9a-f]{64}", index.tokenizer) is not None
        and index.dtype == ids_suffix(index.vocab_size)
        and max(index.eos, index.pad) < index.vocab_size
        and all(shard.name == shard_name(number) for number, shard in enumerate(index.shards))
        and index.samples == sum(shard.samples for shard in index.shards)
        and index.tokens == sum(shard.tokens for shard in index.shards)
        and index.samples > 0
    )


def ids_suffix(vocab_size: int) -> str:
    """The key of DTYPES for ids below `vocab_size`."""
    return "u16" if vocab_size <= 1 << 16 else "u32"


def shard_name(number: int) -> str:
    """The file of a split's shard."""
    return f"shard-{number:06d}.tar"


def document_key(number: int) -> str:
    """The webdataset key of a split's document."""
    return f"{number:09d}"
