"""Teaching a pretrained model to sleep: the new blocks alone, then all, from run to run."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launch.cli import main
from pretrain.config.run_folder import load_run
from pretrain.config.schema import Rule110Config, RunConfig
from pretrain.errors import UserError
from pretrain.run.resume import take_folder
from pretrain.tasks.rule110 import Rule110
from pretrain.tasks.source import TaskSource
from pretrain.trainer import train
from tests import runs
from tests.convert.made import config, write_run
from tests.convert.test_import import transformer
from tests.data.texts import make_texts
from tokenizer.train import train as train_tokenizer

TASK = [
    "data.task=depo", "depo.nodes=4", "depo.vocabulary=8", "depo.max_hops=2", "depo.context=8",
    "depo.queries=2", "depo.name_tokens=[1, 1]", "sleep.window=8", "sleep.when=context",
    "train.batch=4", "train.eval_batches=1", "train.checkpoint_every=2", "optimizer.warmup=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teach")
    transformer("llama", folder / "hf")
    sizes = ["sleep.passes=2", "sleep.prelude=0", "sleep.coda=0", "model.delta_key_dim=4"]
    command = ["import", str(folder / "hf"), str(folder / "imported"), "--delta-every", "2"]
    assert main([*command, *sizes, *TASK]) == 0
    return folder / "imported"


def phase(place: Path, name: str, start: Path, *overrides: str, steps: int = 4) -> Path:
    """A run that begins with another's weights, with a minimal configuration."""
    place.mkdir(exist_ok=True)
    file = place / f"{name}.toml"
    file.write_text(f'[run]\nname = "{name}"\n[sleep]\npasses = 2\n[train]\nsteps = {steps}\n')
    given = [f"run.dir={place}", f"run.init_from={start}", *TASK, *overrides]
    return train(load_run(file, given), progress=False)


def weights(run: Path, step: int) -> dict[str, Tensor]:
    return {n: t for n, t in runs.tensors(run, step).items() if n.startswith("model/")}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_new_blocks_then_all(imported: Path, tmp_path: Path) -> None:
    first = phase(tmp_path, "first", imported, "optimizer.update=delta")
    given, taught = weights(imported, 0), weights(first, 4)
    new = {name for name in given if name.startswith("model/blocks.1.")}  # 1 is the delta block
    assert changed(given, taught) == new
    moments = {n for n in runs.tensors(first, 4) if n.startswith("optimizer/")}
    assert moments and all(".blocks.1." in name for name in moments)
    second = phase(tmp_path, "second", first / "checkpoints/step-4")
    assert changed(taught, weights(second, 4)) == set(given)
    (ends,) = [r["loss"] for r in runs.rows(first) if r["kind"] == "eval" and r["step"] == 4
               and r["passes"] == 2]  # fmt: skip
    (begins,) = [r["loss"] for r in runs.rows(second) if r["kind"] == "eval" and r["step"] == 0
                 and r["passes"] == 2]  # fmt: skip
    assert begins == ends


@pytest.mark.parametrize("same_command", [True, False])
def test_stopped_and_gone_on_with_is_the_same_run(
    imported: Path, tmp_path: Path, same_command: bool
) -> None:
    """Also if what it began with no longer exists."""
    whole = phase(tmp_path / "a", "run", imported, "optimizer.update=delta")
    start = tmp_path / "start"
    start.mkdir()
    (start / "imported").symlink_to(imported)
    half = phase(tmp_path / "b", "run", start / "imported", "optimizer.update=delta", steps=2)
    (start / "imported").unlink()
    if same_command:
        phase(tmp_path / "b", "run", start / "imported", "optimizer.update=delta", steps=4)
    else:
        train(load_run(half / "config.toml", ["train.steps=4"]), progress=False)
    assert not changed(runs.tensors(whole, 4), runs.tensors(half, 4))


def test_moments_come_along_if_asked_for(imported: Path, tmp_path: Path) -> None:
    """Compares a step with them and one without, from the same weights on the same rows."""
    before = phase(tmp_path, "before", imported)
    one = ["train.checkpoint_every=1", "optimizer.clip=1e9"]
    anew, along = (
        runs.tensors(phase(tmp_path, name, before, *one, *with_moments, steps=1), 1)
        for name, with_moments in (("anew", []), ("along", ["run.init_moments=true"]))
    )
    had, factors = runs.tensors(before, 4), {"momentum": 0.95, "exp_avg": 0.9, "exp_avg_sq": 0.95}
    moments = [name for name in had if name.startswith("optimizer/")]
    assert {name.split("/")[1].split(".")[0] for name in moments} == factors.keys()
    for name in moments:
        factor = factors[name.split("/")[1].split(".")[0]]
        torch.testing.assert_close(along[name], factor * had[name] + anew[name])
        assert had[name].any() or name.endswith("mixer.gate.weight"), name
    counts = [
        json.loads((run / "checkpoints/step-1/state.json").read_text())["optimizer"]["adam_steps"]
        for run in (tmp_path / "anew", tmp_path / "along")
    ]
    assert counts == [1, 5]
    with pytest.raises(UserError, match="was imported, so it has no moments; leave"):
        phase(tmp_path, "none", imported, "run.init_moments=true")
    with pytest.raises(UserError, match=r'optimizer\.name = "adamw": .*step-4 has the moments of'):
        phase(tmp_path, "other", before, "run.init_moments=true", "optimizer.name=adamw")


def test_refused(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step-0 cannot be used with model\.mlp_width = 64"):
        phase(tmp_path, "other", imported, "model.mlp_width=64")
    with pytest.raises(UserError, match=r"^run\.init_from = .*nowhere: has no config\.toml"):
        phase(tmp_path, "none", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^run\.init_from = /: has no config\.toml"):
        phase(tmp_path, "none", Path("/"))
    with pytest.raises(UserError, match=r'optimizer\.update = "delta": model\.layers has no'):
        phase(tmp_path, "attention", imported, "optimizer.update=delta",
              "sleep.passes=1", 'model.layers=["attention"]')  # fmt: skip


def test_another_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    """Its ids would mean other text to weights of the same shape."""
    start, other = write_run(tmp_path / "start", config(model)), tmp_path / "other.model"
    train_tokenizer(make_texts(60, seed=8), other, vocab_size=320)
    copied = Path(shutil.copyfile(model, tmp_path / "copy.model"))
    begins = replace(config(copied), run=RunConfig(init_from=str(start)))
    own = start / "tokenizer.model"
    unread = TaskSource(Rule110(Rule110Config(width=8, rings=2, steps=3), 8), 4, seed=0)
    with ExitStack() as cleanup:
        found = take_folder(tmp_path / "same", begins, unread, cleanup)
        assert found is not None and found.folder == start / "checkpoints/step-7"
        begins.data = replace(begins.data, tokenizer=str(other))
        told = rf"^data\.tokenizer = {other}: .* set data\.tokenizer={own}"
        with pytest.raises(UserError, match=told):
            take_folder(tmp_path / "other", begins, unread, cleanup)
        own.write_bytes(own.read_bytes()[:-1])
        with pytest.raises(UserError, match=rf"^{own}: damaged"):
            take_folder(tmp_path / "damaged", begins, unread, cleanup)
