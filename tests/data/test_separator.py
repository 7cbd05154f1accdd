"""--separator: texts that contain many documents."""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.commands.values import separator
from pretrain.data import formats
from pretrain.data.corpus import Corpus
from pretrain.data.prepare import merge, prepare, prepare_part
from pretrain.data.units import cut
from pretrain.errors import UserError
from tests.data.small import SETTINGS, content
from tests.data.texts import make_texts, write_texts
from tokenizer.encode import Tokenizer

END = "<|endoftext|>"
TEXT = (
    f"\ufeffein\n\nzwei 四😀\n{END}\n \n{END}drei{END}\n{END}{END}<|end{END}of text\r\n\r\n{END}\n"
)


def texts(*sources: Path, **options: Any) -> list[str]:
    return [document.text for document in Corpus(sources, **options)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("at", [END, "\n", "\n\n", "\r\n", "四", "e", "<|endoftext|><|", "aab"])
def test_pieces_are_those_of_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, at: str
) -> None:
    """In files of any name, compressed ones, and members of a tar."""
    monkeypatch.setattr(formats, "CHUNK", chunk)
    text = TEXT + "aaabaab aab"
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.md", "c"):
        (folder / name).write_bytes(text.encode())
    (folder / "d.txt.gz").write_bytes(gzip.compress(text.encode()))
    with tarfile.open(folder / "e.tar", "w") as tar:
        member = tarfile.TarInfo("1.txt")
        member.size = len(text.encode())
        tar.addfile(member, io.BytesIO(text.encode()))
    expected = [piece for piece in text.removeprefix("\ufeff").split(at) if piece.strip()]
    for path in sorted(folder.iterdir()):
        assert texts(path, separator=at) == expected, path


def test_rows_are_not_split_and_what_is_empty_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\\n\\ntwo"}\n')
    (tmp_path / "b.txt").write_text("three\n\n \n\nfour\n\n")
    corpus = Corpus([tmp_path], separator="\n\n")
    assert [(d.text, d.source.rpartition(":")[2]) for d in corpus] == [
        ("one\n\ntwo", "1"), ("three", "1"), ("four", "3"),
    ]  # fmt: skip
    assert corpus.tally.lines() == [
        "read 1 file (1 .jsonl), row by row",
        "read 1 file (1 .txt), split at each '\\n\\n'",
        f"left out 1 row: empty text ({tmp_path.name}/b.txt:2)",
    ]


def test_a_piece_that_is_no_utf8_is_named_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\nt\xffo\nthree")
    with pytest.raises(UserError, match=r"a\.txt, piece 2: invalid UTF-8 at its byte 1; convert"):
        texts(tmp_path, separator="\n")
    assert texts(tmp_path, separator="\n", skip_bad=True) == ["one", "three"]


def test_a_text_without_a_separator_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_TEXT", 1 << 16)
    monkeypatch.setattr(formats, "CHUNK", 1 << 12)
    (tmp_path / "a.txt").write_text("one\n" + "x" * (1 << 17))
    with pytest.raises(UserError, match="GiB of text without a separator"):
        texts(tmp_path, separator="\n")


@pytest.mark.parametrize("way", ["2 workers", "2 parts"])
def test_the_same_bytes_by_several_processes_and_in_parts(
    tokenizer: Tokenizer, tmp_path: Path, way: str
) -> None:
    made = make_texts(60, seed=4)
    source = write_texts(tmp_path / "texts", ["\n".join(made[i : i + 7]) for i in range(0, 60, 7)])
    assert len(cut(Corpus([source]).find(), 300)) > 2
    one, other = tmp_path / "one", tmp_path / "other"
    splits = prepare(Corpus([source], separator="\n\n"), tokenizer, one, **SETTINGS)
    assert sum(index.samples for index in splits.values()) == 60
    if way == "2 workers":
        settings = SETTINGS | {"workers": 2}
        prepare(Corpus([source], separator="\n\n"), tokenizer, other, **settings)
    else:
        for i in (1, 2):
            prepare_part(Corpus([source], separator="\n\n"), tokenizer, other, (i, 2), **SETTINGS)
        merge(other)
    assert content(one) == content(other)


def test_parts_of_other_separators_are_not_merged(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare_part(Corpus([source]), tokenizer, tmp_path, (1, 2), **SETTINGS)
    corpus = Corpus([source], separator="\n")
    prepare_part(corpus, tokenizer, tmp_path, (2, 2), **SETTINGS)
    with pytest.raises(UserError, match=r'\(separator: "\\n" instead of null\)'):
        merge(tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [(r"\n\n", "\n\n"), ("\n", "\n"), (r"\t\r\n", "\t\r\n"), (r"\\n", r"\n"), (END, END)],
)
def test_escapes(given: str, meant: str) -> None:
    assert separator(given) == meant
    with pytest.raises(argparse.ArgumentTypeError, match="is empty"):
        separator("")


def test_commands(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "input.txt"
    path.write_text("\n\n".join(make_texts(30, seed=3)))
    split = [str(path), "--separator", r"\n\n"]
    out = str(tmp_path / "out")
    assert (
        main(
            ["data", "prepare", *split, "--tokenizer", str(model), "--out", out, "--holdout", "0.3"]
        )
        == 0
    )
    assert "/train: " in capsys.readouterr().out
    learned = str(tmp_path / "other.model")
    assert main(["tokenizer", "train", *split, "--vocab-size", "320", "--out", learned]) == 0
    assert " 30 documents" in capsys.readouterr().err
    assert main(["tokenizer", "train", "--python", *split[1:], "--out", learned]) == 2
    assert "leave it out with --python" in capsys.readouterr().err
