"""An exported folder is the same model and tokenizer in transformers, and when read back by us."""

from __future__ import annotations

import json
import shutil
import stat
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3_5ForCausalLM

from launch.cli import main
from pretrain.checkpoint import Checkpoint, open_checkpoint
from pretrain.config.load import load
from pretrain.config.schema import (
    Config,
    DataConfig,
    QuestionsConfig,
    Rule110Config,
    SleepConfig,
)
from pretrain.convert import card, folder
from pretrain.convert.engines import reasons
from pretrain.convert.export import export
from pretrain.convert.into_run import import_folder
from pretrain.convert.load import open_model
from pretrain.errors import UserError
from pretrain.evaluate import evaluate_run
from pretrain.inference.decode import Decoder
from pretrain.inference.generate import continue_text, generate, open_run
from pretrain.inference.sampling import Sampling
from pretrain.inference.session import Session
from tests.convert.made import ADAD, DDDA, build, config, weights, write_run
from tests.documents import program
from tests.model import tiny
from tokenizer.encode import Tokenizer

PORTABLE = Path(__file__).parents[2] / "configs/portable.toml"
CASES = {
    "interval, grouped, untied": {"layers": DDDA},
    "attention first, equal heads, tied": {
        "layers": ADAD, "tie_embeddings": True, "attention_kv_heads": 4, "delta_key_heads": 4,
    },
    "other widths of keys and values, all rotated": {
        "layers": ["delta", "attention"], "delta_key_dim": 4, "delta_value_dim": 12,
        "rotary_fraction": 1.0, "rope_theta": 1e6, "delta_conv_width": 3, "norm_eps": 1e-5,
    },
}  # fmt: skip


def ours(settings: Config, ids: list[int]) -> Tensor:
    """Logits [T, vocabulary] after each token, N = 1 in one window."""
    model = build(settings, SleepConfig(passes=1, window=len(ids) + 1))
    return Session(Decoder(model)).read(ids, every=True)


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_the_same_function(case: str, model: Path, tmp_path: Path) -> None:
    settings = config(model, **CASES[case])
    said = export(write_run(tmp_path / "run", settings), tmp_path / "out")
    assert said.step == 7 and "ids and text identical" in said.lines[0]

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert type(theirs) is Qwen3_5ForCausalLM and theirs.dtype == torch.float32
    text = "A window is read, slept over and forgotten. " * 3
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").encode(text)
    assert ids == Tokenizer.load(model).encode(text) and len(ids) > 70  # more than a chunk of 64
    with torch.inference_mode():
        logits = theirs(torch.tensor([ids])).logits[0]
    expected = ours(settings, ids)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_program_of_the_documents(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(write_run(tmp_path / "run", config(model)), tmp_path / "runs/first-hf")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(program("formats.md"), {})
    assert capsys.readouterr().out.startswith("import ")


def test_what_an_export_says_of_itself(model: Path, tmp_path: Path) -> None:
    settings = config(model, SleepConfig(passes=3, window=16, prelude=1, coda=1))
    export(write_run(tmp_path / "run", settings), tmp_path / "out")
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert said["model_type"] == "qwen3_5_text" and said["full_attention_interval"] == 4
    assert said["rope_parameters"]["mrope_section"] == [1, 1, 1]
    assert said["hypnos"] == {
        "version": 1, "task": "text", "step": 7, "passes": 3, "window": 16, "when": "always",
        "eviction": "hard", "prelude": 1, "coda": 1,
        "evaluation": {"batch": 32, "eval_batches": 4, "windows": 4, "repeats": 1},
    }  # fmt: skip
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == said["eos_token_id"] == Tokenizer.load(model).eos
    written = (tmp_path / "out/README.md").read_text()
    assert "5.4321" in written and "7 tokens in 7 steps" in written
    forgets = "and then to forget its keys and values (hard eviction)"
    assert f" blocks 1 to 2, counted from 0, {forgets}.\n" in written
    for path in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path


@pytest.mark.parametrize(
    ("sleep", "said"),
    [
        (SleepConfig(passes=3, window=16), "N = 3 passes over a full one, and then to forget its"),
        (
            SleepConfig(passes=1, window=16, eviction="sliding"),
            "N = 1 pass over a full one, and then to keep only the keys and values of the last "
            "15 tokens (sliding eviction).",
        ),
        (
            SleepConfig(passes=2, window=16, prelude=1, eviction="none"),
            "blocks 1 to 3, counted from 0, and then to keep its keys and values (no eviction).",
        ),
    ],
)
def test_the_card_says_what_a_window_leaves(
    sleep: SleepConfig, said: str, model: Path, tmp_path: Path
) -> None:
    run, settings = write_run(tmp_path / "run", config(model)), config(model)
    settings.sleep = sleep
    written = card.text(open_checkpoint(run)[0], settings, "out")
    assert said in written and ",," not in written


def test_shards(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(model)
    monkeypatch.setattr(folder, "MAX_SHARD", 40_000)
    export(write_run(tmp_path / "run", settings), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert torch.equal(loaded["model.norm.weight"], weights(settings)["norm.weight"])
    back, _ = open_model(tmp_path / "out")
    assert tiny.equal(dict(back.named_parameters()), weights(settings))


def test_read_back_it_is_the_same_model(model: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(model))
    export(run, tmp_path / "out")
    one, settings = open_model(run)
    two, exported = open_model(tmp_path / "out")
    assert tiny.equal(dict(two.named_parameters()), dict(one.named_parameters()))
    assert (exported.model.layers, exported.sleep) == (settings.model.layers, settings.sleep)
    prompt = "def sleep(window):"
    texts = []
    for one in (run, tmp_path / "out"):
        started = continue_text(*open_run(one), prompt, Sampling(), max_tokens=40)
        texts.append("".join(piece.text for _, piece in generate(started)))
    assert texts[0] == texts[1] != ""


def test_half_precision(model: Path, tmp_path: Path) -> None:
    settings = config(model)
    export(write_run(tmp_path / "run", settings), tmp_path / "out", "bf16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    back, _ = open_model(tmp_path / "out")
    assert back.dtype == torch.float32
    rounded = {name: p.bfloat16().float() for name, p in weights(settings).items()}
    assert tiny.equal(dict(back.named_parameters()), rounded)


def test_memory_holds_one_tensor(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a tensor is read, those read before its own group have been freed."""
    run, alive, most = write_run(tmp_path / "run", config(model)), [], 0
    read = Checkpoint.tensor

    def watched(*args: object, **settings: object) -> Tensor:
        nonlocal most
        most = max(most, sum(tensor() is not None for tensor in alive))
        tensor = read(*args, **settings)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", watched)
    export(run, tmp_path / "out")
    assert len(alive) > 50 and most == 2  # q, k and v become one tensor


def test_a_task_without_a_tokenizer_goes_out_without_one(model: Path, tmp_path: Path) -> None:
    settings = config(model)
    settings.data = DataConfig(task="rule110")
    said = export(write_run(tmp_path / "run", settings), tmp_path / "out")
    assert said.lines[0] == "no tokenizer: the task 'rule110' has none"
    assert not list((tmp_path / "out").glob("tokenizer*"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    # and no advice needs one
    written = (tmp_path / "out/README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained" in written
    assert "AutoTokenizer" not in written and "hypnos generate" not in written


def test_of_a_task_it_is_judged_on_the_rows_of_its_run(model: Path, tmp_path: Path) -> None:
    settings = config(model)
    settings.data = DataConfig(task="rule110")
    settings.rule110 = Rule110Config(width=16, steps=3)  # not the defaults
    settings.train.batch, settings.train.eval_batches = 4, 1
    run = write_run(tmp_path / "run", settings)
    export(run, tmp_path / "out")
    assert not import_folder(tmp_path / "out", tmp_path / "in")
    for place in (tmp_path / "out", tmp_path / "in"):
        losses = [[row["loss"] for row in evaluate_run(each)] for each in (run, place)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_the_command_says_which_step_it_wrote(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not always the newest. It also says what to do next, if anything."""
    run, out = write_run(tmp_path / "run", config(model)), tmp_path / "a model"
    write_run(run, config(model), step=9)
    (run / "checkpoints/step-9/index.json").unlink()
    assert main(["export", str(run), str(out), "--to", "hf"]) == 0
    assert (
        capsys.readouterr().out
        == f"wrote {out} (step 7); next: hypnos generate '{out}' --prompt TEXT\n"
    )
    assert "hypnos generate 'a model'" in (out / "README.md").read_text()
    assert main(["export", str(run), str(tmp_path / "out.gguf"), "--to", "gguf"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/out.gguf (step 7)\n"
    settings = config(model)
    settings.data = DataConfig(task="rule110")
    task = write_run(tmp_path / "task", settings)
    assert main(["export", str(task), str(tmp_path / "task-hf"), "--to", "hf"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/task-hf (step 7)\n"
    settings.data = DataConfig(task="stories", tokenizer=str(model))
    stories = write_run(tmp_path / "stories", settings)
    shutil.copy(model, stories / "tokenizer.model")
    assert main(["export", str(stories), str(tmp_path / "stories-hf"), "--to", "hf"]) == 0
    assert f"next: hypnos generate {tmp_path}/stories-hf --prompt" in capsys.readouterr().out
    card = (tmp_path / "stories-hf/README.md").read_text()
    assert "hypnos generate stories-hf --context-file FILE --prompt" in card


def test_no_path_of_this_machine_is_told(model: Path, tmp_path: Path) -> None:
    settings, mine = config(model), str(tmp_path / "mine.jsonl")
    settings.data = DataConfig(task="questions", tokenizer=str(model))
    settings.questions = QuestionsConfig(path=mine, heldout=mine)
    run = write_run(tmp_path / "run", settings)
    shutil.copy(model, run / "tokenizer.model")
    export(run, tmp_path / "out")
    written = [path for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".md")]
    assert len(written) > 3 and not any(str(tmp_path) in path.read_text() for path in written)


def test_where_it_is_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, empty = write_run(tmp_path / "run", config(model)), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "link").symlink_to(empty)
    export(run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (empty / "config.json").exists()
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/file/a/b: cannot be .* {tmp_path}/file, a file"
    ):
        export(run, tmp_path / "file/a/b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^\.: is the current folder"):
        export(run, Path())


def test_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", config(model)), tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UserError, match="already exists"):
        export(run, out)
    assert [path.name for path in out.iterdir()] == ["mine"]

    weight = next((run / "checkpoints").glob("*/model.1.safetensors"))
    weight.write_bytes(weight.read_bytes()[:-1])
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        export(run, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


@pytest.mark.parametrize(
    ("shape", "sleep", "named"),
    [
        ({"attention_qk_norm": False}, {}, "model.attention_qk_norm = false"),
        ({"delta_negative_eigenvalues": True}, {}, "model.delta_negative_eigenvalues = true"),
        ({}, {"carries": "h"}, r"its \[sleep\] settings are a control"),
    ],
)
def test_another_model_than_qwen3_5_is_refused_by_name(
    shape: dict[str, object], sleep: dict[str, str], named: str, model: Path, tmp_path: Path
) -> None:
    settings = config(model, SleepConfig(passes=1, window=16, **sleep), **shape)
    with pytest.raises(UserError, match=f"{named}: no other software supports such a model"):
        export(write_run(tmp_path / "run", settings), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_every_engine_reads_the_portable_shape() -> None:
    """For the recipes tests/study/build_recipes.py says it."""
    assert not any(reasons(load(PORTABLE)).values())


def test_weights_that_are_not_finite_leave_nothing_behind(model: Path, tmp_path: Path) -> None:
    settings = config(model, d_model=32)
    run = write_run(tmp_path / "run", settings)
    with pytest.MonkeyPatch.context() as patched:
        read = Checkpoint.tensor
        patched.setattr(Checkpoint, "tensor", lambda *a, **k: read(*a, **k).mul_(float("inf")))
        with pytest.raises(UserError, match=r"embed_tokens\.weight is not finite"):
            export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hypnos": None}, "has no sleep settings"),
        ({"hypnos": {"version": 9}}, "version 9"),
        ({"model_type": "llama"}, "model_type = 'llama'"),
        ({"hidden_size": "32"}, "model.d_model must be a whole number"),
        ({"hidden_size": 33}, r"embed_tokens.weight is \[\d+, 32\] instead of \[\d+, 33\]"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types must be a list"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "partial_rotary_factor"),
    ],
)
def test_a_folder_that_cannot_be_read(
    change: dict[str, object], message: str, exported: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in exported.iterdir():
        (copy / path.name).symlink_to(path)
    said = json.loads((exported / "config.json").read_text()) | change
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        open_model(copy)


@pytest.fixture(scope="module")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    export(write_run(place / "run", config(model)), place / "out")
    return place / "out"
