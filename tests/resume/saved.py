"""All that these tests know about checkpoints on disk."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint import latest_valid, steps, verify
from pretrain.convert.load import open_model

Traces = set[tuple[str, int]]


def resume_point(run: Path) -> int:
    """The step that a run would resume from, 0 if from the beginning.

    Every checkpoint present must be whole, and the newest must load.
    """
    for step in steps(run):
        verify(folder(run, step))
    found = latest_valid(run, pytest.fail)
    if found is None:
        return 0
    open_model(found.folder)
    return found.step


def folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step}"


def traces(run: Path) -> Traces:
    """Hidden files and folders, and when they last changed: a save in progress, or a killed one."""
    found = set()
    for path in (run / "checkpoints").glob(".*"):
        try:
            found.add((path.name, path.stat().st_ctime_ns))
        except FileNotFoundError:  # renamed just now
            continue
    return found


def content(checkpoint: Path) -> dict[str, Any]:
    """Every tensor, by its type, shape and checksum, and every JSON value.

    Without config.toml, which says how many checkpoints to keep, and the index, which has
    config.toml's checksum.
    """
    found: dict[str, Any] = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix == ".safetensors":
            for name, tensor in load_file(path).items():
                raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                found[f"{path.name}: {name}"] = (tensor.dtype, tensor.shape, zlib.crc32(raw))
        elif path.suffix == ".json" and path.name != "index.json":
            found |= {
                f"{path.name}: {name}": value
                for name, value in json.loads(path.read_text()).items()
            }
    return found


def assert_same(got: Path, expected: Path, but: str = "") -> None:
    """Asserts that they are equal bit for bit, except for `but`."""
    mine, theirs = content(got), content(expected)
    mine.pop(but, None), theirs.pop(but, None)
    differing = sorted(
        name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)
    )
    assert not differing, f"{got} differs in {differing}"
