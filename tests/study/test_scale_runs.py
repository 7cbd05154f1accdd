"""A real ladder: two sizes, two N, trained by the command, laws and all."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.study import fit_report
from tests.study.test_branch import STUDY


def test_a_ladder_runs_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a tenth of the bootstrap: the rest of it would take longer than the runs
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
