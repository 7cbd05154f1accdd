"""Encoding: exact round trip on any Unicode, the same ids wherever text is cut, damage named."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import TokenizerError, cut
from tokenizer.encode import Tokenizer
from tokenizer.train import train

HARD = "\x00\t\n\r \u2581\u2585\ufeff\u00a0<0x41></s>ab"
TEXT = st.text() | st.text(alphabet=HARD)


@settings(deadline=None)
@given(text=TEXT)
def test_round_trip_is_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.eos, tokenizer.pad, tokenizer.model.unk} & set(ids)


@settings(deadline=None)
@given(texts=st.lists(TEXT, max_size=5), size=st.integers(1, 8))
def test_cutting_and_threads_change_no_token(
    tokenizer: Tokenizer, texts: list[str], size: int
) -> None:
    for text in texts:
        pieces = list(cut.parts(text, size))
        assert "".join(pieces) == text
        assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)
    assert list(tokenizer.encode_many(texts, threads=2)) == [
        tokenizer.encode(text) for text in texts
    ]


def test_long_text_is_cut_and_equals_one_call_of_sentencepiece(
    model: Path, tokenizer: Tokenizer
) -> None:
    text = Path(__file__).read_text() * 30
    assert len(list(cut.parts(text))) > 2
    assert tokenizer.encode(text) == sentencepiece.SentencePieceProcessor(
        model_file=str(model)
    ).encode(text)


def test_special_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a  b")
    assert tokenizer.decode([*ids, tokenizer.eos, tokenizer.pad]) == "a  b"
    assert tokenizer.decode([]) == ""


def test_special_looking_text_is_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos not in tokenizer.encode("</s>")
    assert tokenizer.decode(tokenizer.encode("</s><pad>")) == "</s><pad>"


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"lone surrogate \(U\+D800\)"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("ids", [[640], [-1, 5]])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match=r"the vocabulary is 0\.\.639"):
        tokenizer.decode(ids)


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "folder"])
def test_damaged_file_is_named_in_one_line(tmp_path: Path, model: Path, damage: str) -> None:
    path = tmp_path / "bad.model"
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        content = {"empty": b"", "text": b"hello\n", "truncated": model.read_bytes()[:1000]}[damage]
        path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"bad\.model") as error:
        Tokenizer.load(path)
    assert "\n" not in str(error.value)


def test_a_file_without_our_seal_is_refused(tmp_path: Path, model: Path) -> None:
    """It may be damaged; another model's tokenizer is read from its folder."""
    (tmp_path / "other.model").write_bytes(model.read_bytes()[:-35])
    with pytest.raises(TokenizerError, match=r"other\.model: damaged, or not written by"):
        Tokenizer.load(tmp_path / "other.model")


def test_fingerprint_is_of_the_file(
    tmp_path: Path, tokenizer: Tokenizer, corpus: list[str], model: Path
) -> None:
    assert Tokenizer.load(model).fingerprint == tokenizer.fingerprint
    assert (
        train(corpus, tmp_path / "other.model", vocab_size=641).fingerprint != tokenizer.fingerprint
    )
