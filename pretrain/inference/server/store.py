"""Stored sessions: one file for each response id, there whole or not at all, least recently used
out first.

    FOLDER/
      resp_4f1d....safetensors   the session's tensors after that response; what was said, as JSON
      conv_90ab....json          which response a conversation ends with
      .resp_77c0...draft         being written; removed at the next start

A file is flushed to disk under another name and then renamed, and so is the folder's entry, before
anybody is told its id. So whatever is killed at whatever moment, an id that a client has seen has
all its bytes. The index is in memory, from the headers of the files; nothing else has to agree.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from pretrain.errors import UserError
from pretrain.files import sync

log = logging.getLogger("hypnos.serve")
SUFFIX = ".safetensors"
RECORD = "record"  # the tensor that holds JSON


class NotStored(KeyError):
    """There is no such id, or not for this owner."""


@dataclass(frozen=True)
class Entry:
    """What the index knows of a stored session."""

    id: str
    owner: str  # whose; "" where the server asks for no key
    model: str  # hash of the weights that read it
    parent: str  # the id that it went on from, "" at the beginning
    digest: str  # of all messages read so far, see `chat.digest`; "" where they are not known
    tokens: int  # read so far
    created: int  # Unix time in seconds
    size: int = 0  # bytes of its file


def new_id(kind: str) -> str:
    """An id that nobody can guess."""
    return f"{kind}_{secrets.token_hex(24)}"


class SessionStore:
    """The folder and its index. Safe to use from several threads."""

    def __init__(
        self, folder: Path, limit: int, model: str, say: Callable[[str], None] = print
    ) -> None:
        """Reads what is there.

        Args:
            limit: bytes of all files together. model: hash of the weights that are served.
            say: told of files that cannot be read, or belong to other weights.
        """
        self.folder, self.limit, self.model = folder, limit, model
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # least recently used first
        self._by_digest: dict[tuple[str, str], str] = {}  # owner, digest -> id
        self._size = 0
        for draft in folder.glob(".*.draft"):
            draft.unlink()
        paths = {path: path.stat() for path in folder.glob(f"*{SUFFIX}")}
        others = 0
        for path in sorted(paths, key=lambda path: paths[path].st_mtime_ns):
            try:
                with safe_open(path, framework="pt") as file:
                    header = json.loads(file.metadata()["entry"])
                self._add(Entry(**header, size=paths[path].st_size))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                say(f"{path}: not a stored session, left alone: {error}")
                continue
            others += header["model"] != model
        if others:
            say(f"{folder}: {others} stored sessions are of other weights, and out first")
        self._evict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return self._size

    def entry(self, owner: str, id: str) -> Entry:
        """NotStored if it is another's, or was read by other weights."""
        with self._lock:
            found = self._entries.get(id)
            if found is None or found.owner != owner or found.model != self.model:
                raise NotStored(id)
            return found

    def put(self, entry: Entry, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Entry:
        """Stores a session, durably; what was stored under the id before is replaced.

        Raises:
            OSError: the disk is full, or it is larger than the limit.
        """
        said = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)
        return self._write(entry, {**tensors, RECORD: said}, new=True)

    def refresh(self, entry: Entry, tensors: Mapping[str, Tensor]) -> None:
        """Stores another state of the same session, unless it has been deleted or evicted."""
        try:
            with safe_open(self._path(entry.id), framework="pt") as file:
                said = file.get_tensor(RECORD)
            self._write(entry, {**tensors, RECORD: said}, new=False)
        except OSError as error:  # what is stored is as good
            log.warning("a session that was slept over is not stored again: %s", error)

    def _write(self, entry: Entry, tensors: Mapping[str, Tensor], new: bool) -> Entry:
        fields = {k: v for k, v in asdict(entry).items() if k != "size"}
        content = save(dict(tensors), metadata={"entry": json.dumps(fields)})
        if len(content) > self.limit:
            raise OSError(
                f"a session of {len(content):,} bytes is larger than the store ({self.limit:,})"
            )
        written = replace(entry, size=len(content))
        path = self._path(entry.id)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
        try:
            draft.write_bytes(content)
            sync(draft)
            with self._lock:
                if new or entry.id in self._entries:
                    draft.rename(path)
                    self._add(written)
                    self._evict(keep=entry.id)
        finally:
            draft.unlink(missing_ok=True)
        sync(self.folder)
        return written

    def load(self, owner: str, id: str) -> tuple[Entry, dict[str, Any], dict[str, Tensor]]:
        """An entry, what was said, and the session's tensors, on the CPU; it becomes the newest."""
        entry = self.entry(owner, id)
        tensors = load(self._read(entry))
        record = json.loads(tensors.pop(RECORD).numpy().tobytes())
        self.touch(id)
        return entry, record, tensors

    def record(self, owner: str, id: str) -> tuple[Entry, dict[str, Any]]:
        """An entry and what was said, without the session."""
        entry = self.entry(owner, id)
        try:
            with safe_open(self._path(id), framework="pt") as file:
                return entry, json.loads(file.get_tensor(RECORD).numpy().tobytes())
        except FileNotFoundError:  # evicted since
            raise NotStored(id) from None

    def touch(self, id: str) -> None:
        """Makes it the most recently used, in the index and for the next start."""
        with self._lock:
            if id in self._entries:
                self._entries.move_to_end(id)
                os.utime(self._path(id))

    def longest(self, owner: str, digests: Sequence[str]) -> tuple[int, Entry] | None:
        """The last of some digests that is stored, and its place among them."""
        with self._lock:
            for i in range(len(digests) - 1, -1, -1):
                id = self._by_digest.get((owner, digests[i]))
                if id is not None:
                    return i, self._entries[id]
        return None

    def lineage(self, owner: str, id: str) -> Iterator[tuple[Entry, dict[str, Any]]]:
        """What was said, newest first, as far back as it is stored."""
        while id:
            try:
                entry, record = self.record(owner, id)
            except NotStored:
                return
            yield entry, record
            id = entry.parent

    def delete(self, owner: str, id: str) -> None:
        """For good: it does not come back after a crash."""
        with self._lock:
            self.entry(owner, id)
            self._drop(id)
        sync(self.folder)

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}{SUFFIX}"

    def _read(self, entry: Entry) -> bytes:
        try:
            return self._path(entry.id).read_bytes()
        except FileNotFoundError:  # evicted since
            raise NotStored(entry.id) from None

    def _add(self, entry: Entry) -> None:
        with self._lock:
            self._forget(entry.id)
            self._entries[entry.id] = entry
            self._size += entry.size
            if entry.digest and entry.model == self.model:
                self._by_digest[entry.owner, entry.digest] = entry.id
            if entry.model != self.model:
                self._entries.move_to_end(entry.id, last=False)

    def _forget(self, id: str) -> None:
        old = self._entries.pop(id, None)
        if old is not None:
            self._size -= old.size
            if self._by_digest.get((old.owner, old.digest)) == id:
                del self._by_digest[old.owner, old.digest]

    def _drop(self, id: str) -> None:
        self._forget(id)
        self._path(id).unlink(missing_ok=True)

    def _evict(self, keep: str = "") -> None:
        for id in list(self._entries):
            if self._size <= self.limit:
                return
            if id != keep:
                self._drop(id)


@contextmanager
def store_lock(folder: Path) -> Iterator[None]:
    """One server writes into a folder at a time. UserError if another does."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another `hypnos serve` keeps its sessions there; stop it, or give "
                "--store another folder"
            ) from None
        yield
