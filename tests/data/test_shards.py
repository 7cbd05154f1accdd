"""Shards: readable by plain webdataset, exact, whole or absent, and no damage goes unnoticed."""

from __future__ import annotations

import gc
import json
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from launch.cli import main
from pretrain.data.corpus import Corpus, Entry
from pretrain.data.formats import Document
from pretrain.data.index import read_index
from pretrain.data.prepare import prepare
from pretrain.data.reader import Shards
from pretrain.data.shards import stats, strays_beside, verify
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
        # webdataset leaves closing the tars to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        gc.collect()
    assert len(samples) < len(texts) / 4  # short documents share a sample
    read, about = [], []
    url, begin = "", 0  # the shard, and the number of its first document
    for sample in samples:
        documents = json.loads(sample["json"])
        ends = np.cumsum([document["tokens"] for document in documents])
        ids = np.frombuffer(sample["u16"], "<u2")
        if sample["__url__"] != url:
            url, begin = sample["__url__"], len(read)
        assert len(ids) == ends[-1] and sample["__key__"] == f"{len(read) - begin:09d}"
        read += [tokenizer.decode(part.tolist()) for part in np.split(ids, ends[:-1])]
        about += documents
    assert read == texts
    count = len(tokenizer.encode(texts[5]))
    assert about[5] == {"source": "texts/005.txt", "chars": len(texts[5]), "tokens": count}


def test_short_documents_take_little_room(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A file in a tar takes at least 1 KB, so a document of a few tokens must not be one."""
    source = tmp_path / "d.jsonl"
    source.write_text("".join(f'{{"text": "wake {i}"}}\n' for i in range(1000)))
    index = prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)["train"]
    assert sum(shard.bytes for shard in index.shards) < 150 * 1000
    assert verify(tmp_path / "out") == []


def test_long_documents_have_samples_of_their_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ["wake", *(f"{i} " + "sleep " * 40_000 for i in range(3)), "night", "day"]
    out = tmp_path / "out"
    prepare(Corpus([write_texts(tmp_path / "texts", texts)]), tokenizer, out, holdout=0)
    assert verify(out) == []
    with tarfile.open(out / "train" / "shard-000000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith("json")]
    assert names == [f"{first:09d}.json" for first in (0, 2, 3, 4)]
    shards = Shards(out / "train", tokenizer)
    for number, text in enumerate(texts):
        assert tokenizer.decode(shards.document(number).tolist()) == text


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
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0, shard_tokens=1500, workers=2)
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
    tokenizer.vocab_size = 70_000  # only for the shards
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

    def find(self) -> list[Entry]:
        return [Entry(Path("x"), "x", False)]

    def read(self, entries: Iterable[Entry]) -> Iterator[Document]:
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
    """A file browser may leave such files in any folder."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_text("mine")
    prepare(Corpus([write_texts(tmp_path / "texts", texts)]), tokenizer, out, holdout=0)
    assert (out / ".DS_Store").read_text() == "mine" and verify(out) == strays_beside(out) == []


@pytest.mark.parametrize("there", [True, False])
def test_output_that_is_a_link_is_written_where_it_leads(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str], there: bool
) -> None:
    """As in a home folder that links to a larger disk."""
    out, disk = tmp_path / "out", tmp_path / "disk" / "shards"
    out.symlink_to(disk)
    if there:
        disk.mkdir(parents=True)
    prepare(Corpus([write_texts(tmp_path / "texts", texts)]), tokenizer, out, holdout=0)
    assert out.is_symlink() and verify(disk) == []
    assert [path.name for path in disk.parent.iterdir()] == ["shards"]


def test_output_where_a_disk_is_mounted_is_refused_before_the_work(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    with pytest.raises(UserError, match="out: is a mount point; give a folder in it"):
        prepare(Interrupted(AssertionError()), tokenizer, tmp_path / "out")


def test_output_that_is_not_empty_is_refused_and_kept(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    source = write_texts(tmp_path / "texts", texts)
    (tmp_path / "out").mkdir()
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)  # an empty folder is accepted
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


@pytest.mark.parametrize("holdout", [0.01, 0.99])
def test_one_document_is_never_cut(tmp_path: Path, tokenizer: Tokenizer, holdout: float) -> None:
    """No other share would help, so the error does not suggest one."""
    (tmp_path / "input.txt").write_text("sleep\n\n" * 60 + "wake")
    with pytest.raises(
        UserError, match=r"of 1 document .* never cut: --separator '\\n\\n'"
    ) as error:
        prepare(Corpus([tmp_path / "input.txt"]), tokenizer, tmp_path / "out", holdout=holdout)
    assert "another share" not in str(error.value)


def test_what_a_killed_prepare_left_is_removed_by_the_next(
    tmp_path: Path, tokenizer: Tokenizer, model: Path
) -> None:
    """What a live process is writing stays."""
    source = write_texts(tmp_path / "texts", make_texts(5, seed=1))
    code = (
        "import sys, time\n"
        "from pretrain.whole import appearing_whole\n"
        "from pathlib import Path\n"
        "with appearing_whole(Path(sys.argv[1])) as work:\n"
        "    (work / 'train').mkdir()\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(600)\n"
    )
    out = tmp_path / "o[u]t"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout and writer.stdout.readline() == b"writing\n"
        writers[0].kill()
        writers[0].wait()
        hidden = {path.name for path in tmp_path.glob(".*")}
        assert len(hidden) == 4
        prepare(Corpus([source]), tokenizer, out, holdout=0)
        left = {path.name for path in tmp_path.glob(".*")}
        assert len(left) == 2 and left < hidden  # the folder and lock of the live one
        assert (tmp_path / min(left, key=len) / "train").is_dir()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_progress_ends_with_every_file_read(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Documents are written in groups of 256; the last group does not know that its file ends."""
    source = tmp_path / "d.jsonl"
    source.write_text("".join(f'{{"text": "wake {i}"}}\n' for i in range(512)))
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)
    assert "1/1 files" in capsys.readouterr().err


def test_stats_say_what_a_mixture_gives(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run too short to draw from a rare corpus has none of its tokens."""
    source = write_texts(tmp_path / "texts", ["sleep " * 5000, "wake " * 5000])
    prepare(Corpus([source]), tokenizer, tmp_path / "long", holdout=0)
    command = ["data", "stats", str(folder), str(tmp_path / "long"), "--weights", "0.9", "0.1"]
    mean = read_index(tmp_path / "long" / "train").mean_tokens
    for tokens in (1e9, 1e3):
        assert main([*command, "--tokens", str(tokens)]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        said = re.match(
            r".*/long: about ([\d.]+) % of the tokens .*, about ([\d,]+) documents", line
        )
        assert said, line
        documents = int(said[2].replace(",", ""))
        assert documents == pytest.approx(0.1 * tokens / mean, abs=1)
        assert float(said[1]) == pytest.approx(10 if documents else 0, rel=0.001)
    assert main([*command[:-1]]) == 2
    assert "--weights: give a number above 0 for each folder" in capsys.readouterr().err
    for wrong in (["--weights", "nan", "1"], ["--weights", "1", "inf"], ["--tokens", "inf"]):
        with pytest.raises(SystemExit):
            main([*command, *wrong])
        assert f"{wrong[0]}: " in capsys.readouterr().err
