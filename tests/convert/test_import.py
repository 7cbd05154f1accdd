"""transformers models imported as our runs: the same function, and runs that train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3Config,
)

from launch.cli import main
from pretrain.config.load import load
from pretrain.config.run_folder import places
from pretrain.convert import folder
from pretrain.convert.export import export
from pretrain.convert.into_run import import_folder
from pretrain.convert.load import open_model
from pretrain.errors import UserError
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session
from pretrain.model.sleep import SleepLM
from pretrain.trainer import train
from tests import runs
from tests.convert.made import ADAD, config, write_run
from tests.model import tiny

IDS = torch.randint(0, 64, (1, 70), generator=torch.Generator().manual_seed(3))


def tensors(place: Path) -> dict[str, Tensor]:
    """All tensors in a folder of safetensors."""
    found = {}
    for path in place.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def same_function(model: SleepLM, theirs: PreTrainedModel) -> None:
    """Compares outputs, with N = 1 in one window."""
    model.sleep.window, model.sleep.passes = 128, 1
    logits = Session(Decoder(model)).read(IDS[0].tolist(), every=True)
    with torch.inference_mode():
        expected = theirs.float().eval()(IDS).logits[0]
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("tied", "shard"), [(False, 40_000), (True, folder.MAX_SHARD)])
def test_out_and_in_and_out_again(
    tied: bool, shard: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(model, layers=ADAD, tie_embeddings=tied)
    monkeypatch.setattr(folder, "MAX_SHARD", shard)
    export(write_run(tmp_path / "run", settings), tmp_path / "first")
    assert not import_folder(tmp_path / "first", tmp_path / "again")
    export(tmp_path / "again", tmp_path / "second")
    first, second = tensors(tmp_path / "first"), tensors(tmp_path / "second")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    _, again = open_model(tmp_path / "again")
    assert (again.model.layers, again.sleep) == (settings.model.layers, settings.sleep)


def multimodal(place: Path, **top: bool) -> Qwen3_5ForConditionalGeneration:
    """Like the published Qwen3.5: the language model under another name, with vision beside it."""
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    torch.manual_seed(0)
    whole = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=text, vision_config=vision | {"out_hidden_size": 32}, **top)
    ).bfloat16()
    whole.save_pretrained(place)
    return whole


def edit(path: Path, *, nested: bool = False, **changes: object) -> None:
    """Changes a config.json, or the text_config in it."""
    whole = json.loads(path.read_text())
    (whole["text_config"] if nested else whole).update(changes)
    path.write_text(json.dumps(whole))


def test_a_multimodal_folder_in_bf16(tmp_path: Path) -> None:
    whole = multimodal(tmp_path / "hf")
    said = import_folder(tmp_path / "hf", tmp_path / "run")
    assert "tensors are left out, such as model.visual" in said[0] and "data.tokenizer" in said[1]
    loaded, settings = open_model(tmp_path / "run")
    assert (settings.sleep.prelude, settings.sleep.coda) == (1, 1)
    same_function(loaded, whole)


@pytest.mark.parametrize("tied", [False, True])
def test_the_whole_of_a_multimodal_folder_says_if_the_head_is_tied(
    tied: bool, tmp_path: Path
) -> None:
    """Not the language model in it."""
    multimodal(tmp_path / "hf", tie_word_embeddings=tied)
    edit(tmp_path / "hf/config.json", nested=True, tie_word_embeddings=not tied)
    import_folder(tmp_path / "hf", tmp_path / "run")
    loaded, settings = open_model(tmp_path / "run")
    assert settings.model.tie_embeddings == tied
    whole = Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert (whole.lm_head.weight is whole.model.language_model.embed_tokens.weight) == tied
    same_function(loaded, whole)


TRANSFORMERS = {
    "llama": LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "llama3": LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    ),
    "mistral": MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=None,
    ),
    "qwen2": Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "qwen3": Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_attention_alone_computes_the_same_with_new_blocks(kind: str, tmp_path: Path) -> None:
    theirs = transformer(kind, tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "run", ["model.delta_key_dim=4"], delta_every=2)
    loaded, settings = open_model(tmp_path / "run")
    assert settings.model.layers == ["attention", "delta", "attention", "attention"]
    assert settings.model.delta_key_dim == 4
    same_function(loaded, theirs)
    loaded.sleep.window = 6
    grads = tiny.gradients(loaded, loaded(tiny.sequences(12)).loss)
    zero = [name for name, p in loaded.named_parameters() if not p.any() and p.dim() == 2]
    assert len(zero) == 5 and all(grads[name].any() for name in zero)  # they can be trained


def transformer(kind: str, place: Path) -> PreTrainedModel:
    """A saved model whose norms are not all one."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(TRANSFORMERS[kind])
    for name, p in theirs.named_parameters():
        if "norm" in name:
            p.data = 1 + 0.3 * torch.randn_like(p)
        if "bias" in name:
            p.data = torch.randn_like(p)
    theirs.save_pretrained(place)
    return theirs


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_head_that_lies_beside_a_tied_embedding_is_the_head(kind: str, tmp_path: Path) -> None:
    """transformers writes such a folder for a model whose head was given its own weights."""
    theirs = transformer(kind, tmp_path / "hf")
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(64, 32))
    theirs.save_pretrained(tmp_path / "hf")
    edit(tmp_path / "hf/config.json", tie_word_embeddings=True)
    said = import_folder(tmp_path / "hf", tmp_path / "run")
    assert "lm_head.weight differs: kept" in said[0]
    same_function(open_model(tmp_path / "run")[0], theirs)
    same_function(open_model(tmp_path / "run")[0], read_back(tmp_path / "hf"))


def read_back(place: Path) -> PreTrainedModel:
    """A folder as loaded by transformers."""
    theirs: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place)
    return theirs


def test_the_head_of_an_export_that_transformers_has_changed(model: Path, tmp_path: Path) -> None:
    settings = config(model, layers=ADAD, tie_embeddings=True)
    export(write_run(tmp_path / "run", settings), tmp_path / "hf")
    theirs = read_back(tmp_path / "hf")
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(settings.model.vocab_size, 32))
    theirs.save_pretrained(tmp_path / "hf")
    edit(tmp_path / "hf/config.json", tie_word_embeddings=True)
    same_function(open_model(tmp_path / "hf")[0], theirs)


def test_the_old_name_of_the_rotation_goes_before_the_new_one(tmp_path: Path) -> None:
    transformer("qwen3", tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    edit(path, rope_scaling={"rope_type": "default", "rope_theta": 30.0})
    import_folder(tmp_path / "hf", tmp_path / "run")
    loaded, settings = open_model(tmp_path / "run")
    assert settings.model.rope_theta == 30.0  # and not the 1e6 of rope_parameters
    same_function(loaded, read_back(tmp_path / "hf"))
    multimodal(tmp_path / "hybrid")
    edit(tmp_path / "hybrid/config.json", nested=True, rope_scaling={"type": "yarn", "factor": 4.0})
    with pytest.raises(UserError, match="rope_scaling has rope_type = 'yarn'; only 'default'"):
        import_folder(tmp_path / "hybrid", tmp_path / "other")


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    """A folder of several files looks like this after a model is saved into it as one file."""
    transformer("qwen3", tmp_path / "hf").save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    theirs = AutoModelForCausalLM.from_config(TRANSFORMERS["qwen3"])
    save_file(theirs.state_dict(), tmp_path / "hf/model.safetensors", {"format": "pt"})
    assert (tmp_path / "hf/model.safetensors.index.json").exists()
    import_folder(tmp_path / "hf", tmp_path / "run")
    same_function(open_model(tmp_path / "run")[0], theirs)
    same_function(open_model(tmp_path / "run")[0], read_back(tmp_path / "hf"))


def ready(corpus: Path, place: Path) -> list[str]:
    """An imported run, and the settings that a user would train it with."""
    settings = config(corpus / "small.model", layers=ADAD)
    export(write_run(place / "given", settings), place / "hf")
    import_folder(place / "hf", place / "taught")
    shards = corpus / "shards"
    return [
        f'data.train=[{{path="{shards}/train"}}]', f"data.heldout={shards}/heldout",
        "data.windows=2", "sleep.passes=2", "sleep.window=8", "sleep.prelude=1",
        "train.steps=4", "train.batch=4", "train.checkpoint_every=2", "train.eval_every=4",
        "train.eval_batches=1", "optimizer.warmup=0",
    ]  # fmt: skip


def test_it_trains_with_other_settings_than_it_was_imported_with(
    corpus: Path, tmp_path: Path
) -> None:
    given, overrides = tmp_path / "taught/config.toml", ready(corpus, tmp_path)
    run = train(load(given, [*places(given), *overrides]), progress=False)
    assert run == tmp_path / "taught"
    first = runs.rows(run)[0]
    assert (first["kind"], first["step"], first["passes"]) == ("eval", 0, 2)
    before, after = runs.tensors(tmp_path / "given", 7), runs.tensors(run, 4)
    weights = {name for name in after if name.startswith("model/")}
    assert weights == before.keys()
    assert all(not torch.equal(after[name], before[name]) for name in weights)
    assert all((after[name] - before[name]).abs().max() < 0.2 for name in weights)

    saved = load(given, places(given))  # now it is a run like any other
    assert saved.sleep.passes == 2
    saved.sleep.passes = 3
    with pytest.raises(UserError, match=r"sleep\.passes = 3 \(was 2\)"):
        train(saved, progress=False)


def test_its_shape_stays(corpus: Path, tmp_path: Path) -> None:
    given, overrides = tmp_path / "taught/config.toml", ready(corpus, tmp_path)
    with pytest.raises(UserError, match=r"model\.mlp_width = 64 \(was 48\)"):
        train(load(given, [*places(given), *overrides, "model.mlp_width=64"]), progress=False)
    with pytest.raises(UserError, match=r"model\.mlp_width: fixed by .*; leave it out"):
        import_folder(tmp_path / "hf", tmp_path / "other", ["model.mlp_width=64"])


LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "phi3"},
            r"import supports qwen3_5_text, llama, mistral, qwen2 and qwen3; this is phi3$",
        ),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "this is gemma3$"),
        ({"model_type": None}, "qwen3; this names no model_type$"),
        ({"attention_bias": True}, "attention_bias = True; only False is supported"),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            "low_freq_factor = None; only 1 is supported",
        ),
        ({"rope_parameters": LLAMA3}, r"/config\.json: factor is missing"),
        (
            {"rope_parameters": LLAMA3 | {"factor": 8}, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings = 4096; only 8192 is supported",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters has a separate table for full_attention",
        ),
        ({"head_dim": "8"}, "head_dim = '8': must be a whole number"),
        ({"model_type": "mistral"}, "sliding_window = 4096; if sleep.window is never to exceed"),
        ({"model_type": "mistral", "sliding_window": 512}, "sliding_window = 512; if sleep.window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling has rope_type = 'yarn'"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\.\S+ is missing"),
        ({"num_hidden_layers": 2}, r"model\.layers\.2\.\S+ is not supported"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is more than 10,000"),
        ({"hidden_size": "32"}, "must be whole numbers"),
        ({"vocab_size": 63}, r"embed_tokens\.weight is \[64, 32\] instead of \[63, 32\]"),
    ],
)
def test_refused_by_name(change: dict[str, object], message: str, tmp_path: Path) -> None:
    transformer("llama", tmp_path / "hf")
    edit(tmp_path / "hf/config.json", **change)
    with pytest.raises(UserError, match=message):
        import_folder(tmp_path / "hf", tmp_path / "run", ["sleep.passes=1"])
    assert [each.name for each in tmp_path.iterdir()] == ["hf"]


def test_what_is_no_folder_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours/quantised").mkdir(parents=True)
    (tmp_path / "ours/quantised/q4.gguf").touch()
    for given, told in {
        "Qwen/Qwen3-0.6B": "no such folder; if it is on the Hugging Face Hub, download it first: "
        "hf download Qwen/Qwen3-0.6B --local-dir FOLDER",
        "ours/Qwen3-0.6B": "no such folder",  # a typo in a path
        "../Qwen3": "no such folder",
        "model.gguf": "GGUF cannot be imported; give the safetensors folder it was made from",
        "ours/quantised": "/q4.gguf: GGUF cannot be imported; give the safetensors folder it was "
        "made from",
    }.items():
        with pytest.raises(UserError) as error:
            import_folder(Path(given), tmp_path / "run")
        colon = "" if told.startswith("/") else ": "
        assert str(error.value) == f"{given}{colon}{told}"


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_is_refused(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only the tensors show it; and before anything is written."""
    hf = tmp_path / "hf"
    multimodal(hf) if kind == "hybrid" else transformer("llama", hf)
    weights = tensors(hf)
    name = next(name for name in weights if name.endswith("layers.2.mlp.up_proj.weight"))
    weights[name] = weights[name].to(dtype)
    save_file(weights, hf / "model.safetensors", {"format": "pt"})
    told = rf"model\.safetensors: tensor {name} is {str(dtype)[6:]}; quantised models are not"
    with pytest.raises(UserError, match=told):
        import_folder(hf, tmp_path / "run")
    edit(hf / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(UserError, match=r"config\.json: has a quantization_config; quantised"):
        import_folder(hf, tmp_path / "run")
    save_file(weights | {f"{name}_scale_inv": torch.ones(1)}, hf / "model.safetensors")
    edit(hf / "config.json", quantization_config=None)
    monkeypatch.setattr("pretrain.convert.into_run.new_folder", pytest.fail)
    with pytest.raises(UserError, match="_scale_inv"):
        import_folder(hf, tmp_path / "run")


def test_llama_without_norms_of_queries_is_not_exported(tmp_path: Path) -> None:
    transformer("llama", tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "run", ["data.task=depo", "sleep.prelude=1"])
    with pytest.raises(UserError, match=r"model\.attention_qk_norm = false"):
        export(tmp_path / "run", tmp_path / "out")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformer("qwen3", tmp_path / "hf")
    arguments = ["import", str(tmp_path / "hf"), str(tmp_path / "run"), "--delta-every", "1"]
    assert main([*arguments, "sleep.passes=2"]) == 0
    said = capsys.readouterr()
    assert "next: hypnos train" in said.out and "no tokenizer was imported" in said.err
    assert open_model(tmp_path / "run")[1].model.layers == ["delta", "attention"] * 3
    task = tmp_path / "a task"  # a task makes its own data
    assert main(["import", str(tmp_path / "hf"), str(task), "data.task=rule110"]) == 0
    said = capsys.readouterr()
    assert said == (f"wrote {task}; next: hypnos train '{task}/config.toml'\n", "")


def test_a_model_without_a_tokenizer_takes_one_along(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf, run = tmp_path / "hf", tmp_path / "run"
    export(write_run(tmp_path / "given", config(model, layers=ADAD)), hf)
    for path in hf.glob("*token*"):
        path.unlink()
    assert main(["import", str(hf), str(run), f"data.tokenizer={model}"]) == 0
    assert "no tokenizer" not in capsys.readouterr().err
    assert (run / "tokenizer.model").read_bytes() == model.read_bytes()
    assert load(run / "config.toml").data.tokenizer == str(run / "tokenizer.model")
    transformer("qwen3", tmp_path / "small")
    assert main(["import", str(tmp_path / "small"), str(tmp_path / "s"), f"data.tokenizer={model}"])
    assert "the tokenizer has " in capsys.readouterr().err and not (tmp_path / "s").exists()
