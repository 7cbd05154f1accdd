"""Damage to a tokenizer's file is found before sentencepiece reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.harness import damaged, fuzz, hypnos, places, refusal
from tokenizer import TokenizerError
from tokenizer.encode import MAX_BYTES, Tokenizer
from tokenizer.seal import is_whole, seal

TEXT = "to sleep, ↯ perchance"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "damaged.model"


def test_every_byte_and_every_length(path: Path, model: Path) -> None:
    whole = model.read_bytes()
    some = places(len(whole), 600)
    wrong = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in some]
    wrong += [whole[:length] for length in some]
    wrong += [whole + b"\0", whole * 2, b"\0" + whole]
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"damaged\.model: damaged, or not written"):
            Tokenizer.load(path)


def test_sentencepiece_reads_a_sealed_file_like_any_other(
    model: Path, tokenizer: Tokenizer
) -> None:
    assert is_whole(model.read_bytes())
    assert sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(
        TEXT
    ) == tokenizer.encode(TEXT)


@pytest.mark.parametrize("command", ["encode", "export", "prepare"])
@pytest.mark.parametrize(
    "damage", ["missing", "folder", "empty", "huge", "device", "flipped", "text"]
)
def test_commands_name_the_file(path: Path, model: Path, damage: str, command: str) -> None:
    if damage == "folder":
        path.mkdir()
    elif damage == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    elif damage == "device":
        path.symlink_to("/dev/zero")
    elif damage != "missing":
        whole = model.read_bytes()
        path.write_bytes(
            {"empty": b"", "text": b"text\n"}.get(damage, whole[:99] + b"\x55" + whole[100:])
        )
    text, out = path.with_name("text.txt"), path.with_name("out")
    text.write_text(TEXT)
    arguments = {
        "encode": ["tokenizer", "encode", path, text],
        "export": ["tokenizer", "export", path, out],
        "prepare": ["data", "prepare", text, "--tokenizer", path, "--out", out],
    }
    assert str(path) in hypnos(*arguments[command]).error
    assert not out.exists()


def test_a_file_of_more_than_is_read_is_refused(path: Path) -> None:
    """The part that is read would be intact."""
    path.write_bytes(seal(bytes(MAX_BYTES - 35)) + b"\0")
    assert refusal(lambda: Tokenizer.load(path))


@fuzz(150)
@given(data=st.data())
@example(data=None)
def test_a_seal_around_anything(path: Path, model: Path, data: st.DataObject | None) -> None:
    """A file crafted with a valid seal reaches sentencepiece, which refuses it or works."""
    body = model.read_bytes()[:-35]
    assert is_whole(seal(body))
    path.write_bytes(seal(data.draw(damaged(body) | st.binary(max_size=50)) if data else b""))

    def use() -> None:
        made = Tokenizer.load(path)
        assert made.decode(made.encode(TEXT)) == TEXT

    told = refusal(use)
    assert told is None or str(path) in told
