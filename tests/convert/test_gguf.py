"""A GGUF file, read back by the gguf package: every tensor is where llama.cpp looks for it.

`make test-engines` checks that llama.cpp computes the same from it.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import pretrain.convert
from launch.cli import main
from pretrain.convert.export import export
from pretrain.convert.gguf import write, write_run
from pretrain.errors import UserError
from tests.convert.made import ADAD, DDDA, config
from tests.convert.made import write_run as make_run
from tokenizer.encode import Tokenizer

K, V, D = 2, 4, 8  # key heads, value heads, their width
# transformers' value heads in the file's order: key head 0's first, 1's first, 0's second ...
TURNS = [0, 2, 1, 3]


def fields(path: Path) -> dict[str, object]:
    """The file's metadata."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def values(path: Path) -> dict[str, np.ndarray]:
    return {t.name: t.data for t in gguf.GGUFReader(path).tensors}


def heads(weight: np.ndarray) -> np.ndarray:
    """Rows of value heads, in llama.cpp's order."""
    rows = len(weight) // V
    return np.concatenate([weight[h * rows : (h + 1) * rows] for h in TURNS])


@pytest.mark.parametrize(("layers", "tied"), [(DDDA, False), (ADAD, True)])
def test_every_tensor(layers: list[str], tied: bool, model: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", config(model, layers=layers, tie_embeddings=tied))
    export(run, tmp_path / "hf")
    write(tmp_path / "hf", tmp_path / "model.gguf")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").state_dict()
    theirs, read = {n: t.numpy() for n, t in hf.items()}, values(tmp_path / "model.gguf")

    assert ("output.weight" in read) is not tied
    expected = {
        "token_embd.weight": theirs["model.embed_tokens.weight"],
        "output_norm.weight": 1 + theirs["model.norm.weight"],
    } | ({} if tied else {"output.weight": theirs["lm_head.weight"]})
    for b, kind in enumerate(layers):
        mine, block = f"model.layers.{b}", f"blk.{b}"
        expected |= {
            f"{block}.attn_norm.weight": 1 + theirs[f"{mine}.input_layernorm.weight"],
            f"{block}.post_attention_norm.weight": 1
            + theirs[f"{mine}.post_attention_layernorm.weight"],
        }
        for part in ("gate", "up", "down"):
            expected[f"{block}.ffn_{part}.weight"] = theirs[f"{mine}.mlp.{part}_proj.weight"]
        if kind == "attention":
            mixer = f"{mine}.self_attn"
            for part, name in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
                expected[f"{block}.attn_{name}.weight"] = theirs[f"{mixer}.{part}_proj.weight"]
            for part in ("q_norm", "k_norm"):
                expected[f"{block}.attn_{part}.weight"] = 1 + theirs[f"{mixer}.{part}.weight"]
            continue
        mixer = f"{mine}.linear_attn"
        qkv, conv = theirs[f"{mixer}.in_proj_qkv.weight"], theirs[f"{mixer}.conv1d.weight"]
        qk = 2 * K * D
        columns = theirs[f"{mixer}.out_proj.weight"].T
        expected |= {
            f"{block}.attn_qkv.weight": np.concatenate([qkv[:qk], heads(qkv[qk:])]),
            f"{block}.ssm_conv1d.weight": np.concatenate([conv[:qk, 0], heads(conv[qk:, 0])]),
            f"{block}.attn_gate.weight": heads(theirs[f"{mixer}.in_proj_z.weight"]),
            f"{block}.ssm_beta.weight": heads(theirs[f"{mixer}.in_proj_b.weight"]),
            f"{block}.ssm_alpha.weight": heads(theirs[f"{mixer}.in_proj_a.weight"]),
            f"{block}.ssm_a": heads(-np.exp(theirs[f"{mixer}.A_log"])),
            f"{block}.ssm_dt.bias": heads(theirs[f"{mixer}.dt_bias"]),
            f"{block}.ssm_norm.weight": theirs[f"{mixer}.norm.weight"],
            f"{block}.ssm_out.weight": heads(columns).T,
        }
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].shape == value.shape, name
        np.testing.assert_allclose(read[name], value, rtol=1e-6, err_msg=name)


def test_keys(model: Path, tmp_path: Path) -> None:
    settings = config(model, vocab_size=Tokenizer.load(model).vocab_size + 3)
    write_run(make_run(tmp_path / "run", settings), tmp_path / "model.gguf")
    said = fields(tmp_path / "model.gguf")
    assert (said["general.architecture"], said["general.name"]) == ("qwen35", "model")
    assert said["qwen35.attention.recurrent_layers"] == [True, True, True, False]
    assert said["qwen35.full_attention_interval"] == 4
    assert said["qwen35.rope.dimension_count"] == 6
    assert said["qwen35.rope.dimension_sections"] == [1, 1, 1, 0]
    assert said["qwen35.ssm.inner_size"] == V * D
    assert said["tokenizer.ggml.add_bos_token"] is said["tokenizer.ggml.add_space_prefix"] is False
    tokens, tokenizer = said["tokenizer.ggml.tokens"], Tokenizer.load(model)
    assert tokens == [*tokenizer.model.pieces(), "<unused0>", "<unused1>", "<unused2>"]
    byte = tokens.index("<0x41>")
    assert [said["tokenizer.ggml.token_type"][i] for i in (byte, tokenizer.eos, -1)] == [6, 3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "run"]


def test_half_precision_is_of_matrices_alone(model: Path, tmp_path: Path) -> None:
    write_run(make_run(tmp_path / "run", config(model)), tmp_path / "model.gguf", "bf16")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_qkv.weight"] == kinds["token_embd.weight"] == "BF16"
    assert kinds["blk.0.ssm_conv1d.weight"] == kinds["blk.0.ssm_a"] == "F32"


def test_refused_by_name_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    odd = make_run(tmp_path / "odd", config(model, delta_key_dim=4, delta_value_dim=12))
    with pytest.raises(UserError, match=r"delta_key_dim = 4 and model.delta_value_dim = 12 differ"):
        write_run(odd, tmp_path / "model.gguf")
    eps = make_run(tmp_path / "eps", config(model, norm_eps=1e-5))
    with pytest.raises(UserError, match=r"model\.norm_eps = 1e-05: llama\.cpp also adds it"):
        write_run(eps, tmp_path / "model.gguf")
    without = config(model)
    without.data.task = "rule110"
    with pytest.raises(UserError, match="has no tokenizer"):
        write_run(make_run(tmp_path / "none", without), tmp_path / "model.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eps", "none", "odd"]


def test_one_that_was_killed_leaves_the_name_free(model: Path, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", config(model)), tmp_path / "model.gguf"
    for name in (".model.gguf.partial-x", "..model.gguf.hf.partial-x"):
        (tmp_path / f"{name}.lock").touch()
    (tmp_path / ".model.gguf.partial-x").touch()
    (tmp_path / "..model.gguf.hf.partial-x").mkdir()
    (tmp_path / "..model.gguf.hf.partial-x/model.safetensors").touch()
    write_run(run, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "run"]


def test_double_precision_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    export(make_run(tmp_path / "run", config(model)), tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    theirs.double().save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match=r"hf: is torch\.float64, which GGUF cannot hold"):
        write(tmp_path / "hf", tmp_path / "model.gguf")


@pytest.mark.parametrize("of", ["export.write", "gguf._write"])
def test_an_error_names_what_was_asked_for(
    of: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = make_run(tmp_path / "run", config(model))
    monkeypatch.setattr(f"pretrain.convert.{of}", full)
    with pytest.raises(UserError, match=rf"^{tmp_path}/model\.gguf: cannot be written: No space"):
        write_run(run, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_the_package(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", config(model))
    monkeypatch.delitem(sys.modules, "pretrain.convert.gguf")
    monkeypatch.delattr(pretrain.convert, "gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["export", str(run), str(tmp_path / "model.gguf"), "--to", "gguf"]) == 2
    assert "pip install -e '.[gguf]'" in capsys.readouterr().err


def test_an_export_goes_out_as_it_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, hf = make_run(tmp_path / "run", config(model)), tmp_path / "hf"
    export(run, hf, "fp16")
    out = tmp_path / "model.gguf"
    assert main(["export", str(hf), str(out), "--to", "gguf", "--precision", "fp32"]) == 2
    assert "converted as it is" in capsys.readouterr().err and not out.exists()
    assert main(["export", str(hf), str(out), "--to", "gguf"]) == 0
    assert torch.from_numpy(values(out)["token_embd.weight"].copy()).dtype == torch.float16
