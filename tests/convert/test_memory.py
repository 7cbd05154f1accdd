"""Export and import handle one tensor at a time: counts what they allocate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from pretrain.convert.export import export
from pretrain.convert.gguf import write as write_gguf
from pretrain.convert.into_run import import_folder
from tests.convert.made import config, write_run

ROWS, D = 20_000, 32
LARGEST = 4 * ROWS * D  # bytes of the embedding; two thirds of the model beside an untied head
SMALL = LARGEST // 20


def most(source: Path, run: Callable[[], object]) -> int:
    """The most bytes of tensors that a call holds at once, as torch's own allocator counts them.

    Args:
        source: what is read; its files are mapped, which torch reports as allocations.
    """
    mapped = {path.stat().st_size for path in source.rglob("*.safetensors")}
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if abs(event.nbytes()) not in mapped:
            held += event.nbytes()
        highest = max(highest, held)
    return highest


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three ranks, each with a third of every tensor."""
    settings = config(model, vocab_size=ROWS, d_model=D, layers=["attention", "delta"])
    return write_run(tmp_path_factory.mktemp("large") / "run", settings)


def test_out_and_in_again(run: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    assert LARGEST <= most(run, lambda: export(run, hf)) < LARGEST + SMALL
    assert most(hf, lambda: write_gguf(hf, tmp_path / "model.gguf")) < SMALL  # it is on disk
    assert most(hf, lambda: import_folder(hf, tmp_path / "run")) < SMALL


def test_half_precision(run: Path, tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    assert most(run, lambda: export(run, hf, "bf16")) < LARGEST // 2 + SMALL
    assert most(hf, lambda: write_gguf(hf, tmp_path / "model.gguf")) < SMALL
    assert most(hf, lambda: import_folder(hf, tmp_path / "run")) < LARGEST + SMALL


def test_an_attention_only_model_in(tmp_path: Path) -> None:
    theirs = Qwen3Config(
        vocab_size=ROWS, hidden_size=D, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(theirs).save_pretrained(tmp_path / "theirs")
    assert (
        most(tmp_path, lambda: import_folder(tmp_path / "theirs", tmp_path / "run", [], 2)) < SMALL
    )
