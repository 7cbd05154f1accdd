"""Other readers can read what is written; a kill leaves checkpoints whole; old ones are deleted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint import (
    Checkpoint,
    latest_valid,
    open_checkpoint,
    read,
    steps,
    verify,
)
from pretrain.checkpoint.folder import given_up, make_latest, pointed_at, remove_incomplete
from pretrain.checkpoint.index import Slices
from pretrain.convert.load import open_model
from pretrain.errors import UserError
from pretrain.files import sync
from pretrain.model.sleep import SleepLM
from tests.checkpoint.written import CONFIG, STATE, write
from tests.run import reference

FILES = (
    "model.0.safetensors",
    "optimizer.0.safetensors",
    "state.0.safetensors",
    "state.json",
    "config.toml",
)


def test_layout_is_plain_safetensors_and_json(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    assert {p.name for p in folder.iterdir()} == {*FILES, "index.json"}
    for name, entry in json.loads((folder / "index.json").read_text())["files"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert json.loads((folder / "state.json").read_text()) == {"step": 3, **STATE}
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-3\n"
    expected = dict(reference.model(seed=3).named_parameters())
    saved = load_file(folder / "model.0.safetensors")
    assert saved.keys() == expected.keys() and all(
        torch.equal(saved[n], expected[n]) for n in saved
    )


def test_a_model_is_opened_from_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    first, _ = write(tmp_path, 1), write(tmp_path, 2)
    batch = reference.batch(0)
    for folder, seed in ((tmp_path, 2), (first, 1)):
        model, config = open_model(folder)
        assert config == CONFIG
        assert torch.equal(model(batch).loss, reference.model(seed)(batch).loss)
    with pytest.raises(UserError, match="nothing: does not exist; `hypnos train` prints where"):
        open_model(tmp_path / "nothing")


def test_the_newest_are_kept_and_the_pointer_decides(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        write(tmp_path, step, keep=2)
    assert steps(tmp_path) == [15, 20]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    (tmp_path / "checkpoints" / "latest").write_text("step-15\n")
    found = latest_valid(tmp_path, pytest.fail)
    assert found is not None and found.step == 15
    write(tmp_path, 20, keep=2)  # the run reaches step 20 again
    assert steps(tmp_path) == [15, 20]
    assert latest_valid(tmp_path / "other", pytest.fail) is None


def test_what_a_run_deletes_meanwhile_leaves_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that continues saves and deletes while another process reads."""
    first, trained = Checkpoint.open(write(tmp_path, 1)), iter(range(2, 9))

    def meanwhile(folder: Path, until: int) -> Slices:
        if steps(tmp_path)[0] < until:
            write(tmp_path, next(trained), keep=1)
        return verify(folder)

    monkeypatch.setattr(read, "verify", lambda folder: meanwhile(folder, 3))
    found, _ = open_checkpoint(tmp_path)
    assert found.step == 3 and capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"step-1: deleted .* train\.keep$"):
        first.tensor("model", first.names("model")[0])
    monkeypatch.setattr(read, "verify", lambda folder: meanwhile(folder, 9))
    with pytest.raises(UserError, match=r"step-5: deleted while it was read, .* train\.keep$"):
        open_checkpoint(tmp_path)


def test_milestones_stay(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10, 12, 14):
        write(tmp_path, step, keep=2, keep_every=4)
    assert steps(tmp_path) == [4, 8, 12, 14]
    write(tmp_path, 16, keep=1, keep_every=8)  # no longer milestones
    assert steps(tmp_path) == [8, 16]
    write(tmp_path, 18, keep=1)
    assert steps(tmp_path) == [18]


def test_what_comes_after_the_one_to_go_on_from_leaves_the_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is killed midway, the next start does the rest."""
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    rename, killed = Path.rename, KeyboardInterrupt("killed")

    def renames(path: Path, target: Path) -> Path:
        if path.name == "step-4":
            raise killed
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", renames)
        make_latest(tmp_path, 2)
    assert steps(tmp_path) == [1, 2, 4] and pointed_at(tmp_path) == 2
    assert "step-4" in str(make_latest(tmp_path, 2))
    assert steps(tmp_path) == [1, 2] and make_latest(tmp_path, 2) is None
    for name in given_up(tmp_path):
        assert Checkpoint.open(tmp_path / "checkpoints" / name).run == tmp_path
    assert len(given_up(tmp_path)) == 2


def test_a_save_that_was_killed_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    killed = KeyboardInterrupt("killed")
    for name in (
        "pretrain.checkpoint.write.describe",
        "pretrain.checkpoint.write.sync",
        "pathlib.Path.rename",
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(name, lambda *a: (_ for _ in ()).throw(killed))
            write(tmp_path, 2)
        found = latest_valid(tmp_path, pytest.fail)
        assert found is not None and found.step == 1
    write(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]


def test_what_cannot_be_deleted_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system a folder stays while a reader has one of its files open."""

    def busy(path: Path, ignore_errors: bool = False) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        for step in (1, 2, 3):
            write(tmp_path, step, keep=1)
        remove_incomplete(tmp_path)
    assert steps(tmp_path) == [3]
    assert {path.name for path in (tmp_path / "checkpoints").glob(".*")} == {
        ".step-1.old",
        ".step-2.old",
    }
    remove_incomplete(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_checkpoint_of_another_model_is_refused_by_tensor(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path, 1))
    with pytest.raises(
        UserError, match=r"tensor embed\.weight is \[37, 24\], but the model's is \[38, 24\]"
    ):
        checkpoint.load_weights(SleepLM(replace(reference.MODEL, vocab_size=38), reference.SLEEP))
    with pytest.raises(UserError, match=r"tensor head\.weight does not belong to the model"):
        checkpoint.load_weights(
            SleepLM(replace(reference.MODEL, tie_embeddings=True), reference.SLEEP)
        )
    with pytest.raises(UserError, match=r"index\.json: tensor nothing is missing from model"):
        checkpoint.tensor("model", "nothing")


def test_a_replaced_checkpoint_is_put_back_if_its_successor_never_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill between the two renames of saving a step again."""
    write(tmp_path, 1)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == ".step-1.draft":
            raise KeyboardInterrupt("killed")
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        write(tmp_path, 1)
    assert steps(tmp_path) == []
    remove_incomplete(tmp_path)
    assert steps(tmp_path) == [1] and not list((tmp_path / "checkpoints").glob(".*"))
    found = latest_valid(tmp_path, pytest.fail)
    assert found is not None and found.step == 1


def test_everything_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    rename = Path.rename

    def flush(path: Path) -> None:
        flushed.append(path.name)
        sync(path)

    def named(self: Path, target: Path) -> Path:
        if self.name == ".step-1.draft":
            assert {*FILES, "index.json", self.name} == set(flushed) and flushed[-1] == self.name
            assert pointed_at(tmp_path) is None  # `latest` is moved last
        return rename(self, target)

    monkeypatch.setattr("pretrain.checkpoint.write.sync", flush)
    monkeypatch.setattr(Path, "rename", named)
    write(tmp_path, 1)
    assert steps(tmp_path) == [1]
