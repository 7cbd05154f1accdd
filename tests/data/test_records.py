"""documents.idx is checked in full by one rank per host, and by every rank for what it reads."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.schema import DataConfig
from pretrain.data import heldout, reader, records
from pretrain.data.index import DOCUMENT, DOCUMENTS, Index, Shard
from pretrain.data.mixture import longest_over, mean_places
from pretrain.data.reader import Shards
from pretrain.data.stream import TextStream
from pretrain.errors import UserError
from tokenizer.encode import Tokenizer


@pytest.fixture
def split(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "train", tmp_path / "train"))


def spoil(split: Path, document: int, field: str, value: int) -> None:
    content = np.fromfile(split / DOCUMENTS, DOCUMENT)
    content[field][document] = value
    content.tofile(split / DOCUMENTS)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every split count as large, and be checked in several pieces."""
    monkeypatch.setattr(reader, "MAX_AT_ONCE", 0)
    monkeypatch.setattr(records, "CHUNK", 7)


@pytest.mark.usefixtures("large")
def test_damage_of_a_large_split_is_found_while_others_are_read(
    split: Path, tokenizer: Tokenizer
) -> None:
    spoil(split, 9, "crc32", 0)
    shards, deadline = Shards(split, tokenizer), time.monotonic() + 20
    with pytest.raises(UserError, match=rf"{DOCUMENTS}: damaged: its content is not what"):
        while time.monotonic() < deadline:
            shards.document(0)
            time.sleep(0.01)
    shards.close()


@pytest.mark.usefixtures("large")
def test_a_stream_that_goes_on_is_checked_too(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()

    def check(path: Path, index: Index, stopped: Callable[[], bool]) -> None:
        while not opened.wait(0.01):
            if stopped():
                return
        raise UserError(f"{path}: damaged")

    monkeypatch.setattr(records, "check_documents", check)
    stream, deadline = TextStream(config, 16, 2, seed=0), time.monotonic() + 20
    stream.load_state_dict(stream.state_dict())
    opened.set()
    with pytest.raises(UserError, match=rf"{DOCUMENTS}: damaged"):
        while time.monotonic() < deadline:
            stream.next()
    stream.close()


@pytest.mark.usefixtures("large")
def test_a_large_split_that_is_whole_stays_so(split: Path, tokenizer: Tokenizer) -> None:
    records.check_documents(split / DOCUMENTS, Shards(split, tokenizer).index)
    shards = Shards(split, tokenizer)
    assert all(len(shards.document(n)) == shards.lengths[n] for n in range(len(shards)))
    shards.close()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("offset", 1 << 40, "document 000000004 does not lie within shard-000000.tar"),
        ("tokens", 0, "document 000000004 does not lie within shard-000000.tar"),
        ("tokens", 1, "document 000000004 is damaged"),
        ("crc32", 1, "document 000000004 is damaged"),
    ],
)
def test_a_rank_that_does_not_check_is_given_nothing_that_is_damaged(
    split: Path, tokenizer: Tokenizer, field: str, value: int, told: str
) -> None:
    spoil(split, 4, field, value)
    shards = Shards(split, tokenizer, checks=False)
    shards.document(3)
    with pytest.raises(UserError, match=told):
        shards.document(4)
    shards.close()


def test_a_missing_shard_is_named_by_the_rank_that_reads_it(
    split: Path, tokenizer: Tokenizer
) -> None:
    (split / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar: cannot be read"):
        Shards(split, tokenizer)
    shards = Shards(split, tokenizer, checks=False)
    shards.document(0)
    with pytest.raises(UserError, match=r"shard-000001\.tar: document .* cannot be read: No such"):
        shards.document(len(shards) // 2)
    shards.close()


def test_the_length_of_many_documents_is_estimated() -> None:
    """From a hundredth of them, in contiguous stretches."""
    lengths = np.random.default_rng(0).integers(1, 2000, 3_000_000).astype(np.uint32)
    places = mean_places(lengths, 64, 8)
    assert places == pytest.approx(mean_places(lengths[: 1 << 20], 64, 8), rel=0.01)
    exact = (lengths // 64 + 1).mean() - (lengths % 64 == 0).mean() / 8
    assert places == pytest.approx(float(exact) * 64, rel=0.01)


def test_the_longest_of_many_documents_is_looked_for_where_there_may_be_one() -> None:
    lengths = np.full(3_000_000, 7, np.uint32)
    lengths[0] = 90
    shards = [Shard("", 0, 1_000_000, tokens, "") for tokens in (60, 90)]
    assert longest_over(lengths, shards, 89) == 90
    assert longest_over(lengths, shards, 90) == 0
    assert longest_over(np.array([], np.uint32), shards, 90) == 0  # no document is read


def test_held_out_rows_do_not_depend_on_how_many_lengths_are_looked_at_together(
    split: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = Shards(split, tokenizer).lengths
    whole = [[*heldout._full_rows(lengths, 24), *heldout._padded_rows(lengths, 3, 8)]]
    monkeypatch.setattr(heldout, "CHUNK", 5)
    whole.append([*heldout._full_rows(lengths, 24), *heldout._padded_rows(lengths, 3, 8)])
    assert whole[0] == whole[1] and len(whole[0]) > 40
