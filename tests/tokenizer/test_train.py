"""Training: what the model contains, the same file twice, and errors that say the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenizer import TokenizerError
from tokenizer.encode import Tokenizer
from tokenizer.train import EOS, PAD, UNK, train


def test_model_has_the_asked_size_special_ids_and_all_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 640
    assert (tokenizer.pad, tokenizer.eos, tokenizer.model.unk) == (PAD, EOS, UNK)
    pieces = tokenizer.model.pieces()
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(pieces)
    assert len(set(pieces)) == 640


def test_pieces_are_learned_over_line_ends_and_runs_of_spaces(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.model.pieces()
    assert any(p.endswith("\n") and len(p) > 1 for p in pieces)
    assert "▁▁▁▁" in pieces


def test_same_documents_give_the_same_file(tmp_path: Path, corpus: list[str], model: Path) -> None:
    train(iter(corpus), tmp_path / "again.model", vocab_size=640)
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()


def test_vocabulary_too_large_for_the_documents_says_how_many_they_give(tmp_path: Path) -> None:
    documents = ["hello world, hello tokens\n"] * 3
    with pytest.raises(TokenizerError, match=r"--vocab-size .* set it to") as error:
        train(documents, tmp_path / "t.model", vocab_size=5000)
    limit = int(re.search(r"set it to (\d+) or less", str(error.value))[1])  # type: ignore[index]
    assert train(documents, tmp_path / "t.model", vocab_size=limit).vocab_size == limit


def test_vocabulary_too_small_says_how_many_are_needed(tmp_path: Path, corpus: list[str]) -> None:
    with pytest.raises(TokenizerError, match=r"--vocab-size .* set it to") as error:
        train(corpus, tmp_path / "t.model", vocab_size=100)
    needed = int(re.search(r"set it to (\d+) or more", str(error.value))[1])  # type: ignore[index]
    assert train(corpus, tmp_path / "t.model", vocab_size=needed).vocab_size == needed


def test_vocabulary_beyond_what_sentencepiece_can_count_is_refused(
    tmp_path: Path, corpus: list[str]
) -> None:
    with pytest.raises(TokenizerError, match="--vocab-size 2147483648: set it to 1048576 or less"):
        train(corpus, tmp_path / "t.model", vocab_size=1 << 31)


@pytest.mark.parametrize("documents", [[], [""]])
def test_no_text_is_refused_and_leaves_no_file(tmp_path: Path, documents: list[str]) -> None:
    with pytest.raises(TokenizerError, match="no text"):
        train(documents, tmp_path / "t.model", vocab_size=300)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_documents_is_told_as_it_is(tmp_path: Path) -> None:
    def corpus() -> Iterator[str]:
        yield "text"
        raise KeyboardInterrupt("of the documents")

    with pytest.raises(KeyboardInterrupt, match="of the documents"):
        train(corpus(), tmp_path / "t.model", vocab_size=300)
    assert list(tmp_path.iterdir()) == []


def test_marks_of_sentencepiece_do_not_hide_the_text_around_them(tmp_path: Path) -> None:
    word = "somnolent"
    tokenizer = train(
        [f"{mark}{word} {word}{mark}" * 50 for mark in "\x00▁▅"],
        tmp_path / "t.model",
        vocab_size=290,
    )
    assert len(tokenizer.encode(word)) < len(word) / 2


def test_place_that_cannot_be_written_is_named_before_anything_is_read(tmp_path: Path) -> None:
    def corpus() -> Iterator[str]:
        raise AssertionError("read")
        yield

    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.model").mkdir()
    for path in (tmp_path / "file" / "t.model", tmp_path / "folder.model"):
        with pytest.raises(TokenizerError, match=rf"{path.name}: cannot be written"):
            train(corpus(), path, vocab_size=640)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.model"]
