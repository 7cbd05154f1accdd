"""Shards: readable by plain webdataset, exact, whole or absent, and no damage goes unnoticed."""

from __future__ import annotations

import gc
import json
import shutil
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pretrain.data.corpus import Corpus
from pretrain.data.formats import Document
from pretrain.data.index import read_index
from pretrain.data.reader import Shards
from pretrain.data.shards import prepare, stats, strays_beside, verify
from pretrain.data.writer import SplitWriter
from pretrain.errors import UserError
from tests.data.texts import make_texts, write_texts
from tokenizer.encode import Tokenizer


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_plain_webdataset_reads_the_tars(
    folder: Path, texts: list[str], tokenizer: Tokenizer
) -> None:
    tars = sorted(str(path) for path in (folder / "train").glob("*.tar"))
    assert len(tars) > 2
    with warnings.catch_warnings():
        # webdataset leaves the tars to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        gc.collect()
    assert [tokenizer.decode(np.frombuffer(s["u16"], "<u2").tolist()) for s in samples] == texts
    about = json.loads(samples[5]["json"])
    assert about == {
        "source": "texts/005.txt",
        "chars": len(texts[5]),
        "tokens": len(samples[5]["u16"]) // 2,
    }


def test_documents_are_read_by_number(folder: Path, texts: list[str], tokenizer: Tokenizer) -> None:
    shards = Shards(folder / "train", tokenizer)
    assert len(shards) == len(texts)
    for number in (40, 0, 17, 39, 17):
        assert shards.document(number).tolist() == tokenizer.encode(texts[number])
        assert shards.lengths[number] == len(tokenizer.encode(texts[number]))
    shards.close()
    assert shards.document(3).tolist() == tokenizer.encode(texts[3])


def test_index_counts(folder: Path, texts: list[str], tokenizer: Tokenizer) -> None:
    index = read_index(folder / "train")
    assert index.samples == sum(s.samples for s in index.shards) == len(texts)
    assert index.tokens == sum(len(tokenizer.encode(text)) for text in texts)
    assert index.chars == sum(map(len, texts))
    assert (index.tokenizer, index.eos, index.pad) == (
        tokenizer.fingerprint,
        tokenizer.eos,
        tokenizer.pad,
    )


def test_same_corpus_gives_the_same_bytes(
    folder: Path, tmp_path: Path, texts: list[str], tokenizer: Tokenizer
) -> None:
    source = write_texts(tmp_path / "texts", texts)
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0, shard_tokens=1500, threads=2)
    names = sorted(path.name for path in (folder / "train").iterdir())
    for name in names:
        assert (folder / "train" / name).read_bytes() == (
            tmp_path / "out" / "train" / name
        ).read_bytes(), name


def test_holdout_is_a_share_by_text_and_copies_stay_together(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = write_texts(tmp_path / "texts", make_texts(300, seed=3, longest=3) * 2)
    indexes = prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0.2)
    assert 60 < indexes["heldout"].samples < 180
    sides = [
        {tuple(shards.document(i).tolist()) for i in range(len(shards))}
        for shards in (
            Shards(tmp_path / "out" / split, tokenizer) for split in ("train", "heldout")
        )
    ]
    assert len(sides[0]) + len(sides[1]) == 300


def test_large_vocabulary_takes_four_bytes(tmp_path: Path, model: Path) -> None:
    tokenizer = Tokenizer.load(model)
    tokenizer.vocab_size = 70_000  # as far as the shards are concerned
    writer = SplitWriter(tmp_path / "train", tokenizer, shard_tokens=1000)
    writer.add(Document("a", "x"), [1])
    writer.add(Document("text", "x"), [69_999, 3, 65_536])
    assert writer.finish().dtype == "u32"
    assert Shards(tmp_path / "train", tokenizer).document(1).tolist() == [69_999, 3, 65_536]
    assert verify(tmp_path / "train") == []


def test_verify_and_stats_of_sound_shards(
    folder: Path, texts: list[str], tokenizer: Tokenizer
) -> None:
    assert verify(folder) == verify(folder / "train") == []
    (row,) = stats(folder)
    assert (row.split, row.documents, row.shards) == (
        "train",
        41,
        len(list((folder / "train").glob("*.tar"))),
    )
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert (row.shortest, row.longest, row.tokens) == (min(lengths), max(lengths), sum(lengths))
    assert (row.median, row.mean) == (
        int(statistics.median(lengths)),
        round(statistics.mean(lengths)),
    )
    assert row.chars_per_token == sum(map(len, texts)) / sum(lengths)


def test_other_tokenizer_is_refused(folder: Path, other_model: Path) -> None:
    with pytest.raises(UserError, match="made with another tokenizer"):
        Shards(folder / "train", Tokenizer.load(other_model))


def test_other_format_is_refused(copy: Path, tokenizer: Tokenizer) -> None:
    replace(read_index(copy / "train"), format=99).write(copy / "train")
    with pytest.raises(UserError, match=r"index\.json: format 99"):
        Shards(copy / "train", tokenizer)


class Interrupted(Corpus):
    """A corpus that fails after some documents."""

    def __init__(self, error: BaseException) -> None:
        super().__init__([])
        self._error = error

    def __iter__(self) -> Iterator[Document]:
        yield from (Document(text, "x") for text in make_texts(600, seed=1))
        raise self._error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), UserError("bad line"), OSError(28, "No space left on device")]
)
def test_interrupted_prepare_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer, error: BaseException
) -> None:
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        prepare(Interrupted(error), tokenizer, tmp_path / "below" / "out")
    assert list((tmp_path / "below").iterdir()) == []


def test_output_that_holds_hidden_files_alone_is_empty(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    """As a file browser leaves them in any folder."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_text("mine")
    prepare(Corpus([write_texts(tmp_path / "texts", texts)]), tokenizer, out, holdout=0)
    assert (out / ".DS_Store").read_text() == "mine" and verify(out) == strays_beside(out) == []


def test_output_that_is_not_empty_is_refused_and_kept(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    source = write_texts(tmp_path / "texts", texts)
    (tmp_path / "out").mkdir()
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)  # an empty folder is welcome
    before = (tmp_path / "out" / "train" / "index.json").read_bytes()
    with pytest.raises(UserError, match="not empty; give another folder"):
        prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)
    assert (tmp_path / "out" / "train" / "index.json").read_bytes() == before


@pytest.mark.parametrize("holdout", [1e-9, 0.999999, 1.0, -0.1])
def test_holdout_that_leaves_a_side_empty_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, holdout: float
) -> None:
    source = write_texts(tmp_path / "texts", ["a", "b", "c"])
    with pytest.raises(UserError, match="holdout"):
        prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=holdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]
