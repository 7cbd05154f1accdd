"""A tokenizer trained on any text: no spaces, few spaces, one character, only line ends."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer import TokenizerError, train
from tokenizer.encode import Tokenizer
from tokenizer.export import export

DNA = "".join(random.Random(0).choices("ACGT", k=20_000))
HAN = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n"
CORPORA = {
    "DNA": [DNA],
    "DNA in lines": [f"{DNA[at : at + 60]}\n" for at in range(0, len(DNA), 60)],
    "Chinese": [HAN * 20],
    "Japanese": ["むかしむかし、あるところに、おじいさんとおばあさんがありました。" * 20],
    "Thai": ["กาลครั้งหนึ่งนานมาแล้ว" * 20],
    "digits": [str(3**5000)],
    "one character": ["a" * 500],
    "one character once": ["a"],
    "one character of four bytes": ["𝕳" * 500],
    "emoji": ["👩🏽‍🚀🇪🇺" * 20],
    "a space too rare for a piece": [DNA + " " + DNA],
    "spaces": ["     "],
    "line ends": ["\n\n\n", "\r\n"],
    "tabs": ["\t\t\t\t"],
    "NUL": ["\0\0"],
    "marks of sentencepiece": ["▁▁▅"],
    "words": ["to be or not to be\n" * 20],
}
PROBE = "  to  be\n\t ▁ACGT▁ 春眠 \r\n\0▅ a "


def trained(documents: list[str], path: Path) -> Tokenizer:
    """Trains one with the largest vocabulary, up to 400 pieces, that the documents allow."""
    try:
        return train.train(documents, path, vocab_size=400)
    except TokenizerError as error:
        most = re.search(r"set it to (\d+) or less", str(error))
        assert most and not path.exists()
        return train.train(documents, path, vocab_size=int(most[1]))


@pytest.mark.parametrize("name", CORPORA)
def test_round_trip_and_export_are_exact(tmp_path: Path, name: str) -> None:
    documents = CORPORA[name]
    tokenizer = trained(documents, tmp_path / "t.model")
    for text in [PROBE, PROBE * 3, *documents]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.eos, tokenizer.pad, tokenizer.model.unk} & set(ids)
    report = export(tokenizer, tmp_path / "fast", [PROBE, *documents])
    assert report.identical, str(report)
    assert Tokenizer.load(tmp_path / "t.model").encode(PROBE) == tokenizer.encode(PROBE)


@pytest.fixture(scope="module")
def without_space(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return trained([DNA], tmp_path_factory.mktemp("dna") / "t.model")


@settings(deadline=None)
@given(text=st.text() | st.text(alphabet=" \n▁ACGT\0"))
def test_any_text_comes_back_from_a_tokenizer_without_a_space(
    without_space: Tokenizer, text: str
) -> None:
    assert without_space.decode(without_space.encode(text)) == text


def test_a_space_without_a_piece_is_its_byte(without_space: Tokenizer) -> None:
    pieces = without_space.model.pieces()
    assert "▁" not in pieces
    assert [pieces[i] for i in without_space.encode(" N▁")] == [
        "<0x20>", "<0x4E>", "<0xE2>", "<0x96>", "<0x81>",
    ]  # fmt: skip


def test_line_ends_are_learned_where_there_is_nothing_else(tmp_path: Path) -> None:
    assert len(trained(["\n" * 64], tmp_path / "t.model").encode("\n" * 64)) <= 8


def test_a_text_without_spaces_is_learned_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sentencepiece silently drops units of 1 GiB, so they are cut; ordinary text is not."""
    whole = train.train([DNA], tmp_path / "whole.model", vocab_size=300)
    monkeypatch.setattr(train, "MAX_UNIT", 1000)
    assert "".join(train._units(DNA)) == DNA and max(map(len, train._units(DNA))) == 1000
    cut = train.train([DNA], tmp_path / "cut.model", vocab_size=300)
    assert abs(len(cut.encode(DNA)) - len(whole.encode(DNA))) < 100


def test_a_model_that_is_refused_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "planted")
    with pytest.raises(TokenizerError, match="changes text"):
        train.train([DNA], tmp_path / "t.model", vocab_size=300)
    assert list(tmp_path.iterdir()) == []
