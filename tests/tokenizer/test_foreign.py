"""Tokenizers that come with other models: the same ids as in transformers, and exact texts back."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from unicodedata import normalize

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tokenizer.foreign import byte_level, sentences
from tokenizer import TokenizerError, foreign
from tokenizer.encode import Tokenizer
from tokenizer.export import SAMPLE

PLACES = st.text() | st.text(alphabet=" \n\u2581ae<>\0", max_size=40)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both files, as is usual."""
    folder = sentences(tmp_path_factory.mktemp("llama"))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "tokenizer.json").exists()
    return folder


@pytest.fixture(scope="module")
def both(qwen: Path) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    return Tokenizer.load(qwen), AutoTokenizer.from_pretrained(qwen)


@settings(deadline=None)
@given(text=PLACES | st.lists(st.sampled_from([*SAMPLE, "<think>", "<|im_end|>"])).map("".join))
def test_byte_level_has_the_ids_of_transformers(
    both: tuple[Tokenizer, PreTrainedTokenizerFast], text: str
) -> None:
    ours, theirs = both
    ids = ours.encode(text)
    assert ours.decode(ids) == text  # NFC or not
    assert not {ours.eos, ours.pad} & set(ids)
    if normalize("NFC", text) == text:
        assert ids == theirs.encode(text, add_special_tokens=False)
    assert theirs.decode(ids) == text


def test_special_tokens(both: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
    ours, theirs = both
    assert (ours.vocab_size, ours.eos, ours.pad) == (
        len(theirs), theirs.eos_token_id, theirs.pad_token_id,
    )  # fmt: skip
    text = "<|im_start|>user\nhow?<|im_end|>\n"
    expected = ["", "<|im_start|>", "user\nhow?", "<|im_end|>", "\n"]
    assert ours.at_specials(text) == expected
    assert [ours.specials[special] for special in expected[1::2]] == theirs.convert_tokens_to_ids(
        expected[1::2]
    )


def test_sentencepiece_has_the_ids_of_its_library_after_a_space(llama: Path) -> None:
    """The library adds that space itself; without it, the ids are those of transformers."""
    raw = sentencepiece.SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    fast = Tokenizer.load(llama)
    slow = Tokenizer(*foreign.read(_alone(llama, "tokenizer.model")))
    for text in SAMPLE:
        assert slow.decode(slow.encode(text)) == fast.decode(fast.encode(text)) == text
        assert slow.encode(text) == fast.encode(text)
        if "\u2581" not in text:
            assert slow.encode(" " + text) == raw.encode(text)
    assert (fast.vocab_size, fast.eos, fast.pad) == (400, raw.eos_id(), raw.eos_id())
    assert slow.decode(slow.encode("a") + slow.encode("b")) == "ab"


def _alone(folder: Path, name: str) -> Path:
    other = folder / name.replace(".", "-")
    other.mkdir()
    (other / name).write_bytes((folder / name).read_bytes())
    return other


@pytest.mark.parametrize("kind", ["qwen", "llama"])
def test_in_another_process_and_by_threads(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = Tokenizer.load(request.getfixturevalue(kind))
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.fingerprint == tokenizer.fingerprint
    expected = [tokenizer.encode(text) for text in SAMPLE]
    assert list(again.encode_many(SAMPLE, threads=2)) == expected
    with pytest.raises(TokenizerError, match=r"lone surrogate \(U\+D800\)"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model_type": "unigram", "vocab_size": 360}, SAMPLE[3]),
        ({"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}, SAMPLE[3]),
        ({"split_by_whitespace": False}, "in its folder: the files of a tokenizer " * 3000),
        ({"byte_fallback": False, "vocab_size": 120}, "in its folder"),
    ],
)
def test_sentencepiece_of_other_settings(
    options: dict[str, object], text: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(sentences(tmp_path, **options))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if options.get("byte_fallback") is False:
        for unknown in "ж", "\u2581", "\n":
            with pytest.raises(TokenizerError, match="bytes to encode"):
                tokenizer.encode(f"a{unknown}")


def test_what_is_held_is_told_from_what_was_damaged(qwen: Path, tmp_path: Path) -> None:
    foreign.hold(qwen, tmp_path / "held")
    assert Tokenizer.load(tmp_path / "held").fingerprint == Tokenizer.load(qwen).fingerprint
    assert foreign.contents(tmp_path / "held") == foreign.contents(qwen)
    config = tmp_path / "held/tokenizer_config.json"
    config.write_text(config.read_text().replace("im_end", "im_start"))
    with pytest.raises(TokenizerError, match=r"held: .*changed since it was written"):
        Tokenizer.load(tmp_path / "held")
    config = qwen.parent / "other/tokenizer_config.json"
    foreign.copy(qwen, config.parent)
    config.write_text(config.read_text().replace("im_end", "im_start"))
    assert Tokenizer.load(config.parent).fingerprint != Tokenizer.load(qwen).fingerprint


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("normalizer", "type"), "Lowercase", "changes text"),
        (("model", "type"), "WordPiece", "not a BPE"),
        (("model", "vocab"), {"a": 0}, "not a readable tokenizer"),
        (("model", "vocab", "!"), None, "not a readable tokenizer"),
        ((), [], "not a readable tokenizer"),
        (("added_tokens", 3, "lstrip"), True, "swallows spaces"),
        ("eos_token", "<none>", "no token '<none>'"),
        ("eos_token", None, "no eos_token"),
    ],
)
def test_refused_by_name(
    place: tuple[str | int, ...] | str, value: object, message: str, qwen: Path, tmp_path: Path
) -> None:
    foreign.copy(qwen, tmp_path)
    path = tmp_path / ("tokenizer_config.json" if isinstance(place, str) else "tokenizer.json")
    described = json.loads(path.read_text())
    *above, last = (place,) if isinstance(place, str) else place or (None,)
    inner = described
    for step in above:
        inner = inner[step]
    if last is None:
        described = value
    else:
        inner[last] = value
    path.write_text(json.dumps(described))
    with pytest.raises(TokenizerError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
