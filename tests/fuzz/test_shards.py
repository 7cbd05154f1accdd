"""Damage to a prepared corpus is reported before it can put a wrong token into a batch."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pretrain.config.schema import CorpusConfig, DataConfig
from pretrain.data.heldout import heldout_batches
from pretrain.data.index import DOCUMENT, DOCUMENTS, INDEX, find_split, read_index
from pretrain.data.reader import Shards
from pretrain.data.shards import verify
from pretrain.data.stream import TextStream
from pretrain.errors import UserError
from pretrain.files import sha256
from tests.fuzz.harness import fuzz, hypnos, places, refusal
from tokenizer.encode import Tokenizer

WINDOW, WINDOWS, BATCH = 8, 2, 4


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "train"))


@pytest.fixture(scope="session")
def truth(sound: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of every document."""
    shards = Shards(sound, tokenizer)
    return [shards.document(number).tolist() for number in range(len(shards))]


def documents(folder: Path) -> Iterator[tuple[int, str, range]]:
    """(document, its shard, the range of that file's bytes that has its ids)."""
    records, number = np.fromfile(folder / DOCUMENTS, DOCUMENT), 0
    for shard in read_index(folder).shards:
        for _ in range(shard.samples):
            begin, count = int(records[number]["offset"]), int(records[number]["tokens"])
            yield number, shard.name, range(begin, begin + 2 * count)
            number += 1


def key(folder: Path, number: int) -> str:
    """A document's name in its shard."""
    before = np.cumsum([0, *(shard.samples for shard in read_index(folder).shards)])
    return f"{number - int(before[before <= number].max()):09d}"


def flip(path: Path, at: int, by: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ by]))


def test_every_byte_of_every_shard(
    copy: Path, tokenizer: Tokenizer, truth: list[list[int]]
) -> None:
    """A flipped byte is found in its document, reported with the file's name, and affects no other
    document.
    """
    shards, of_shard = Shards(copy, tokenizer), list(documents(copy))
    assert len(shards.index.shards) > 2
    for shard in shards.index.shards:
        path = copy / shard.name
        inside = [(number, ids) for number, name, ids in of_shard if name == shard.name]
        for at in places(shard.bytes, 20_000):
            flip(path, at, 1 + at * 37 % 255)
            for number, ids in inside:
                try:
                    assert shards.document(number).tolist() == truth[number]
                    assert at not in ids, f"byte {at} of {shard.name} was not missed"
                except UserError as error:
                    assert at in ids, error
                    assert str(error).startswith(f"{path}: document {key(copy, number)} is damaged")
            flip(path, at, 1 + at * 37 % 255)


@pytest.mark.parametrize("name", [INDEX, DOCUMENTS])
def test_every_byte_and_every_length_of_the_index(
    copy: Path, tokenizer: Tokenizer, name: str
) -> None:
    path = copy / name
    whole = path.read_bytes()
    some = places(len(whole), 500)
    damaged = [whole[:length] for length in some]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in some]
    damaged += [whole + b"\0", whole * 2, b" " + whole, b"\xff" * len(whole)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"/{re.escape(name)}: "):
            Shards(copy, tokenizer)


def test_every_length_of_a_shard(copy: Path, tokenizer: Tokenizer) -> None:
    path = copy / "shard-000001.tar"
    size = path.stat().st_size
    for length in [*range(size - 1, -1, -97), *range(size - 512, -1, -512), 0, size + 1, 2 * size]:
        os.truncate(path, length)
        with pytest.raises(
            UserError, match=rf"^{re.escape(str(path))}: (truncated|damaged): {length} bytes"
        ):
            Shards(copy, tokenizer)


FILES = [INDEX, DOCUMENTS, "shard-000000.tar", "shard-000001.tar"]


@pytest.mark.parametrize("kind", ["missing", "foreign", "folder", "pipe", "dangling", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_missing_and_foreign_files(
    copy: Path, foreign: Path, tokenizer: Tokenizer, name: str, kind: str
) -> None:
    path = copy / name
    path.unlink()
    {
        "missing": lambda: None,
        "foreign": lambda: shutil.copy(foreign / name, path),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to("nowhere"),
        "empty": path.touch,
    }[kind]()

    def read_all() -> None:
        shards = Shards(find_split(copy, "train"), tokenizer)
        for number in range(len(shards)):
            shards.document(number)

    told = refusal(read_all)
    assert told and str(copy) in told
    # a foreign index is intact in itself, but does not match the other files
    if name != INDEX or kind != "foreign":
        assert name in told
    for command in ("verify", "stats"):
        outcome = hypnos("data", command, copy)
        if command == "verify" or not name.endswith(".tar"):  # stats does not read tars
            assert str(copy) in outcome.error


def test_shards_that_changed_places(
    copy: Path, tokenizer: Tokenizer, truth: list[list[int]]
) -> None:
    """Both have the same size, so that only their content differs."""
    a, b = (copy / f"shard-00000{n}.tar" for n in (0, 1))
    size = max(path.stat().st_size for path in (a, b))
    index = read_index(copy)
    for path in (a, b):
        os.truncate(path, size)
    shards = [replace(shard, bytes=(copy / shard.name).stat().st_size) for shard in index.shards]
    replace(index, shards=shards).write(copy)
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0])
    a.write_bytes(contents[1])
    opened = Shards(copy, tokenizer)
    for number, name, _ in documents(copy):
        if name in (a.name, b.name):
            with pytest.raises(
                UserError, match=rf"{name}: document {key(copy, number)} is damaged"
            ):
                opened.document(number)
        else:
            assert opened.document(number).tolist() == truth[number]


@pytest.mark.parametrize("name", ["shard-000099.tar", "notes", ".DS_Store", "._documents.idx"])
def test_what_the_index_does_not_name_proves_nothing(
    copy: Path, tokenizer: Tokenizer, truth: list[list[int]], name: str
) -> None:
    (copy / name).write_bytes(b"mine")
    shards = Shards(copy, tokenizer)
    assert [shards.document(number).tolist() for number in range(len(shards))] == truth
    outcome = hypnos("data", "verify", copy)
    note = f"note: {copy}/{name}: does not belong here, and is ignored\n"
    assert (outcome.status, outcome.err) == (0, "" if name.startswith(".") else note)
    assert (copy / name).read_bytes() == b"mine"


def stream(folder: Path, model: Path) -> TextStream:
    config = DataConfig(
        tokenizer=str(model), train=[CorpusConfig(path=str(folder))], windows=WINDOWS
    )
    return TextStream(config, WINDOW, BATCH, seed=3)


def batches(folder: Path, model: Path, count: int = 12) -> Iterator[list[torch.Tensor]]:
    source = stream(folder, model)
    try:
        for _ in range(count):
            yield list(vars(source.next()).values())
    finally:
        source.close()


Damage = tuple[str, int, int]  # file, place in thousandths, and the bits to flip; 0: cut there
DAMAGE = st.tuples(st.sampled_from(FILES), st.integers(0, 999), st.integers(0, 255))


@fuzz(40)
@given(damage=st.lists(DAMAGE, min_size=1, max_size=3))
def test_a_batch_is_right_or_is_not_given(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, model: Path, damage: list[Damage]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    for name, place, bits in damage:
        size = (folder / name).stat().st_size
        if bits and size:
            flip(folder / name, place * size // 1000, bits)
        elif size:
            os.truncate(folder / name, place * size // 1000)
    right = batches(sound, model)

    def train() -> None:
        for batch, expected in zip(batches(folder, model), right, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))

    told = refusal(train)
    right.close()
    changed = [
        name for name in FILES if (folder / name).read_bytes() != (sound / name).read_bytes()
    ]
    assert told is None or any(f"{folder}/{name}: " in told for name in changed)
    verified = verify(folder)
    assert bool(verified) == bool(changed)
    if not {INDEX, DOCUMENTS} & set(changed):
        assert all(any(f"/{name}: " in problem for problem in verified) for name in changed)
    shutil.rmtree(folder)


def test_training_stops_at_a_damaged_document(
    copy: Path, sound: Path, model: Path, tmp_path: Path
) -> None:
    """The command, from its configuration to its error; held-out documents are undamaged."""
    for _, name, ids in documents(copy):
        flip(copy / name, ids[len(ids) // 2], 4)
    overrides = [
        f"run.dir={tmp_path / 'runs'}", f"data.tokenizer={model}", "data.task=text",
        f"data.train=[{{path='{copy}'}}]", f"data.heldout={sound}", "data.windows=1",
        "model.d_model=16", "model.layers=['delta']", "sleep.window=4", "train.steps=2",
        "train.batch=2", "train.eval_batches=1", "optimizer.warmup=0",
    ]  # fmt: skip
    (tmp_path / "c.toml").touch()
    error = hypnos("train", tmp_path / "c.toml", *overrides).err.splitlines()[-1]
    assert re.search(
        rf"^hypnos: error: {copy}/shard-00000\d\.tar: document \d{{9}} is damaged", error
    )


def test_heldout_batches_are_checked_too(copy: Path, tokenizer: Tokenizer) -> None:
    number, name, ids = max(documents(copy), key=lambda place: len(place[2]))
    flip(copy / name, ids[0], 1)
    with pytest.raises(UserError, match=rf"{name}: document {key(copy, number)} is damaged"):
        heldout_batches(
            copy,
            tokenizer,
            window=2,
            windows=1,
            batch=1,
            n=int(sum(Shards(copy, tokenizer).lengths // 2)),
        )


# Every checksum is correct, but numbers are wrong.


def rewrite(folder: Path, records: NDArray[Any]) -> None:
    """Writes documents.idx, and an index that matches it."""
    records.tofile(folder / DOCUMENTS)
    documents = sha256(folder / DOCUMENTS)
    replace(read_index(folder), documents_sha256=documents).write(folder)


@pytest.mark.parametrize(("field", "value"), [("offset", 2**63 + 5), ("tokens", 2**32 - 1)])
def test_documents_that_lie_elsewhere_are_not_read(
    copy: Path, tokenizer: Tokenizer, field: str, value: int
) -> None:
    """Nor is memory allocated for them."""
    records = np.fromfile(copy / DOCUMENTS, DOCUMENT)
    records[field][0] = value
    rewrite(copy, records)
    told = refusal(lambda: Shards(copy, tokenizer))
    assert told and f"{copy / DOCUMENTS}: document 000000000 does not lie within" in told


def test_ids_beyond_the_vocabulary_are_refused(copy: Path, tokenizer: Tokenizer) -> None:
    """Otherwise they would be looked up in the embedding."""
    number, name, ids = next(documents(copy))
    payload = np.full(len(ids) // 2, tokenizer.vocab_size, "<u2").tobytes()
    with (copy / name).open("r+b") as file:
        file.seek(ids[0])
        file.write(payload)
    records = np.fromfile(copy / DOCUMENTS, DOCUMENT)
    records["crc32"][number] = zlib.crc32(payload)
    rewrite(copy, records)
    told = rf"{name}: document {key(copy, number)} has ids beyond the vocabulary"
    with pytest.raises(UserError, match=told):
        Shards(copy, tokenizer).document(number)
