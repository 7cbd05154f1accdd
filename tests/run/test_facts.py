"""What must be the same on all ranks: every setting, the code, and the content of what is read."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.config.schema import Config, HeldoutConfig
from pretrain.run.facts import code_version, difference, facts
from tests.run.conftest import MakeConfig


def test_what_only_one_rank_knows_is_a_difference() -> None:
    assert "b is 2 on rank 0, but not known on rank 1" in difference(
        "rank 0", {"a": "1", "b": "2"}, "rank 1", {"a": "1"}
    )


def other_value(value: object) -> object:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value[:-1], other_value(value[-1]))
        case list():
            return [*value, value[0]] if value else [1]
    raise TypeError(value)


def test_every_setting_is_compared(text: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.run.facts.code_version", lambda: "the same")
    config = text("all")
    config.data.heldout_sets = [HeldoutConfig(name="a", path=config.data.heldout)]
    before = facts(config)
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(config, section.name)):
            mine = getattr(config, section.name)
            changed = {field.name: other_value(getattr(mine, field.name))}
            other = dataclasses.replace(
                config, **{section.name: dataclasses.replace(mine, **changed)}
            )
            line = difference("rank 0", before, "rank 1", facts(other))
            assert f"{section.name}.{field.name}" in line


def test_a_weight_is_named_in_its_list(text: MakeConfig) -> None:
    config, other = text("one"), text("one")
    other.data.train[0].weight = 2.0
    line = difference("rank 0", facts(config), "rank 1", facts(other))
    assert line.startswith("data.train[0].weight is 1.0 on rank 0, but 2.0 on rank 1")


def damage_tokenizer(folder: Path) -> str:
    path = folder / "small.model"
    path.write_bytes(path.read_bytes()[:-1])
    return "the tokenizer"


def lose_heldout(folder: Path) -> str:
    shutil.rmtree(folder / "shards/heldout")
    return "the heldout shards"


def replace_shards(folder: Path) -> str:
    """Replaces them by the output of another `hypnos data prepare`."""
    shutil.rmtree(folder / "shards/train")
    shutil.copytree(folder / "shards/heldout", folder / "shards/train")
    return "the train shards"


@pytest.mark.parametrize("change", [damage_tokenizer, lose_heldout, replace_shards])
def test_content_is_compared_and_not_only_its_name(
    change: Callable[[Path], str], text: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    copy, config = tmp_path / "copy", text("mine")
    shutil.copytree(corpus, copy)
    config.data.tokenizer = str(copy / "small.model")
    config.data.train[0].path, config.data.heldout = (
        str(copy / "shards" / split) for split in ("train", "heldout")
    )
    before = facts(config)
    name = change(copy)
    assert difference("rank 0", before, "rank 1", facts(config)).startswith(name)


def test_on_gpus_packages_of_kernels_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.run.facts.KERNELS", ("rich", "no-such-package"))
    assert not {"the version of rich", "the version of no-such-package"} & facts(None).keys()
    monkeypatch.setattr("parallel.mesh.device", lambda: torch.device("cuda", 0))
    found = facts(None)
    assert found["the version of rich"] == importlib.metadata.version("rich")
    assert found["the version of no-such-package"] == "none (not installed)"


def test_the_code_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A changed line, and a missing file."""
    package = tmp_path / "hypnos_stub"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "loop.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pretrain.run.facts.SOURCES", ("hypnos_stub",))
    versions = [code_version()]
    (package / "loop.py").write_text("x = 2\n")
    versions.append(code_version())
    (package / "loop.py").unlink()
    versions.append(code_version())
    assert len(set(versions)) == 3
