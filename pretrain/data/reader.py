"""Random access to a split: the tokens of one document, without reading its neighbours."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema import DataConfig
from pretrain.data.index import DOCUMENTS, DTYPES, Shard, document_key, read_index
from pretrain.data.records import BackgroundCheck, check_documents, lies_outside, map_documents
from pretrain.data.splits import Files
from pretrain.data.store import Place
from pretrain.errors import UserError, storage_error
from tokenizer.encode import Tokenizer

MAX_AT_ONCE = 1 << 22  # documents up to which checking documents.idx takes well below a second


class Shards:
    """One split, opened for random access.

    Opening checks the index and the tokenizer. One rank of each host also checks what can be
    checked without reading the tars: their sizes, and documents.idx (in the background if it is
    large). Reading a document checks its location and its bytes. Each failure is a UserError that
    names the file.

    index     the split's index
    lengths   [documents] uint32 tokens of each, without EOS; mapped, not loaded
    """

    def __init__(
        self,
        folder: Place,
        tokenizer: Tokenizer,
        files: Files | None = None,
        *,
        checks: bool = True,
    ) -> None:
        """
        Args:
            files: shared by all splits of a stream.
            checks: whether this rank does the checks for its host.
        """
        self.folder = folder
        self.index = read_index(folder)
        mine = (tokenizer.fingerprint, tokenizer.vocab_size)
        if (self.index.tokenizer, self.index.vocab_size) != mine:
            raise UserError(
                f"{folder}: made with another tokenizer ({self.index.tokenizer[:12]}, "
                f"{self.index.vocab_size} pieces) than this one ({mine[0][:12]}, {mine[1]}); "
                "set data.tokenizer to the one it was made with, or prepare the corpus again"
            )
        self._files = files or Files(DataConfig())
        self._split = self._files.split(folder)
        documents = self._split.documents(self.index)
        self._check: BackgroundCheck | None = None
        if checks:
            self._split.check_sizes(self.index.shards)
            if self.index.samples <= MAX_AT_ONCE:
                check_documents(documents, self.index)
            else:
                self._check = BackgroundCheck(documents, self.index)
        self._records = map_documents(documents, self.index)
        self.lengths: NDArray[np.uint32] = self._records["tokens"]
        # first document of the next shard
        self._ends = np.cumsum([shard.samples for shard in self.index.shards])
        self._dtype = DTYPES[self.index.dtype]
        self.batches_ahead = self._split.batches_ahead  # planned before the first one is read

    def __len__(self) -> int:
        return self.index.samples

    def ahead(self, number: int) -> None:
        """Announce that a document will soon be read, so that it can be prefetched."""
        if self.batches_ahead == 1:
            return
        shard, _, offset, size = self._find(number)
        self._split.ahead(shard, size, offset)

    def document(self, number: int) -> NDArray[Any]:
        """[tokens] the ids of a document, uint16 or uint32."""
        if self._check:
            self._check.raise_if_damaged()
        shard, in_shard, offset, size = self._find(number)

        def name() -> str:
            return f"{self.folder / shard.name}: document {document_key(in_shard)}"

        try:
            payload = self._split.read(shard, size, offset)
        except OSError as error:
            raise storage_error(error)(f"{name()} cannot be read: {error.strerror}") from None
        if zlib.crc32(payload) != self._records["crc32"][number]:
            self._split.discard(shard, size, offset)
            raise UserError(f"{name()} is damaged; copy the shard again, or prepare again")
        ids = np.frombuffer(payload, self._dtype)
        if ids.max() >= self.index.vocab_size:
            raise UserError(f"{name()} has ids beyond the vocabulary; prepare the corpus again")
        return ids

    def _find(self, number: int) -> tuple[Shard, int, int, int]:
        """A document's shard, its number in the shard, and the offset and size of its bytes."""
        record = self._records[number]
        which = int(np.searchsorted(self._ends, number, side="right"))
        shard = self.index.shards[which]
        in_shard = number - (int(self._ends[which]) - shard.samples)
        offset, size = int(record["offset"]), int(record["tokens"]) * self._dtype.itemsize
        if not size or offset + size > shard.bytes:
            raise lies_outside(self.folder / DOCUMENTS, in_shard, shard.name)
        return shard, in_shard, offset, size

    def close(self) -> None:
        """Close the tars; a later read opens them again. Ends the background check."""
        self._files.close()
        if self._check:
            self._check.close()
