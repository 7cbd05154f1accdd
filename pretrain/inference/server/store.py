"""Stored sessions: one atomically written file per id; the least recently used are evicted first.

    FOLDER/
      resp_4f1d....safetensors   the session after that response (`pretrain.inference.store`); its
                                 notes hold the index entry and the messages
      conv_90ab....json          the last response of a conversation
      .resp_77c0...draft         being written; removed at the next start

A file is written under another name, synced and renamed, and the folder is synced, before the
client gets its id. So whatever is killed at whatever moment, an id that a client has seen is
complete on disk. The index is in memory, built from the headers of the files; there is nothing else
to keep consistent.
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
from dataclasses import asdict, dataclass, field, replace
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
    """There is no such id for this owner."""


class NoRoom(Exception):
    """The disk is full, or a session is larger than the limit of the whole store."""


@dataclass(frozen=True)
class Entry:
    """An entry of the index."""

    id: str
    owner: str  # "" for clients without a key
    parent: str  # the id that it continues, "" at the beginning; a conversation's last turn
    form: str = ""  # the key of its messages' form, see `chat`
    digest: str = ""  # of all messages read so far, see `digests`; "" if unknown
    tokens: int = 0  # of the conversation
    unread: tuple[int, ...] = ()  # the last of them, which the session has yet to read
    # state of the session, see `job.Facts`; empty: a conversation's name
    facts: Mapping[str, int] = field(default_factory=dict)


# Kinds of internal ids: a turn that only a conversation has, or a further choice of a chat; and a
# mark in a long input, from which several answers may continue.
TURN, MARK = "turn", "mark"


def new_id(kind: str) -> str:
    """An id that nobody can guess."""
    return f"{kind}_{secrets.token_hex(24)}"


class SessionStore:
    """The folder and its index. Any thread may read, one thread writes."""

    def __init__(
        self, folder: Path, limit: int, decoder: Decoder, say: Callable[[str], None]
    ) -> None:
        """Reads the index from the files.

        Args:
            limit: maximum bytes of all files together.
            say: receives lines on files that cannot be read, or belong to other weights.
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
        """The entry of an id. NotStored, also if it is another owner's."""
        found = self._entries.get(id)
        if found is None or found.owner != owner:
            raise NotStored(id)
        return found

    def record(self, owner: str, id: str) -> tuple[Entry, Notes]:
        """An entry and its messages, without the session."""
        entry = self.entry(owner, id)
        try:
            return entry, _read_notes(self._path(entry))[0]["record"]
        except FileNotFoundError:  # evicted since, or removed by somebody
            self._drop(id)
            raise NotStored(id) from None

    def session(self, owner: str, id: str) -> tuple[Entry, Session]:
        """An entry and a copy of its session; makes it the most recently used."""
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
        """Makes an entry the most recently used, in the index and on disk (for the next start)."""
        with self._lock:
            if id in self._entries:
                self._entries.move_to_end(id)
                with suppress(FileNotFoundError):  # the next reader will get the error
                    os.utime(self._path(self._entries[id]))

    def longest(self, owner: str, digests: Sequence[str]) -> tuple[int, Entry] | None:
        """The last of some digests that is stored: its index among them, and its entry."""
        with self._lock:
            for i in range(len(digests) - 1, -1, -1):
                id = self._by_digest.get((owner, digests[i]))
                if id is not None:
                    return i, self._entries[id]
        return None

    def leave_out(self, id: str) -> None:
        """Hides an entry from `longest`."""
        with self._lock:
            self._unlist(id)

    def lineage(self, owner: str, id: str) -> Iterator[tuple[Entry, Notes]]:
        """A conversation's entries with their messages, newest first, as far back as stored."""
        while id:
            try:
                entry, record = self.record(owner, id)
            except NotStored:
                return
            yield entry, record
            id = entry.parent

    # ---- writing

    def put(self, entry: Entry, record: Mapping[str, Any], session: Session | None = None) -> None:
        """Stores an entry durably, replacing an earlier one with that id.

        Raises:
            NoRoom: the disk is full, or the entry is larger than the limit.
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
        except NoRoom as error:  # the stored state remains valid
            log.warning("a session could not be stored again after its sleep: %s", error)

    def delete(self, owner: str, id: str) -> None:
        """Deletes an entry durably: it does not come back after a crash. Ancestors with internal
        ids that only it continued are deleted too; a conversation that ended with it now ends with
        the previous turn.

        Raises:
            NotStored: there is no such entry for this owner. NoRoom: to update the conversation.
        """
        gone = self.entry(owner, id)
        for child in self._children(id):
            if not child.facts:  # a conversation's name
                record = _read_notes(self._path(child))[0]["record"]
                self.put(replace(child, parent=self._turn_before(gone)), record)
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
        """The id of the previous turn; marks belong to the current turn."""
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
    """The notes in a file, and the fingerprint of its session's model."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes()), ""
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["session"])
    return said["notes"], said["model"]


@contextmanager
def store_lock(folder: Path) -> Iterator[None]:
    """Locks a folder for one server. UserError if another has it, or it cannot be written."""

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
