"""Reads through the object-store cache: the same as from a folder; bounded; all or nothing."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pretrain.config.schema import CorpusConfig, DataConfig
from pretrain.data import splits, store
from pretrain.data.cache import DRAFT, Cache
from pretrain.data.index import find_split
from pretrain.data.reader import Shards
from pretrain.data.shards import stats, verify
from pretrain.data.splits import Files
from pretrain.data.store import StorePath
from pretrain.errors import UserError
from tests.data.test_stream import open_stream, same, take
from tokenizer.encode import Tokenizer

PIECE = 100  # bytes: documents span several
_numbers = itertools.count()


class Failing(MemoryFileSystem):
    """fsspec's in-memory store, whose next answers may fail or be short."""

    protocol = "failing"
    failures: list[Exception | bytes]
    reads: list[str]  # what was requested

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("failing://"))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> Any:
        self.reads.append(f"{path} {start}")
        if start is not None and self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, bytes):
                return failure
            raise failure
        return super().cat_file(path, start, end)


@pytest.fixture
def url(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a copy of `folder`, with small pieces and short pauses."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where the cache of `stats` is
    monkeypatch.setattr(splits, "PIECE", PIECE)
    monkeypatch.setattr(store, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(store, "QUIET_S", 0.0)
    fsspec.register_implementation("failing", Failing, clobber=True)
    Failing.failures, Failing.reads = [], []
    name = f"corpus-{next(_numbers)}"  # an index is read once per process
    for path in folder.rglob("*.*"):
        MemoryFileSystem().pipe(f"/{name}/{path.relative_to(folder)}", path.read_bytes())
    yield f"failing://{name}"
    MemoryFileSystem.store.clear()


@pytest.fixture
def stored(config: DataConfig, url: str, tmp_path: Path) -> DataConfig:
    """`config` with its corpus in an object store."""
    return replace(config, train=[CorpusConfig(path=url)], cache=str(tmp_path / "c"), retry=1)


def pieces(stored: DataConfig) -> list[Path]:
    return [path for path in Path(stored.cache).rglob("*-*") if path.is_file()]


def test_a_store_gives_what_a_folder_gives(config: DataConfig, stored: DataConfig) -> None:
    expected = take(open_stream(config), 8)
    stream = open_stream(stored)
    got = [stream.next() for _ in range(3)]
    state = stream.state_dict()
    stream.load_state_dict(state)  # cancels pending reads
    got += take(stream, 2)
    on_folder = open_stream(config)
    resumed = open_stream(stored)
    on_folder.load_state_dict(state)
    resumed.load_state_dict(on_folder.state_dict())
    assert all(map(same, got + take(resumed, 5)[2:], expected))
    there = [read for read in Failing.reads if "/train/" in read]  # no parent folder is read
    assert len(there) == len(set(there)) == len(pieces(stored)) + 2, "all came once"


def test_what_goes_through_a_small_cache_is_the_same(
    stored: DataConfig, folder: Path, tokenizer: Tokenizer
) -> None:
    files = Files(stored)
    files._cache.limit = limit = 3000
    shards = Shards(find_split(files.place(stored.train[0].path), "train"), tokenizer, files)
    local = Shards(folder / "train", tokenizer)
    for number in range(len(local)):
        assert (shards.document(number) == local.document(number)).all()
        assert sum(path.stat().st_size for path in Path(stored.cache).rglob("?*-*")) <= limit
    assert len(Failing.reads) > len(pieces(stored)) > 10
    shards.close()
    local.close()


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * (PIECE + 4))
    paths = [cache.path("ab" * 32, f"{n}-{n}") for n in range(13)]
    for number, path in enumerate(paths):
        if number == 10:
            cache.read(paths[0])
        if number == 11:  # by now the oldest is known
            cache.read(paths[3])
        cache.add(path, lambda: bytes(PIECE), 1)
        assert sum(path.exists() for path in paths) <= 10
    assert [n for n, path in enumerate(paths) if path.exists()] == [0, 3, *range(6, 13)]
    assert int((tmp_path / "used").read_text()) == 9 * (PIECE + 4)


def test_a_power_cut_may_leave_the_count_in_zeros(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10 * (PIECE + 4))
    path = cache.path("a" * 64, f"0-{PIECE}")
    (tmp_path / "used").write_bytes(bytes(20))
    assert cache.add(path, lambda: b"x" * PIECE, 1.0) == cache.read(path)
    assert int((tmp_path / "used").read_bytes()) == PIECE + 4


def test_what_is_not_the_caches_own_stays(tmp_path: Path) -> None:
    """Also if it is as deep in the tree as pieces are, and older than all of them."""
    theirs = [tmp_path / "me/thesis/chapter", tmp_path / "ab" / ("cd" * 32) / "notes.draft"]
    for file in (*theirs, tmp_path / "at-the-top"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(10 * PIECE))
    cache = Cache(tmp_path, 3 * (PIECE + 4))
    paths = [cache.path("ab" * 32, f"{n}-{n}") for n in range(9)]
    for path in paths:
        cache.add(path, lambda: bytes(PIECE), 1)
    assert all(file.exists() for file in theirs) and not paths[0].exists() and paths[8].exists()


def test_damage_here_is_mended_and_a_draft_is_never_read(
    stored: DataConfig, tokenizer: Tokenizer
) -> None:
    files = Files(stored)
    shards = Shards(find_split(files.place(stored.train[0].path), "train"), tokenizer, files)
    expected = shards.document(0)
    kept = pieces(stored)
    for path, content in zip(kept, (b"", b"x" * PIECE, b"?"), strict=False):
        path.write_bytes(content)
    for path in kept[3:]:
        path.rename(path.with_name(path.name + DRAFT))  # as a killed process leaves it
    assert (shards.document(0) == expected).all() and sorted(pieces(stored)) == sorted(kept)
    shards.close()


def test_another_object_in_its_place_leaves_nothing_behind(
    stored: DataConfig, tokenizer: Tokenizer
) -> None:
    files = Files(stored)
    shards = Shards(find_split(files.place(stored.train[0].path), "train"), tokenizer, files)
    shard = stored.train[0].path.partition(":/")[2] + "/train/shard-000000.tar"
    content = MemoryFileSystem().cat(shard)
    MemoryFileSystem().pipe(shard, bytes(len(content)))
    with pytest.raises(UserError, match="document 000000000 is damaged"):
        shards.document(0)
    MemoryFileSystem().pipe(shard, content)
    assert len(shards.document(0)) == shards.lengths[0]
    shards.close()


def test_answers_that_fail_or_are_short_are_asked_for_again(
    stored: DataConfig, config: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = open_stream(stored)
    Failing.failures = [OSError("503 Slow Down"), b"short", FileNotFoundError("gone"), KeyError()]
    assert all(map(same, take(stream, 3), take(open_stream(config), 3)))
    said = capsys.readouterr().err
    assert f"{stored.train[0].path}/train/shard-00000" in said
    assert "attempt 1 failed (503 Slow Down); will retry for 1 s" in said


@pytest.mark.parametrize("ahead", [True, False])
def test_an_object_that_is_gone_is_named(
    stored: DataConfig, tokenizer: Tokenizer, ahead: bool
) -> None:
    files = Files(stored)
    shards = Shards(find_split(files.place(stored.train[0].path), "train"), tokenizer, files)
    MemoryFileSystem().rm(stored.train[0].path.partition(":/")[2] + "/train/shard-000000.tar")
    if ahead:
        shards.ahead(0)
    with pytest.raises(
        UserError, match=r"shard-000000\.tar: cannot be read: \d+ attempts? in \d s"
    ):
        shards.document(0)
    shards.close()


def test_who_closes_does_not_wait_for_a_store(stored: DataConfig) -> None:
    stream = open_stream(replace(stored, retry=1e6))
    Failing.failures = [OSError("503")] * 1000

    def train() -> None:
        with suppress(store.Closed, CancelledError):
            stream.next()

    trainer = threading.Thread(target=train)
    trainer.start()
    while len(Failing.failures) > 990:
        time.sleep(0.01)
    stream.close()
    trainer.join(20)
    assert not trainer.is_alive()


def test_verify_and_stats(url: str, folder: Path) -> None:
    assert verify(url) == []
    assert stats(url) == stats(folder)
    shard = url.partition(":/")[2] + "/train/shard-000001.tar"
    MemoryFileSystem().pipe(shard, b"x" + MemoryFileSystem().cat(shard)[1:])
    MemoryFileSystem().rm(shard.replace("1.tar", "0.tar"))
    missing, damaged = verify(url)
    assert missing.startswith(f"{url}/train/shard-000000.tar: cannot be read: not found")
    assert damaged.startswith(f"{url}/train/shard-000001.tar: damaged")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("failing://nowhere", "holds no train shards: it has no index.json"),
        ("nonsense://bucket/x", r"nonsense.*pip install -e '\.\[store\]'"),
    ],
)
def test_a_place_without_shards_is_told_at_once(url: str, place: str, told: str) -> None:
    with pytest.raises(UserError, match=f"^{place}.*{told}"):
        find_split(StorePath(place), "train")
