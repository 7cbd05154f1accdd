"""A model that comes with a tokenizer uses it for data, training, generation and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from launch.cli import main
from pretrain.config.load import load
from pretrain.config.run_folder import keep_tokenizer, places
from pretrain.convert.export import export
from pretrain.errors import UserError
from pretrain.evaluate import evaluate_run
from pretrain.inference.generate import open_run
from tests.data.texts import make_texts, write_texts
from tests.tokenizer.foreign import byte_level, sentences
from tokenizer import foreign
from tokenizer.encode import Tokenizer

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of a Qwen3 model."""
    folder = byte_level(tmp_path_factory.mktemp("qwen3"))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(0)
    theirs = Qwen3Config(
        vocab_size=336, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(theirs).save_pretrained(folder)
    return folder


def test_all_that_a_run_does(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, shards = write_texts(tmp_path / "texts", make_texts(8, seed=1)), tmp_path / "shards"
    prepare = ["data", "prepare", str(texts), "--tokenizer", str(given), "--holdout", "0.3"]
    assert main([*prepare, "--out", str(shards), "--workers", "1"]) == 0
    run, out = tmp_path / "run", tmp_path / "out"
    sizes = ["sleep.passes=2", "sleep.window=16", "sleep.prelude=0", "sleep.coda=0"]
    assert main(["import", str(given), str(run), "--delta-every", "2", *sizes]) == 0
    overrides = [
        f'data.train=[{{path="{shards}/train"}}]', f"data.heldout={shards}/heldout",
        "data.windows=2", "train.steps=2", "train.batch=2", "train.eval_batches=1",
    ]  # fmt: skip
    assert main(["train", str(run / "config.toml"), *overrides]) == 0
    (result,) = evaluate_run(run, [2])
    assert 0 < result["loss"] < 12
    assert main(["generate", str(run), "--prompt", "a na\u00efve <|im_end|>", "--tokens", "5"]) == 0
    assert main(["doctor", str(run)]) == 0
    assert main(["export", str(run), str(out), "--to", "hf"]) == 0
    names = ["chat_template.jinja", "merges.txt", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(foreign.contents(out)) == names
    assert foreign.contents(out) == foreign.contents(given)
    assert "copied unchanged" in capsys.readouterr().err
    first, second = (AutoTokenizer.from_pretrained(each) for each in (given, out))
    assert first.encode("def sleep():") == second.encode("def sleep():")
    said = json.loads((out / "config.json").read_text())
    assert (said["eos_token_id"], said["pad_token_id"]) == (322, 320)
    assert open_run(out)[1].fingerprint == Tokenizer.load(given).fingerprint
    assert main(["import", str(out), str(tmp_path / "again")]) == 0
    assert main(["export", str(run), str(tmp_path / "x.gguf"), "--to", "gguf"]) == 0
    told = {
        name: field.contents() for name, field in GGUFReader(tmp_path / "x.gguf").fields.items()
    }
    assert told["tokenizer.ggml.pre"] == "qwen2" and told["tokenizer.ggml.eos_token_id"] == 322
    assert told["tokenizer.ggml.tokens"][-1] == "<unused11>"
    assert told["tokenizer.chat_template"] == TEMPLATE


def test_the_run_keeps_it(given: Path, tmp_path: Path, model: Path) -> None:
    assert main(["import", str(given), str(tmp_path / "run"), "--delta-every", "2"]) == 0
    own = tmp_path / "run/config.toml"
    assert places(own)[2] == f'data.tokenizer="{tmp_path}/run/tokenizer"'
    config = load(own, places(own))
    keep_tokenizer(tmp_path / "run", config, resumes=True)
    config.data.tokenizer = str(sentences(tmp_path / "other"))
    with pytest.raises(UserError, match=r"^data\.tokenizer = .*other: is not this run's own"):
        keep_tokenizer(tmp_path / "run", config, resumes=True)
    keep_tokenizer(tmp_path / "run", config, resumes=False)
    assert sorted(foreign.contents(tmp_path / "run/tokenizer")) == [
        "tokenizer.model", "tokenizer_config.json",
    ]  # fmt: skip
    config.data.tokenizer = str(model)  # our own kind
    keep_tokenizer(tmp_path / "run", config, resumes=False)
    assert not (tmp_path / "run/tokenizer").exists()


def test_one_with_more_ids_than_the_model_has_rows(given: Path, tmp_path: Path) -> None:
    byte_level(given, vocab_size=340)
    try:
        assert main(["import", str(given), str(tmp_path / "run"), "--delta-every", "2"]) == 0
    finally:
        byte_level(given)
    assert not (tmp_path / "run/tokenizer").exists()


def test_export_gives_nothing_back_that_is_damaged(given: Path, tmp_path: Path) -> None:
    assert main(["import", str(given), str(tmp_path / "run"), "--delta-every", "2"]) == 0
    held = tmp_path / "run/tokenizer/tokenizer.json"
    held.write_text(held.read_text().replace("<think>", "<tinkh>"))
    with pytest.raises(ValueError, match="changed since it was written"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
