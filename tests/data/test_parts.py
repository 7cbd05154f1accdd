"""Parts of a corpus, prepared apart and merged, equal byte for byte what one process writes."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from launch.cli import main
from pretrain.data import merge as merging
from pretrain.data.corpus import Corpus
from pretrain.data.prepare import merge, prepare_part
from pretrain.data.units import cut
from pretrain.errors import UserError
from pretrain.whole import appearing_whole
from tests.data.small import SETTINGS, content
from tokenizer.encode import Tokenizer


def prepare_parts(source: Path, tokenizer: Tokenizer, out: Path, parts: int) -> None:
    for i in range(1, parts + 1):
        assert prepare_part(Corpus([source]), tokenizer, out, (i, parts), **SETTINGS)


def test_there_are_several_units(source: Path) -> None:
    """They contain all files, in order."""
    entries = Corpus([source]).find()
    units = cut(entries, 300)
    assert len(units) > 2 and [entry for unit in units for entry in unit.entries] == entries


def test_parts_do_not_lie_where_they_would_be_read(source: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"parts: is inside .*; give a folder outside it"):
        prepare_part(Corpus([source]), tokenizer, source / "parts", (1, 2), **SETTINGS)


@pytest.mark.parametrize("parts", [1, 2, 40])
def test_parts_that_are_merged_are_what_one_process_writes(
    source: Path, prepared: Path, tokenizer: Tokenizer, tmp_path: Path, parts: int
) -> None:
    """With 40 parts some are empty."""
    prepare_parts(source, tokenizer, tmp_path, parts)
    tar = next(tmp_path.glob("part-*/unit-000000/train/shard-000000.tar"))
    inode = tar.stat().st_ino
    merge(tmp_path)
    assert content(tmp_path) == content(prepared)
    assert (tmp_path / "train" / "shard-000000.tar").stat().st_ino == inode  # not a copy
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["heldout", "train"]


def test_only_a_part_that_is_missing_is_prepared(
    source: Path, prepared: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare_parts(source, tokenizer, tmp_path, 3)
    (gone,) = tmp_path.glob("part-00002-*")
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="1 of 3 parts are missing: 2; prepare them"):
        merge(tmp_path)
    before = content(tmp_path)
    for i in (1, 2, 3):
        made = prepare_part(Corpus([source]), tokenizer, tmp_path, (i, 3), **SETTINGS)
        assert made == (gone if i == 2 else None)
    assert content(tmp_path).items() >= before.items()
    merge(tmp_path)
    assert content(tmp_path / "train") == content(prepared / "train")


@pytest.mark.parametrize(
    "name", ["part.json", "unit-000000/train/documents.idx", "unit-000000/train/shard-000000.tar"]
)
def test_a_part_that_is_damaged_is_not_merged(
    source: Path, tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    prepare_parts(source, tokenizer, tmp_path, 2)
    (path,) = tmp_path.glob(f"part-00001-*/{name}")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"{path}: (damaged|truncated)"):
        merge(tmp_path)


def test_two_do_not_merge_at_once(source: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    prepare_parts(source, tokenizer, tmp_path, 2)
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is merging these parts; wait for it"):
        merge(tmp_path)
    os.close(held)
    assert set(merge(tmp_path)) == {"train", "heldout"}


def test_a_merge_with_something_in_its_way(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepare_parts(source, tokenizer, tmp_path, 1)
    (tmp_path / "train").touch()
    with pytest.raises(UserError, match=r": Not a directory; check the file system there$"):
        merge(tmp_path)


def test_a_part_that_another_process_has_written_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "part"
    told = pytest.raises(UserError, match="part: another process has written it meanwhile")
    with told, appearing_whole(out):
        out.mkdir()
        (out / "part.json").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["part.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


@pytest.mark.parametrize("at", range(2, 33, 3))
def test_a_merge_that_was_broken_off_goes_on(
    source: Path, prepared: Path, tokenizer: Tokenizer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, at: int,
) -> None:  # fmt: skip
    """At every third of its 32 renames; at the last, one of the two parts is hidden already."""
    prepare_parts(source, tokenizer, tmp_path, 2)
    renames, rename = 0, Path.rename

    def dies(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merging.Path, "rename", dies)
        merge(tmp_path)
    merge(tmp_path)
    assert content(tmp_path) == content(prepared)
    assert not list(tmp_path.glob(".part-*"))


def test_a_draft_of_other_parts_is_not_taken_for_that_of_these(
    source: Path, prepared: Path, tokenizer: Tokenizer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A merge was interrupted, and its parts were prepared again with other settings."""
    for part in (1, 2):
        settings = SETTINGS | {"shard_tokens": 100}
        prepare_part(Corpus([source]), tokenizer, tmp_path, (part, 2), **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merging, "sync", Mock(side_effect=KeyboardInterrupt))
        merge(tmp_path)
    assert len(list(tmp_path.glob(".train.draft/*.tar"))) > len(list(prepared.glob("train/*.tar")))
    for part in tmp_path.glob("part-*"):
        shutil.rmtree(part)
    prepare_parts(source, tokenizer, tmp_path, 2)
    merge(tmp_path)
    assert content(tmp_path) == content(prepared)


def test_what_a_killed_part_left_does_not_spoil_another_merge(
    source: Path, prepared: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A draft of a part from another division, which nobody has continued."""
    prepare_parts(source, tokenizer, tmp_path, 2)
    (tmp_path / ".part-00001-of-00004.partial-x").mkdir()
    (tmp_path / ".part-00001-of-00004.partial-x.lock").touch()
    for _ in range(2):
        assert set(merge(tmp_path)) == {"train", "heldout"}
    assert content(tmp_path).items() >= content(prepared).items()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shard_tokens": 200}, r"than part-00001-of-00002 \(shard_tokens: 200 instead of "),
        ({"holdout": 0.2}, r"than part-00001-of-00002 \(holdout: 0.2 instead of "),
        ({}, ""),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    source: Path, tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    prepare_part(Corpus([source]), tokenizer, tmp_path, (1, 2), **SETTINGS)
    prepare_part(Corpus([source]), tokenizer, tmp_path, (2, 2), **SETTINGS | change)
    if not told:
        merge(tmp_path)
        with pytest.raises(UserError, match="has already been merged"):
            prepare_part(Corpus([source]), tokenizer, tmp_path, (2, 2), **SETTINGS)
        return
    with pytest.raises(UserError, match=told):
        merge(tmp_path)
    with pytest.raises(UserError, match="made from other files or settings; remove it"):
        prepare_part(Corpus([source]), tokenizer, tmp_path, (1, 2), **SETTINGS | change)


def test_commands(
    source: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = ["data", "prepare", str(source), "--tokenizer", str(model), "--out", out]
    command += ["--holdout", "0.3", "--shard-tokens", "300", "--workers", "1"]
    for i in (1, 2):
        assert main([*command, "--part", f"{i}/2"]) == 0
    assert main([*command, "--part", "2/2"]) == 0
    assert "part 2 of 2 already exists" in capsys.readouterr().out
    assert main(["data", "merge", out]) == 0
    said = capsys.readouterr().out
    assert re.search(r"out/train: \d+ documents, [\d,]+ tokens\n.*out/heldout: \d+ doc", said)
    for place in (tmp_path, tmp_path / "nowhere"):
        assert main(["data", "merge", str(place)]) == 2
        said = capsys.readouterr().err
        assert "holds no parts; make them with `hypnos data prepare --part" in said
    with pytest.raises(SystemExit):
        main([*command, "--part", "3/2"])
    assert "'3/2' is not I/N, with I from 1 to N" in capsys.readouterr().err
