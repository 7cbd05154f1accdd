"""Which nonexistent paths are taken for names on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenizer.hub import download_first


@pytest.mark.parametrize(
    ("given", "is_name"),
    [
        ("Qwen/Qwen3-0.6B", True),
        ("HuggingFaceFW/fineweb-edu", True),
        ("mistralai/Mistral-7B-v0.3", True),
        ("gpt2", False),
        ("here/shards", False),  # the folder exists
        ("texts/notes.jsonl.gz", False),
        ("texts/tokenizer.model", False),
        ("a/b/c", False),
        ("/models/qwen", False),
        ("./qwen", False),
        ("../qwen", False),
    ],
)
def test_a_name_of_the_hub(
    given: str, is_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    told = f"; if it is on the Hugging Face Hub, download it first: hf download {given}"
    assert download_first(given) == (f"{told} --local-dir FOLDER" if is_name else "")
