"""A few of the other tests' inputs, given to the command in a process of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def damaged_configuration(folder: Path, sound: Path, model: Path) -> list[str]:
    (folder / "c.toml").write_bytes(b"a = " + b"[" * 60_000)
    return ["train", "c.toml"]


def wild_override(folder: Path, sound: Path, model: Path) -> list[str]:
    (folder / "c.toml").write_text("data.task = 'depo'")
    return ["train", "c.toml", "train.steps=1e99"]


def name_that_leads_out(folder: Path, sound: Path, model: Path) -> list[str]:
    (folder / "c.toml").write_text("data.task = 'depo'")
    return ["train", "c.toml", "run.name=../../x"]


def damaged_tokenizer(folder: Path, sound: Path, model: Path) -> list[str]:
    (folder / "t.model").write_bytes(model.read_bytes()[:-100])
    (folder / "text.txt").write_text("text")
    return ["data", "prepare", "text.txt", "--tokenizer", "t.model", "--out", "out"]


def damaged_shard(folder: Path, sound: Path, model: Path) -> list[str]:
    shutil.copytree(sound, folder / "train")
    with (folder / "train" / "shard-000001.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"!")
    return ["data", "verify", "train"]


def damaged_lines(folder: Path, sound: Path, model: Path) -> list[str]:
    (folder / "texts.jsonl").write_bytes(b'{"text": "x"}\n' + b"[" * 100_000)
    return ["data", "prepare", "texts.jsonl", "--tokenizer", str(model), "--out", "out"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged_configuration, "c.toml: not valid TOML: nested too deeply"),
        (
            wild_override,
            "override 'train.steps=1e99': train.steps must be a whole number, not 1e+99",
        ),
        (name_that_leads_out, 'c.toml: run.name = "../../x": must be the name of a folder'),
        (damaged_tokenizer, "t.model: damaged, or not written by `hypnos tokenizer train`"),
        (damaged_shard, "train/shard-000001.tar: damaged: its content is not what index.json says"),
        (damaged_lines, "texts.jsonl, line 2: JSON that is nested too deeply"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_line_and_nothing_written(
    tmp_path: Path,
    sound: Path,
    model: Path,
    make: Callable[[Path, Path, Path], list[str]],
    message: str,
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "launch", *make(folder, sound, model)]
    before = sorted(tmp_path.rglob("*"))
    limited = ["/bin/sh", "-c", 'ulimit -v 8000000; exec "$@"', "sh", *command]
    done = subprocess.run(
        limited,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"hypnos: error: {message}")
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
