"""Tokenizers as written to GGUF files. `make test-engines` checks that llama.cpp gives the same
ids.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pretrain.convert.vocabulary import CUTS, vocabulary
from pretrain.errors import UserError
from tests.tokenizer.foreign import byte_level, sentences
from tokenizer.encode import Tokenizer
from tokenizer.export import export as export_tokenizer


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return byte_level(tmp_path / "qwen")


def change(folder: Path, *path: str | int, to: Any) -> None:
    """Changes one value in its tokenizer.json."""
    described = json.loads((folder / "tokenizer.json").read_text())
    place = described
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    (folder / "tokenizer.json").write_text(json.dumps(described))


def test_bytes_and_merges(qwen: Path) -> None:
    said, tokenizer = vocabulary(qwen), Tokenizer.load(qwen)
    assert (said.model, said.pre, said.scores) == ("gpt2", "qwen2", None)
    assert said.tokens[-4:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    assert said.types[-5:] == [1, 3, 3, 3, 4]
    assert said.merges is not None and len(said.merges) == 320 - 256
    assert said.tokens[256:320] == [merge.replace(" ", "") for merge in said.merges]
    assert (said.eos, said.pad) == (tokenizer.eos, tokenizer.pad)
    padded = said.padded(330)
    assert padded.tokens[324:] == [f"<unused{i}>" for i in range(6)] and padded.types[-1] == 5


@pytest.mark.parametrize(("pattern", "whole"), [cut for cut in CUTS if cut[0]])
def test_each_way_to_cut_a_text_is_one_that_tokenizers_reads(
    pattern: str, whole: bool, qwen: Path
) -> None:
    change(qwen, "pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", to=pattern)
    change(qwen, "model", "ignore_merges", to=whole)
    assert vocabulary(qwen).pre == CUTS[pattern, whole]


def test_pieces_and_scores(tmp_path: Path) -> None:
    """From sentencepiece's file, also if a tokenizer.json with one more token was made from it."""
    llama = sentences(tmp_path)
    said = vocabulary(llama)
    assert (said.model, said.pre, said.merges, said.unk) == ("llama", "default", None, 0)
    assert said.tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"] and said.types[:4] == [2, 3, 3, 6]
    fast = AutoTokenizer.from_pretrained(llama)
    fast.add_special_tokens({"pad_token": "<pad>"})
    fast.save_pretrained(llama)
    both = vocabulary(llama)
    assert both.tokens == [*said.tokens, "<pad>"] and both.types == [*said.types, 3]
    assert (both.eos, both.pad) == (2, 400)
    (llama / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"put the tokenizer\.model beside it that it was made "):
        vocabulary(llama)


def test_an_export_that_transformers_has_saved_again(model: Path, tmp_path: Path) -> None:
    """transformers drops the tokenizer.model, which the user can put back."""
    export_tokenizer(Tokenizer.load(model), tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    with pytest.raises(UserError, match=r"again: .* put the tokenizer\.model beside it"):
        vocabulary(tmp_path / "again")
    shutil.copyfile(model, tmp_path / "again/tokenizer.model")
    assert vocabulary(tmp_path / "again") == vocabulary(model)


def test_what_llama_cpp_would_read_otherwise(qwen: Path, tmp_path: Path) -> None:
    change(qwen, "model", "ignore_merges", to=True)
    with pytest.raises(UserError, match=r"qwen: llama\.cpp does not know how it splits texts"):
        vocabulary(qwen)
    change(qwen, "pre_tokenizer", "pretokenizers", 0, "behavior", to="Contiguous")
    with pytest.raises(UserError, match="in a way that llama"):
        vocabulary(qwen)
    for options, why in (
        ({"model_type": "unigram"}, "unigram"),
        ({"user_defined_symbols": ["café"]}, "has user-defined pieces"),
        ({"byte_fallback": False}, "has no byte pieces"),
    ):
        with pytest.raises(UserError, match=why):
            vocabulary(sentences(tmp_path / "other", **options))
