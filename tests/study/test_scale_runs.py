"""A real ladder of two sizes and two N, trained by the command, with its laws."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.study import fit_report
from pretrain.study.fit_report import write_fit
from pretrain.study.ladder import LadderRun, expand, read_study
from pretrain.study.law import LossLaw
from pretrain.study.scale import Finished, Size
from tests.study.test_branch import STUDY


def test_a_ladder_runs_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a tenth of the bootstrap draws: all of them would take longer than the runs
    monkeypatch.setattr(fit_report, "write_fit", partial(fit_report.write_fit, draws=20))
    text = STUDY.replace("[0.5, 1.0]", "[1.0]").replace("[16]", "[16, 32]")
    (tmp_path / "study.toml").write_text(text.replace("passes = [2]", "passes = [1, 2]"))
    out = tmp_path / "out"
    asked = ["scale", str(tmp_path / "study.toml"), "--jobs", "2", "--out", str(out)]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "4 of 4 runs" in said and "phi = " in said
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(r["width"], r["N"]) for r in rows] == [
        ("16", "1"),
        ("16", "2"),
        ("32", "1"),
        ("32", "2"),
    ]
    assert float(rows[1]["flops"]) > float(rows[0]["flops"])
    assert "<table>" in (out / "fit.html").read_text() and "fit.html" in said


def test_a_fit_says_what_the_runs_do_not(tmp_path: Path) -> None:
    """With one token budget nothing is said about text; diverged and missing runs are named."""
    (tmp_path / "study.toml").write_text(STUDY.replace("passes = [2]", "passes = [1, 2]"))
    asked = ("ladder.widths=[16,32,48,64]", "ladder.budgets=[0.5,1.0]")
    runs = expand(tmp_path / "study.toml", read_study(tmp_path / "study.toml", asked))
    law = LossLaw(0.5, 20.0, 300.0, 0.3, 0.4, 0.5)

    def done(r: LadderRun) -> Finished:
        size = Size.of(r.run)
        loss = float(law.loss(size.once, size.looped, float(r.passes), size.tokens))
        return Finished(r, size, loss, {})

    every = [done(r) for r in runs]
    one_budget = [d for d in every if d.of.budget == 1]
    said = write_fit(runs, one_budget, tmp_path, "study", 0.0, draws=5)
    assert "do not determine B and beta" in said and "| beta " not in said
    assert "At equal FLOPs" not in said and "nan" not in said
    most = [d for d in every if d.of.rung < 3 or d.of.passes == 1]
    said = write_fit(runs, most, tmp_path, "study", 0.0, draws=5)
    assert "because runs are missing at some rung: N = 2, L = " in said
    lost = [replace(d, loss=math.nan) if d.of.rung == 3 else d for d in every]
    said = write_fit(runs, lost, tmp_path, "study", 0.0, draws=5)
    assert "Diverged, and left out of the laws: w64-n1" in said and "nan" not in said
    two = [d for d in every if d.of.rung < 2]
    assert "Each rung left out" not in write_fit(runs, two, tmp_path, "study", 0.0, draws=5)
    none = [replace(d, loss=math.nan) for d in every]
    assert "no law: a law of loss needs" in write_fit(runs, none, tmp_path, "study", 0.0, draws=5)
