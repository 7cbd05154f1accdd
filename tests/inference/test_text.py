"""Streamed text: the same as decoding all at once, up to a stop string."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pretrain.inference.text import TextDecoder
from tokenizer.encode import Tokenizer
from tokenizer.train import train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train([Path(__file__).read_text() * 8], path, vocab_size=420)
    return Tokenizer.load(path)


def pieces(stream: TextDecoder, ids: list[int]) -> list[str]:
    return [*map(stream.push, ids), stream.finish()]


def test_pieces_are_the_text_of_any_tokens(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    for length in (1, 3, 60):
        for _ in range(300):
            ids = [draw.randrange(tokenizer.vocab_size) for _ in range(length)]
            assert "".join(pieces(TextDecoder(tokenizer), ids)) == tokenizer.decode(ids)


def test_no_half_character_is_shown(tokenizer: Tokenizer) -> None:
    text = "a日本é\N{GRINNING FACE} b"  # partly byte pieces
    shown = pieces(TextDecoder(tokenizer), tokenizer.encode(text))
    assert "".join(shown) == text and not any("\N{REPLACEMENT CHARACTER}" in s for s in shown)


def test_text_ends_before_the_first_stop_string(tokenizer: Tokenizer) -> None:
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choice("ab") for _ in range(30))
        stops = ["".join(draw.choice("ab") for _ in range(draw.randint(1, 6))) for _ in range(3)]
        complete = [
            text[: end - len(stop)]
            for end in range(1, len(text) + 1)
            for stop in sorted(stops, key=len, reverse=True)
            if text[:end].endswith(stop)
        ]
        stream, shown, expected = TextDecoder(tokenizer, stops), "", [*complete, text][0]
        for token in tokenizer.encode(text):
            shown += stream.push(token)
            assert expected.startswith(shown)
        assert shown + stream.finish() == expected
        assert (stream.stopped is None) == (expected == text)


def test_an_empty_stop_string_stops_nothing(tokenizer: Tokenizer) -> None:
    assert "".join(pieces(TextDecoder(tokenizer, [""]), tokenizer.encode("abc"))) == "abc"
