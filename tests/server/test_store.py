"""What is stored is complete, limited by the room for it, and available only to its owner."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from pretrain.config.schema import SleepConfig
from pretrain.errors import UserError
from pretrain.inference.decode import Decoder
from pretrain.inference.server.store import (
    Entry,
    NoRoom,
    NotStored,
    SessionStore,
    new_id,
    store_lock,
)
from pretrain.inference.session import Session
from tests.model.tiny import build

LIMIT = 10**6


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(build(SleepConfig(window=6)).float())


def opened(folder: Path, decoder: Decoder, limit: int = LIMIT) -> SessionStore:
    return SessionStore(folder, limit, decoder, pytest.fail)


def put(store: SessionStore, *tokens: int, digest: str = "") -> str:
    """Stores a session of the owner "me"; returns the id."""
    session = Session(store.decoder)
    session.read(tokens)
    entry = Entry(
        new_id("resp"), "me", "", "plain", digest, len(tokens), (), {"tokens": session.position}
    )
    store.put(entry, {"answer": str(tokens)}, session)
    return entry.id


def test_it_is_found_again_after_a_start(tmp_path: Path, decoder: Decoder) -> None:
    store = opened(tmp_path, decoder)
    one, two = put(store, 1, 2, 3, digest="d"), put(store, 4, digest="e")
    store.put(Entry("conv_1", "me", two, "", "", 0, (), {}), {"metadata": {}}, None)
    (tmp_path / f".{one}.safetensors.draft").write_bytes(b"half")
    again = opened(tmp_path, decoder)
    assert len(again) == 3 and again.size == store.size
    assert [entry.id for entry, _ in again.lineage("me", "conv_1")] == ["conv_1", two]
    entry, session = again.session("me", one)
    assert entry.digest == "d" and session.position == 3
    assert again.record("me", one)[1] == {"answer": "(1, 2, 3)"}
    assert again.longest("me", ["d", "e", "f"]) == (1, again.entry("me", two))
    assert not list(tmp_path.glob(".*.draft"))


def test_the_least_recently_used_go_first(tmp_path: Path, decoder: Decoder) -> None:
    store = opened(tmp_path, decoder)
    ids = [put(store, i) for i in range(4)]
    each = store.size // 4
    for at, id in enumerate(ids):  # a file system may have a resolution of seconds
        os.utime(tmp_path / f"{id}.safetensors", (at, at))
    store.session("me", ids[0])
    limited = opened(tmp_path, decoder, limit=3 * each + each // 2)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {ids[0], ids[2], ids[3]}
    limited.session("me", ids[2])
    new = put(limited, 9)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {ids[0], ids[2], new}
    with pytest.raises(NotStored):
        limited.session("me", ids[3])
    assert limited.size <= limited.limit


def test_what_is_too_large_is_refused(tmp_path: Path, decoder: Decoder) -> None:
    store = opened(tmp_path, decoder, limit=100)
    with pytest.raises(NoRoom, match="larger than the whole store"):
        put(store, 1)
    assert not list(tmp_path.glob("*.*"))


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path, decoder)
    kept = put(store, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.files.sync", full)
    with pytest.raises(NoRoom, match="No space left"):
        put(store, 2)
    monkeypatch.undo()
    assert [path.stem for path in tmp_path.iterdir()] == [kept]


def test_an_owner_has_its_own(tmp_path: Path, decoder: Decoder) -> None:
    store = opened(tmp_path, decoder)
    mine = put(store, 1, digest="d")
    for attempt in (store.entry, store.session, store.record, store.delete):
        with pytest.raises(NotStored):
            attempt("you", mine)
    assert store.longest("you", ["d"]) is None and not list(store.lineage("you", mine))


def test_what_is_deleted_does_not_come_back(tmp_path: Path, decoder: Decoder) -> None:
    store = opened(tmp_path, decoder)
    id = put(store, 1, digest="d")
    entry, session = store.session("me", id)
    store.delete("me", id)
    store.refresh(entry, session)  # its sleep ends after the deletion
    assert len(store) == len(opened(tmp_path, decoder)) == 0 and store.longest("me", ["d"]) is None


def test_a_damaged_file_is_named_and_the_others_are_served(
    tmp_path: Path, decoder: Decoder
) -> None:
    store = opened(tmp_path, decoder)
    whole, flipped, cut = put(store, 1), put(store, 2), put(store, 3)
    path = tmp_path / f"{flipped}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    path = tmp_path / f"{cut}.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    said: list[str] = []
    again = SessionStore(tmp_path, LIMIT, decoder, said.append)
    assert len(said) == 1 and cut in said[0] and "not a stored session" in said[0]
    assert again.session("me", whole)[1].position == 1
    with pytest.raises(UserError, match="damaged"):
        again.session("me", flipped)


def test_sessions_of_other_weights_are_told_and_not_served(
    tmp_path: Path, decoder: Decoder
) -> None:
    id = put(opened(tmp_path, decoder), 1)
    other = Decoder(build(SleepConfig(window=4)).float())
    said: list[str] = []
    store = SessionStore(tmp_path, LIMIT, other, said.append)
    assert "1 stored sessions are of other weights" in said[0]
    with pytest.raises(NotStored):
        store.session("me", id)
    assert opened(tmp_path, decoder).session("me", id)[1].position == 1


@pytest.mark.parametrize("store", [".", "file"])
def test_a_store_is_a_folder_that_can_be_written(store: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / ".lock").mkdir()  # like a read-only file, it cannot be opened for writing
    with (
        pytest.raises(UserError, match=r"cannot store sessions there: .*; give --store a writable"),
        store_lock(tmp_path / store),
    ):
        pass


def test_one_server_at_a_time(tmp_path: Path) -> None:
    with (
        store_lock(tmp_path),
        pytest.raises(UserError, match="another `hypnos serve`"),
        store_lock(tmp_path),
    ):
        pass


def test_a_store_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with store_lock(tmp_path):
        assert "has no locks (No locks available); do not start a second server" in caplog.text
