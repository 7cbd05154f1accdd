"""Export: the fast tokenizer loads without custom code and gives the same ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokenizer.encode import Tokenizer
from tokenizer.export import SAMPLE, compare, export


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, corpus: list[str]
) -> Path:
    path = tmp_path_factory.mktemp("fast")
    report = export(tokenizer, path, corpus)
    assert report.identical, str(report)
    assert report.texts == len(SAMPLE) + len(corpus)
    return path


def test_loads_with_auto_and_fast_classes(folder: Path, tokenizer: Tokenizer) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for fast in (
        AutoTokenizer.from_pretrained(str(folder)),
        PreTrainedTokenizerFast.from_pretrained(str(folder)),
    ):
        assert (fast.eos_token_id, fast.pad_token_id, len(fast)) == (
            tokenizer.eos,
            tokenizer.pad,
            tokenizer.vocab_size,
        )
        assert fast("  a </s>▁b\n")["input_ids"] == tokenizer.encode("  a </s>▁b\n")


@pytest.fixture(scope="module")
def fast(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(folder))


@settings(max_examples=200, deadline=None)
@given(
    text=st.text()
    | st.text(alphabet=" \n=-▁ae\x00", max_size=60)
    | st.lists(st.sampled_from(SAMPLE)).map("".join)
)
def test_ids_and_text_are_identical_on_any_text(
    fast: PreTrainedTokenizerFast, tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert fast.encode(text, add_special_tokens=False) == ids
    assert fast.decode(ids) == text


def test_report_states_differences(
    tmp_path: Path, folder: Path, tokenizer: Tokenizer, corpus: list[str]
) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())
    model["model"]["merges"] = model["model"]["merges"][:10]  # makes the conversion wrong
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    (tmp_path / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    report = compare(tokenizer, tmp_path, corpus)
    assert not report.identical
    assert len(report.differences) == len(corpus)
    assert "NOT IDENTICAL" in str(report)
    assert "text 0" in str(report)
