"""Further held-out sets: each is evaluated separately, as if it were data.heldout."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from pretrain.config.schema import HeldoutConfig
from pretrain.evaluate import evaluate_run
from pretrain.report import report
from pretrain.trainer import train
from tests.run.conftest import MakeConfig
from tests.runs import rows


def test_each_set_is_judged_as_if_it_were_the_only_one(
    text: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = text("sets")
    shards = config.data.train[0].path
    config.data.heldout_sets = [
        HeldoutConfig(name="same", path=config.data.heldout),
        HeldoutConfig(name="read", path=shards),
    ]
    run = train(config)
    said = capsys.readouterr().err
    assert " held-out tokens of read: " in said
    assert f"{shards} is also data.heldout_sets[1].path, so its loss is measured on" in said

    evaluations = rows(run, "eval")
    assert all(list(row["sets"]) == ["same", "read"] for row in evaluations)
    for row in evaluations:
        whole = {key: value for key, value in row.items() if key in row["sets"]["same"]}
        assert row["sets"]["same"] == whole and "loss_per_position" in whole
    at_two, at_one = evaluations[-2:]
    assert (at_two["passes"], at_one["passes"]) == (2, 1)

    one, two = evaluate_run(run, overrides=[f"data.heldout={shards}", "data.heldout_sets=[]"])
    for alone, row in ((two, at_two), (one, at_one)):
        of_set = row["sets"]["read"]
        assert of_set["loss"] == pytest.approx(alone["loss"], rel=1e-6) and "sets" not in alone
        assert of_set["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-6)
        assert of_set["loss"] != row["loss"]

    assert main(["eval", str(run)]) == 0
    table = capsys.readouterr().out
    assert "read: bits per byte" in table and f"{at_two['sets']['read']['loss']:.4f}" in table
    report([run, train(text("without"))], tmp_path / "report")
    of_sets = f"{at_two['sets']['same']['loss']:.3f} | {at_two['sets']['read']['loss']:.3f} |"
    written = (tmp_path / "report/report.md").read_text()
    assert of_sets in written and "Evaluated on" not in written
    assert (tmp_path / "report/loss_by_set.png").stat().st_size > 10_000

    written = (run / "config.toml").read_text()
    config.data.heldout_sets = []
    train(config)  # which has finished
    assert "; ignored: data.heldout_sets = [] (was " in capsys.readouterr().err
    assert (run / "config.toml").read_text() == written
