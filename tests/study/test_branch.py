"""A branch equals, bit for bit, a run with its settings from the start."""

from __future__ import annotations

from pathlib import Path

from pretrain.config.load import override
from pretrain.study.ladder import expand, read_study
from pretrain.study.runner import branch_off
from pretrain.trainer import train
from tests import runs

CONFIGS = Path(__file__).parents[2] / "configs"
STUDY = f"""
[ladder]
config = "{CONFIGS / "studies/depo-cpu.toml"}"
settings = [
    "train.steps=8", "train.batch=4", "train.eval_batches=1", "train.log_every=1",
    "optimizer.warmup=2",
]
widths = [16]
passes = [2]
seeds = 1
budgets = [0.5, 1.0]
decay = 0.25
token_power = 0.0
"""


def test_a_branch_is_the_run_that_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    trunk, branch = expand(tmp_path / "study.toml", read_study(tmp_path / "study.toml"))
    assert branch.run.branch == 3 and branch.run.settings().train.steps == 4
    places = f"run.dir={tmp_path / 'runs'}"
    for rung in (trunk, branch):
        assert branch_off(tmp_path, rung.run)
        train(override(rung.run.settings(), [places, f"run.name={rung.run.name}"]), progress=False)
    straight = train(override(branch.run.settings(), [places, "run.name=straight"]), progress=False)
    branched = tmp_path / "runs" / branch.run.name
    runs.assert_same(runs.tensors(branched, 4), runs.tensors(straight, 4), tolerance=0.0)
    assert runs.rows(branched, "train") == runs.rows(straight, "train")
