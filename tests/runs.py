"""Helpers about runs: their metrics and checkpoints, comparing two, and one that is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from parallel import mesh
from pretrain.checkpoint import Checkpoint
from pretrain.checkpoint.index import KINDS
from pretrain.config.schema import Config
from pretrain.trainer import train

# Fields of metrics that depend on the clock.
TIMES = {
    "tokens_per_s",
    "wake_tokens_per_s",
    "sleep_tokens_per_s",
    "flops_per_s",
    "mfu",
    "data_wait_s",
}


def rows(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock: all rows, or those of one kind."""
    lines = (run / "metrics.jsonl").read_text().removesuffix("\n").split("\n")
    found = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return [row for row in found if kind in (None, row["kind"])]


def tensors(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, moments, lanes, random state."""
    saved = Checkpoint.open(run / "checkpoints" / f"step-{step}")
    return {
        f"{kind}/{name}": saved.tensor(kind, name, partial=True)
        for kind in KINDS
        for name in saved.names(kind)
    }


def position(run: Path, step: int = 6) -> dict[str, Any]:
    """The counters and the position in the data of a checkpoint."""
    return json.loads((run / "checkpoints" / f"step-{step}" / "state.json").read_text())


def assert_same(
    got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> None:
    """Same names, and values that differ by at most the tolerance, relative or absolute."""
    assert got.keys() == expected.keys()
    for name, value in got.items():
        close = torch.isclose(value, expected[name], rtol=tolerance, atol=tolerance)
        assert close.all(), (name, value[~close][:5], expected[name][~close][:5])


def assert_same_run(got: Path, expected: Path, tolerance: float = 0.0) -> None:
    """The last checkpoints are the same; without a tolerance also the metrics."""
    assert_same(tensors(got), tensors(expected), tolerance)
    assert position(got) == position(expected)
    if tolerance == 0:
        assert rows(got) == rows(expected)


def interrupted(config: Config, at: int = 3) -> Config:
    """Trains up to step `at` only; returns the configuration to continue with."""
    steps, config.train.steps = config.train.steps, at
    run = train(config, progress=False)
    config.train.steps = steps
    # A run that dies leaves lines from after its last checkpoint, the last one cut short.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4, "loss": 0.0}\n{"kind": "train", "st')
    return config


def train_all(configs: list[Config]) -> None:
    """A rank's part of some runs, one after the other; for `run_ranks`."""
    for config in configs:
        mesh.leave_grid()  # each run has a grid of its own
        train(config, progress=False)
