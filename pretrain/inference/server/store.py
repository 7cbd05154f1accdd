"""Stored sessions: one file for each id, whole or not at all; the least recently used go first.

    FOLDER/
      resp_4f1d....safetensors   a session after that response, see `pretrain.inference.store`; in
                                 its notes what the index knows, and what was said
      conv_90ab....json          which response a conversation ends with
      .resp_77c0...draft         being written; removed at the next start

A file is flushed to disk under another name and then renamed, and so is the folder's entry, before
anybody is told its id. So whatever is killed at whatever moment, an id that a client has seen has
all its bytes. The index is in memory, from the headers of the files; nothing else has to agree.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pretrain.errors import UserError
from pretrain.files import sync, write_atomically
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session
from pretrain.inference.store import load_session, save_session
from pretrain.locks import take_lock

log = logging.getLogger("hypnos.serve")
Notes = dict[str, Any]


class NotStored(KeyError):
    """There is no such id, or not for this owner."""


class NoRoom(Exception):
    """The disk is full, or a session is larger than the whole store may be."""


@dataclass(frozen=True)
class Entry:
    """What the index knows of what is stored under an id."""

    id: str
    owner: str  # whose; "" for those who gave no key
    parent: str  # the id that it went on from, "" at the beginning; a conversation's last turn
    form: str  # the key of the form that its messages are written in, see `chat`
    digest: str  # of all messages read so far, see `digests`; "" where they are not known
    tokens: int  # of the conversation
    unread: tuple[int, ...]  # the last of them, which the session has yet to read
    facts: Mapping[str, int]  # what the session holds, see `job.Facts`; none: a conversation


# Kinds of ids that nobody is told: a turn of a conversation alone, or a further choice of a chat;
# and a place in a long input that more than one answer may go on from.
TURN, MARK = "turn", "mark"


def new_id(kind: str) -> str:
    """An id that nobody can guess."""
    return f"{kind}_{secrets.token_hex(24)}"


class SessionStore:
    """The folder and its index. Read from any thread, written from one."""

    def __init__(
        self, folder: Path, limit: int, decoder: Decoder, say: Callable[[str], None]
    ) -> None:
        """Reads what is there.

        Args:
            limit: bytes of all files together.
            say: told of files that cannot be read, or belong to other weights.
        """
        self.folder, self.limit, self.decoder = folder, limit, decoder
        self._lock = threading.RLock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # least recently used first
        self._sizes: dict[str, int] = {}
        self._by_digest: dict[tuple[str, str], str] = {}  # owner, digest -> id
        for draft in folder.glob(".*.draft"):
            draft.unlink()
        strangers = 0
        for path in sorted(_files(folder), key=lambda path: path.stat().st_mtime_ns):
            try:
                notes, model = _read_notes(path)
                entry = Entry(**notes["entry"] | {"unread": tuple(notes["entry"]["unread"])})
            except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
                say(f"{path}: not a stored session, left alone: {error}")
                continue
            if model in ("", decoder.fingerprint):
                self._add(entry)
            else:
                strangers += 1
        if strangers:
            say(
                f"{folder}: {strangers} stored sessions are of other weights and cannot be "
                "continued; keep them for those weights, or delete them"
            )
        self._evict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(self._sizes.values())

    # ---- reading

    def entry(self, owner: str, id: str) -> Entry:
        """NotStored if it is another's."""
        found = self._entries.get(id)
        if found is None or found.owner != owner:
            raise NotStored(id)
        return found

    def record(self, owner: str, id: str) -> tuple[Entry, Notes]:
        """An entry and what was said, without the session."""
        entry = self.entry(owner, id)
        try:
            return entry, _read_notes(self._path(entry))[0]["record"]
        except FileNotFoundError:  # evicted since, or removed by somebody
            self._drop(id)
            raise NotStored(id) from None

    def session(self, owner: str, id: str) -> tuple[Entry, Session]:
        """An entry and a session of its own; it becomes the most recently used."""
        entry = self.entry(owner, id)
        if not entry.facts:  # a conversation's name
            raise NotStored(id)
        try:
            session = load_session(self._path(entry), self.decoder).session
        except UserError:
            if self._path(entry).exists():
                raise
            self._drop(id)  # evicted since, or removed by somebody
            raise NotStored(id) from None
        self.touch(id)
        return entry, session

    def touch(self, id: str) -> None:
        """Makes it the most recently used, in the index and for the next start."""
        with self._lock:
            if id in self._entries:
                self._entries.move_to_end(id)
                with suppress(FileNotFoundError):  # who reads it next is told
                    os.utime(self._path(self._entries[id]))

    def longest(self, owner: str, digests: Sequence[str]) -> tuple[int, Entry] | None:
        """The last of some digests that is stored, and its place among them."""
        with self._lock:
            for i in range(len(digests) - 1, -1, -1):
                id = self._by_digest.get((owner, digests[i]))
                if id is not None:
                    return i, self._entries[id]
        return None

    def leave_out(self, id: str) -> None:
        """From what `longest` finds."""
        with self._lock:
            self._unlist(id)

    def lineage(self, owner: str, id: str) -> Iterator[tuple[Entry, Notes]]:
        """What was said, newest first, as far back as it is stored."""
        while id:
            try:
                entry, record = self.record(owner, id)
            except NotStored:
                return
            yield entry, record
            id = entry.parent

    # ---- writing

    def put(self, entry: Entry, record: Mapping[str, Any], session: Session | None) -> None:
        """Stores something, durably; what was stored under the id before is replaced.

        Raises:
            NoRoom: the disk is full, or it is larger than the limit.
        """
        path, notes = self._path(entry), {"entry": asdict(entry), "record": dict(record)}
        try:
            if session is None:
                write_atomically(path, json.dumps(notes))
            else:
                save_session(path, session, notes=notes)
            self._add(entry)
        except (OSError, UserError) as error:
            raise NoRoom(str(error)) from None
        if self._sizes[entry.id] > self.limit:
            self._drop(entry.id)
            raise NoRoom(f"{entry.id} is larger than the whole store may be ({self.limit:,} bytes)")
        self._evict()

    def refresh(self, entry: Entry, session: Session) -> None:
        """Stores a later state of a session, unless it has been deleted or evicted."""
        with self._lock:
            before = self._entries.get(entry.id)
        if before is None:
            return
        record = _read_notes(self._path(entry))[0]["record"]
        try:
            self.put(entry, record, session)
        except NoRoom as error:  # what is stored is as good
            log.warning("a session could not be stored again after its sleep: %s", error)

    def delete(self, owner: str, id: str) -> None:
        """For good: it does not come back after a crash. With it goes what it alone went on from
        and nobody has an id of; a conversation that ended with it ends with the turn before.

        Raises:
            NotStored: it is not there, or another's. NoRoom: for what a conversation ends with now.
        """
        gone = self.entry(owner, id)
        for child in self._children(id):
            if not child.facts:  # a conversation's name
                record = _read_notes(self._path(child))[0]["record"]
                self.put(replace(child, parent=self._turn_before(gone)), record, None)
        self._drop(id)
        while gone.parent.startswith((TURN, MARK)) and not self._children(gone.parent):
            parent = self._entries.get(gone.parent)
            if parent is None:  # evicted
                break
            self._drop(parent.id)
            gone = parent
        sync(self.folder)

    def _children(self, id: str) -> list[Entry]:
        with self._lock:
            return [entry for entry in self._entries.values() if entry.parent == id]

    def _turn_before(self, entry: Entry) -> str:
        """The id of what was said before; marks are of what was said in this turn."""
        while entry.parent.startswith(MARK):
            if entry.parent not in self._entries:
                return ""
            entry = self._entries[entry.parent]
        return entry.parent

    def _path(self, entry: Entry) -> Path:
        return self.folder / f"{entry.id}{'.safetensors' if entry.facts else '.json'}"

    def _add(self, entry: Entry) -> None:
        size = self._path(entry).stat().st_size
        with self._lock:
            self._forget(entry.id)
            self._entries[entry.id], self._sizes[entry.id] = entry, size
            if entry.digest:
                self._by_digest[entry.owner, entry.digest] = entry.id

    def _forget(self, id: str) -> Entry | None:
        self._unlist(id)
        old = self._entries.pop(id, None)
        if old is not None:
            del self._sizes[id]
        return old

    def _unlist(self, id: str) -> None:
        entry = self._entries.get(id)
        if entry is not None and self._by_digest.get((entry.owner, entry.digest)) == id:
            del self._by_digest[entry.owner, entry.digest]

    def _drop(self, id: str) -> None:
        with self._lock:
            entry = self._forget(id)
        if entry is not None:
            self._path(entry).unlink(missing_ok=True)

    def _evict(self) -> None:
        size = self.size
        for id in list(self._entries):
            if size <= self.limit:
                return
            size -= self._sizes[id]
            self._drop(id)


def _files(folder: Path) -> list[Path]:
    return [path for suffix in ("safetensors", "json") for path in folder.glob(f"[!.]*.{suffix}")]


def _read_notes(path: Path) -> tuple[Notes, str]:
    """What is noted in a file, and the fingerprint of the model whose session it holds."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes()), ""
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["session"])
    return said["notes"], said["model"]


@contextmanager
def store_lock(folder: Path) -> Iterator[None]:
    """One server writes into a folder at a time. UserError if another does, or nobody can."""

    def without(why: str) -> None:
        fix = "do not start a second server with this --store"
        log.warning("%s: the file system has no locks (%s); %s", folder, why, fix)

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot store sessions there: {error.strerror}; give --store a writable one"
        ) from None
    with file:
        if not take_lock(file.fileno(), without):
            raise UserError(
                f"{folder}: another `hypnos serve` stores its sessions there; stop it, or give "
                "--store another folder"
            )
        yield
