"""A run folder moved elsewhere on its own can generate, be evaluated, and be trained further."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch.cli import main
from parallel import mesh
from pretrain.evaluate import evaluate_run
from pretrain.inference.generate import continue_text, generate, open_run
from pretrain.inference.sampling import Sampling
from pretrain.trainer import train
from tests.run.conftest import MakeConfig
from tests.runs import assert_same_run


def written(run: Path) -> str:
    """What a run's model generates after "a"."""
    started = continue_text(*open_run(run), "a", Sampling(), max_tokens=5)
    return "".join(piece.text for _, piece in generate(started))


def test_a_run_is_used_where_it_has_been_moved_to(
    text: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = text("whole")
    corpus = tmp_path / "corpus"
    shutil.copytree(Path(config.data.heldout).parent, corpus)
    shutil.copy(config.data.tokenizer, tmp_path / "given.model")
    monkeypatch.chdir(tmp_path)
    config.data.tokenizer, config.data.heldout = "given.model", "corpus/heldout"
    config.data.train[0].path, config.run.dir = "corpus/train", "runs"
    whole = train(config, progress=False).absolute()
    expected = evaluate_run(whole), written(whole)
    config.run.name, config.train.steps = "parts", 3
    parts = train(config, progress=False).absolute()

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved, copy = elsewhere / "moved", elsewhere / "copy"
    parts.rename(moved)
    shutil.copytree(whole, copy)
    shutil.rmtree(whole.parent)
    corpus.rename(elsewhere / "shards")
    (tmp_path / "given.model").unlink()
    monkeypatch.chdir(elsewhere)

    assert written(Path("copy/checkpoints/step-6")) == expected[1]
    assert main(["eval", "copy"]) == 2
    told = 'data.heldout = "corpus/heldout": does not exist in'
    assert told in capsys.readouterr().err
    lines: list[str] = []
    found = evaluate_run(Path("copy"), None, ["data.heldout=shards"], say=lines.append)
    assert found == expected[0]
    assert len(lines) == 1 and lines[0].startswith("evaluated on ")
    (low, *_) = evaluate_run(Path("copy"), None, ["data.heldout=shards"], precision="bf16")
    assert low["loss"] != found[0]["loss"] == pytest.approx(low["loss"], rel=1e-2)
    assert main(["doctor", "copy"]) == 0
    assert "tokenizer      whole" in capsys.readouterr().out

    go_on = ["train", "moved/config.toml", "train.steps=6"]
    assert main(go_on) == 2
    assert 'data.train[0].path = "corpus/train": does not exist in' in capsys.readouterr().err
    try:
        assert main([*go_on, 'data.train=[{path="shards"}]', "data.heldout=shards"]) == 0
    finally:
        mesh.initialize()  # `hypnos train` leaves the world, and the next test needs one
    assert_same_run(moved, copy)
    assert not (elsewhere / "runs").exists()
