"""Two real processes against one, in one launch: the engine at every ZeRO stage, and whole runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain import settings
from pretrain.trainer import train
from tests.train import reference
from tests.train.conftest import MakeConfig
from tests.train.test_trainer import ROOT, assert_same_run, interrupted, rows


def test_two_ranks_equal_one_process(text: MakeConfig, depo: MakeConfig, tmp_path: Path) -> None:
    torch.save(reference.train(4)._asdict(), tmp_path / "expected.pt")  # compared by two_ranks.py
    expected = {"text": train(text("text"), progress=False), "depo": train(depo("depo"), progress=False)}
    interrupted(text("text-one-two", zero=1))
    interrupted(depo("depo-one-two", zero=3))
    plans = [
        (text("text-one-two", zero=1), 6), (text("text-two-one", zero=1), 3),
        (depo("depo-one-two", zero=3), 6), (depo("depo-two-one", zero=2), 3),
    ]  # fmt: skip
    for config, steps in plans:
        config.train.steps = steps
        (tmp_path / f"{config.run.name}.toml").write_text(settings.dump(config))

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests/train/two_ranks.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    train(text("text-two-one", zero=0), progress=False)
    train(depo("depo-two-one", zero=3), progress=False)
    for config, _ in plans:
        run, whole = tmp_path / config.run.name, expected[config.data.task]
        assert_same_run(run, whole, 1e-5)
        for mine, theirs in zip(rows(run), rows(whole), strict=True):  # also what the ranks wrote together
            for key in ("kind", "step", "tokens", "passes"):
                assert mine.get(key) == theirs.get(key)
            if mine["kind"] != "warning":
                assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
