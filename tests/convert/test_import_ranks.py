"""An imported run at several layouts of ranks equals that of one process."""

from __future__ import annotations

from pathlib import Path

from pretrain.config.load import load
from pretrain.config.run_folder import places
from pretrain.trainer import train
from tests.convert.test_import import ready
from tests.ranks import run_ranks
from tests.runs import assert_same, tensors, train_all


def test_two_ranks_equal_one_process(corpus: Path, tmp_path: Path) -> None:
    whole, *others = (tmp_path / name for name in ("whole", "tp", "pp"))
    made = {}
    for place, layout in zip((whole, *others), ([], ["tp=2"], ["pp=2"]), strict=True):
        overrides = [*ready(corpus, place), "train.microbatches=2"]
        given = place / "taught/config.toml"
        parallel = [f"parallel.{each}" for each in layout]
        made[place] = load(given, [*places(given), *overrides, *parallel])
    train(made[whole], progress=False)
    run_ranks(2, train_all, [made[place] for place in others])
    for place in others:
        assert_same(tensors(place / "taught", 4), tensors(whole / "taught", 4), 1e-5)
