"""One document's tokens by number, without reading its neighbours."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.index import DOCUMENTS, DTYPES, document_key, read_index
from pretrain.data.open_files import OpenFiles
from pretrain.data.records import (
    BackgroundCheck,
    check_documents,
    check_size,
    lies_outside,
    map_documents,
    outside,
)
from pretrain.errors import UserError
from tokenizer.encode import Tokenizer

MAX_AT_ONCE = 1 << 22  # documents, whose place takes well below a second to check


class Shards:
    """One split, opened for random access.

    Opening checks the index and the tokenizer, and one rank of each host what can be checked beyond
    that without reading the tars: the size of every one, and documents.idx. Where that is large, it
    is checked in the background. Reading a document checks its place and its bytes. Each failure is
    a UserError that names the file.

    index     the split's index
    lengths   [documents] uint32 tokens of each, EOS not among them; mapped, not loaded
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        files: OpenFiles | None = None,
        *,
        checks: bool = True,
    ) -> None:
        """
        Args:
            files: the tars that are open, of this split and of others that are read with it.
            checks: this is the rank that checks all for its host.
        """
        self.folder = folder
        self.index = read_index(folder)
        mine = (tokenizer.fingerprint, tokenizer.vocab_size)
        if (self.index.tokenizer, self.index.vocab_size) != mine:
            raise UserError(
                f"{folder}: made with another tokenizer ({self.index.tokenizer[:12]}, "
                f"{self.index.vocab_size} pieces) than this one ({mine[0][:12]}, {mine[1]}); "
                "set data.tokenizer to its own, or prepare the corpus again"
            )
        self._check: BackgroundCheck | None = None
        if checks:
            for shard in self.index.shards:
                check_size(folder / shard.name, shard.bytes)
            if self.index.samples <= MAX_AT_ONCE:
                check_documents(folder, self.index)
            else:
                self._check = BackgroundCheck(folder, self.index)
        self._records = map_documents(folder, self.index)
        self.lengths: NDArray[np.uint32] = self._records["tokens"]
        # first document of the next shard
        self._ends = np.cumsum([shard.samples for shard in self.index.shards])
        self._dtype = DTYPES[self.index.dtype]
        self._files = files or OpenFiles()

    def __len__(self) -> int:
        return self.index.samples

    def document(self, number: int) -> NDArray[Any]:
        """[tokens] ids of a document, uint16 or uint32."""
        if self._check:
            self._check.raise_if_damaged()
        record = self._records[number]
        which = int(np.searchsorted(self._ends, number, side="right"))
        shard = self.index.shards[which]
        in_shard = number - (int(self._ends[which]) - shard.samples)
        if outside(record, np.int64(shard.bytes), self._dtype.itemsize):
            raise lies_outside(self.folder / DOCUMENTS, in_shard, shard.name)
        path = self.folder / shard.name
        name = f"{path}: document {document_key(in_shard)}"
        size = int(record["tokens"]) * self._dtype.itemsize
        try:
            payload = self._files.read(path, size, int(record["offset"]))
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from None
        if zlib.crc32(payload) != record["crc32"]:
            raise UserError(f"{name} is damaged; copy the shard anew or prepare again")
        ids = np.frombuffer(payload, self._dtype)
        if ids.max() >= self.index.vocab_size:
            raise UserError(f"{name} has ids beyond the vocabulary; prepare again")
        return ids

    def close(self) -> None:
        """Close the tars; a later read opens them again. What is checked in the background is
        checked no further.
        """
        self._files.close()
        if self._check:
            self._check.close()
