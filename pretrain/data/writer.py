"""Writes one split of a prepared corpus: webdataset tars, documents.idx, index.json."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import webdataset

from pretrain.data.formats import Document
from pretrain.data.index import (
    DOCUMENT,
    DOCUMENTS,
    DTYPES,
    FORMAT,
    Index,
    Shard,
    document_key,
    ids_suffix,
    shard_name,
)
from pretrain.files import sha256, sync
from tokenizer.encode import Tokenizer

TAR_BLOCK = 512  # bytes; a tar pads every file to a multiple, after a header of one block
SAMPLE_BYTES = 1 << 16  # of ids; short documents share a sample until it has this many


class SplitWriter:
    """Takes documents and writes one split; call `finish` and `close`. Counters say what has been
    added so far.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> None:
        folder.mkdir()
        self.samples = self.tokens = self.chars = 0
        self._folder = folder
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._suffix = ids_suffix(tokenizer.vocab_size)
        self._shards: list[Shard] = []
        self._documents = (folder / DOCUMENTS).open("wb")
        self._tar: webdataset.TarWriter | None = None  # of the open shard

    def add(self, document: Document, ids: list[int]) -> None:
        """Append one document; it starts a new shard if the open one has enough tokens."""
        if self._tar is not None and self._shard_size >= self._shard_tokens:
            self._end_shard()
        if self._tar is None:
            self._begin_shard()
        payload = np.array(ids, DTYPES[self._suffix]).tobytes()
        self._about.append(
            {"source": document.source, "chars": len(document.text), "tokens": len(ids)}
        )
        self._payloads.append(payload)
        self._sample_size += len(payload)
        self._shard_size += len(ids)
        self.samples += 1
        self.tokens += len(ids)
        self.chars += len(document.text)
        if self._sample_size >= SAMPLE_BYTES:
            self._end_sample()

    def finish(self) -> Index:
        """Finish the last shard and write the index; everything is synced to disk on return."""
        if self._tar is not None:
            self._end_shard()
        self._documents.close()
        sync(self._folder / DOCUMENTS)
        index = Index(
            format=FORMAT,
            tokenizer=self._tokenizer.fingerprint,
            vocab_size=self._tokenizer.vocab_size,
            eos=self._tokenizer.eos,
            pad=self._tokenizer.pad,
            dtype=self._suffix,
            samples=self.samples,
            tokens=self.tokens,
            chars=self.chars,
            documents_sha256=sha256(self._folder / DOCUMENTS),
            shards=self._shards,
        )
        index.write(self._folder)
        sync(self._folder)
        return index

    def close(self) -> None:
        """Close the files, finished or not."""
        if self._tar is not None:
            self._tar.close()
        self._documents.close()

    def _begin_shard(self) -> None:
        self._path = self._folder / shard_name(len(self._shards))
        # no dates: same corpus, same bytes
        self._tar = webdataset.TarWriter(str(self._path), encoder=False, mtime=0)
        self._records: list[tuple[int, int, int]] = []  # DOCUMENT
        self._shard_size = 0  # tokens
        self._begin_sample()

    def _begin_sample(self) -> None:
        # the number of its first document in the shard
        self._first = len(self._records)
        self._about: list[dict[str, str | int]] = []
        self._payloads: list[bytes] = []
        self._sample_size = 0  # bytes of ids

    def _end_sample(self) -> None:
        """Writes the documents of a sample, and records where the ids of each begin."""
        if not self._payloads:
            return
        assert self._tar is not None, "a sample is of an open shard"
        self._tar.write(
            {
                "__key__": document_key(self._first),
                "json": json.dumps(self._about).encode(),
                self._suffix: b"".join(self._payloads),
            }
        )
        # webdataset sorts a sample's files, so the ids come last
        padded = -(-self._sample_size // TAR_BLOCK) * TAR_BLOCK
        offset = self._tar.tarstream.offset - padded
        for about, payload in zip(self._about, self._payloads, strict=True):
            self._records.append((offset, int(about["tokens"]), zlib.crc32(payload)))
            offset += len(payload)
        self._begin_sample()

    def _end_shard(self) -> None:
        assert self._tar is not None, "it is open"
        self._end_sample()
        self._tar.close()
        self._tar = None
        sync(self._path)
        self._documents.write(np.array(self._records, DOCUMENT).tobytes())
        size = self._path.stat().st_size
        self._shards.append(
            Shard(self._path.name, size, len(self._records), self._shard_size, sha256(self._path))
        )
