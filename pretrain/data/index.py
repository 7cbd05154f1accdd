"""The index of one split of a prepared corpus: what is in its folder.

index.json        `Index` as JSON; its last member is the sha256 of all bytes before it
documents.idx     a DOCUMENT record for each document, in the order of the shards: raw, mapped
shard-NNNNNN.tar  webdataset samples of one document, or of several short ones:
                  KEY.u16 (or .u32)  the documents' ids, little-endian, concatenated
                  KEY.json           {source, chars, tokens} for each document
                  KEY is the number of the first document in the shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.store import Place, place
from pretrain.errors import UserError, storage_error
from pretrain.files import has_checksum, parse_json, read_whole, with_checksum

FORMAT = 3
INDEX, DOCUMENTS = "index.json", "documents.idx"
SPLITS = ("train", "heldout")
DTYPES: dict[str, np.dtype[Any]] = {"u16": np.dtype("<u2"), "u32": np.dtype("<u4")}
DOCUMENT = np.dtype(
    [
        ("offset", "<u8"),  # bytes from the start of the tar to the ids
        ("tokens", "<u4"),  # how many, without EOS
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
    tokenizer: str  # fingerprint of the tokenizer
    vocab_size: int
    eos: int
    pad: int
    dtype: str  # a key of DTYPES, and the suffix of the ids in the tars
    samples: int
    tokens: int  # without EOS
    chars: int
    documents_sha256: str  # of documents.idx
    shards: list[Shard]

    def write(self, folder: Path) -> None:
        """Write index.json and sync it to disk."""
        with (folder / INDEX).open("wb") as file:
            file.write(with_checksum(asdict(self)))
            file.flush()
            os.fsync(file.fileno())

    @property
    def mean_tokens(self) -> float:
        """Mean length of a document, with its EOS."""
        return self.tokens / self.samples + 1

    @property
    def fingerprint(self) -> str:
        """A hash of all content of the split: ids, their order and the tokenizer."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def read_index(folder: Place) -> Index:
    """The index of `folder`. UserError: it is missing, damaged or of another format version."""
    path = folder / INDEX
    try:
        content = read_whole(path) if isinstance(path, Path) else path.read_bytes()
    except OSError as error:
        why = error.strerror or "not found"
        raise storage_error(error)(
            f"{path}: cannot be read: {why}; give a folder written by `hypnos data prepare`"
        ) from None
    if not has_checksum(content):
        raise UserError(
            f"{path}: damaged, or of another version; copy it again or prepare the corpus again"
        )
    record = parse_json(content)
    if record["format"] != FORMAT:
        raise UserError(
            f"{path}: format {record['format']}, not {FORMAT}; prepare the corpus again"
        )
    del record["sha256"]
    return Index(**record | {"shards": [Shard(**shard) for shard in record["shards"]]})


def find_split(path: str | Place, split: str) -> Place:
    """The folder of one split: `path` itself if it has an index, else its subfolder `split`."""
    return find_splits(path, split)[0]


def find_splits(path: str | Place, *names: str) -> list[Place]:
    """The splits of a prepared corpus (only those with these names, if any are given); only `path`
    if it is a split itself. UserError: there is none.
    """
    path = place(path) if isinstance(path, str) else path
    if (path / INDEX).is_file():
        return [path]
    if found := [path / name for name in names or SPLITS if (path / name / INDEX).is_file()]:
        return found
    kind = "".join(f"{name} " for name in names)
    raise UserError(
        f"{path}: holds no {kind}shards: it has no {INDEX}; "
        "give a folder written by `hypnos data prepare`"
    )


def splits_of(holdout: float) -> tuple[str, ...]:
    """The splits that a corpus has, of which the share `holdout` is held out."""
    return SPLITS if holdout else SPLITS[:1]


def ids_suffix(vocab_size: int) -> str:
    """The key of DTYPES for ids below `vocab_size`."""
    return "u16" if vocab_size <= 1 << 16 else "u32"


def shard_name(number: int) -> str:
    """The file name of a split's shard."""
    return f"shard-{number:06d}.tar"


def document_key(number: int) -> str:
    """The webdataset key of a shard's document, counted from 0."""
    return f"{number:09d}"
