"""From runs to a verdict: what is planned, what it costs, and what is concluded."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.config.load import load
from pretrain.errors import UserError
from pretrain.exit_status import REQUEUE
from pretrain.origin import origin_of
from pretrain.plots import COLOURS
from pretrain.study import reproduce
from pretrain.study.controls import CONTROLS, flops_per_step
from pretrain.study.curve import Curve
from pretrain.study.intervals import mean, paired
from pretrain.study.overview import overview
from pretrain.study.reproduce import STUDIES, plan, write_results
from pretrain.study.results import Arm, Result, in_order
from pretrain.study.runner import run_all
from pretrain.study.summary import (
    bits_table,
    controls_table,
    final_csv,
    main_table,
    verdict,
)

HYPNOS = [sys.executable, str(Path(__file__).with_name("hypnos.py"))]
DEPO = STUDIES["depo"]["cpu"]


def result(n: int, seed: int, deep: float) -> Result:
    curve = Curve([10], [1000], [1e6], [2.0], [(0, {"loss": 2.0}), (10, {"loss": 1.0})])
    scores = {n: {"loss": 1.0, "hops_4": deep, "hops_16": deep, "hops_1": 1.0}}
    return Result(Arm(f"n{n}", f"N = {n}", n), seed, n, scores, {}, curve)


def test_intervals_are_students() -> None:
    m = mean([1.0, 2.0, 3.0])
    assert m.value == 2.0 and m.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert math.isnan(mean([1.0]).half) and not mean([1.0]).is_above_zero
    # seeds differ more than the two arms do; paired, the difference is still significant
    assert paired([0.9, 0.5, 0.1], [0.8, 0.39, 0.01]).is_above_zero


def test_a_study_gives_every_arm_the_same_data() -> None:
    planned = plan(DEPO, passes=[4, 1], seeds=2, controls=list(CONTROLS))
    names = [p.run.name for p in planned]
    assert names[:2] == ["n1-seed0", "n4-seed0"] and len(names) == 2 * (2 + len(CONTROLS))
    both = ["equal-flops", "no-h"]
    of_two = plan(DEPO, passes=[1, 2, 4], seeds=1, controls=both, controls_of=[2])
    assert [p.arm.name for p in of_two[3:]] == ["equal-flops-n2", "no-h-n2"]
    asked = plan(DEPO, passes=[1, 2, 4], seeds=1, controls=both)
    assert [p.arm.name for p in asked][3:] == ["equal-flops-n2", "equal-flops-n4", "no-h-n4"]
    for p in planned:
        settings = p.run.settings()
        assert settings.run.seed == p.seed
        assert settings.depo == plan(DEPO, passes=[1], seeds=1)[0].run.settings().depo
    by_name = {p.run.name: p.run for p in planned}
    at_test = {name: by_name[f"{name}-seed0"].passes for name in ("n1", "random-n-n4", "no-h-n4")}
    assert at_test == {"n1": (1, 4), "random-n-n4": (1, 4), "no-h-n4": (4,)}


def test_a_study_takes_the_shape_of_its_initial_weights(tmp_path: Path) -> None:
    """As `hypnos train` does; by it FLOPs are counted, and begun runs compared."""
    start, mine = tmp_path / "start", tmp_path / "mine.toml"
    (start / "checkpoints").mkdir(parents=True)
    shutil.copy(DEPO, start / "config.toml")
    mine.write_text(f'run.init_from = "{start}"\ndata.task = "depo"\n')
    (one,) = plan(mine, passes=[1], seeds=1)
    assert one.run.settings().model == load(DEPO).model


def test_equal_flops_are_equal() -> None:
    runs = {p.arm.name: p.run for p in plan(DEPO, passes=[4], seeds=1, controls=["equal-flops"])}
    spent = {
        name: flops_per_step(run.settings()) * run.settings().train.steps
        for name, run in runs.items()
    }
    assert spent["equal-flops-n4"] == pytest.approx(spent["n4"], rel=1e-3)
    steps = {name: run.settings().train.steps for name, run in runs.items()}
    assert steps["equal-flops-n4"] > 1.5 * steps["n4"]


def test_flops_are_of_the_passes_that_are_drawn() -> None:
    """In half of the steps N rises from 1 to 4; the other half have N = 4."""
    asked = plan(DEPO, passes=[1, 2, 3, 4], seeds=1, controls=["n-rises"])
    spent = {p.arm.name: flops_per_step(p.run.settings()) for p in asked}
    rising = (spent["n1"] + spent["n2"] + spent["n3"] + 5 * spent["n4"]) / 8
    assert spent["n-rises-n4"] == pytest.approx(rising, rel=1e-3)


def test_what_a_study_says_of_passes_is_not_said_of_one() -> None:
    said = ["sleep.truncate_passes=2", "sleep.min_passes=2"]
    planned = plan(DEPO, passes=[1, 2, 4], seeds=1, controls=list(CONTROLS), overrides=said)
    passes = {p.arm.name: p.run.settings().sleep for p in planned}
    assert passes["n1"].truncate_passes == 0 and passes["n4"].truncate_passes == 2


def test_text_has_equal_flops_too() -> None:
    config = STUDIES["text"]["cpu"]
    text = plan(
        config, passes=[2], seeds=1, controls=["equal-flops"], overrides=["model.vocab_size=512"]
    )
    steps = [p.run.settings().train.steps for p in text]
    assert 1.5 * steps[0] < steps[1] < 2 * steps[0]  # the last window is not slept over


@pytest.mark.parametrize(
    ("deep", "words"),
    [
        ({1: [0.1, 0.12, 0.11], 4: [0.9, 0.95, 0.91]}, ["yes, and every step is", "+81.0 points"]),
        (
            {1: [0.1, 0.5, 0.3], 4: [0.5, 0.4, 0.6]},
            ["not every step is significant", "not significant)."],
        ),
        (
            {1: [0.5, 0.5, 0.5], 4: [0.4, 0.4, 0.4]},
            [": no.", "-10.0 points", "significantly worse)."],
        ),
        ({1: [0.5, 0.6, 0.7], 4: [0.55, 0.5, 0.4]}, [": not in the means", "not significant)."]),
        ({1: [0.9], 4: [0.1]}, [": not in the means, of too few seeds", "one seed: no interval"]),
        ({1: [0.1], 4: [0.9]}, [": yes in the means, of too few seeds", "one seed: no interval"]),
        (
            {1: [0.2, 0.21], 4: [0.9, 0.915]},
            [": yes in the means, of too few seeds", "too few for an interval"],
        ),
        ({1: [0.1] * 3, 4: [0.9, math.nan, 0.9]}, ["cannot be decided", "a run has diverged"]),
    ],
)
def test_the_verdict_says_who_is_better_and_how_sure(
    deep: dict[int, list[float]], words: list[str]
) -> None:
    results = [result(n, s, v) for n, values in deep.items() for s, v in enumerate(values)]
    said = " ".join(verdict(results))
    assert "at hops 16, the deepest" in said
    for word in words:
        assert word in said


def test_each_n_is_compared_with_the_next_and_with_the_first() -> None:
    said = verdict([result(n, 0, n / 10) for n in (1, 2, 4, 8)])
    assert [line.partition(":")[0] for line in said[1:]] == [
        "N = 2 over N = 1", "N = 4 over N = 2", "N = 8 over N = 4",
        "N = 4 over N = 1", "N = 8 over N = 1",
    ]  # fmt: skip


def test_an_n_is_compared_with_its_own_controls_seed_by_seed() -> None:
    def control(name: str, n: int, seed: int, deep: float) -> Result:
        return replace(result(1, seed, deep), arm=Arm(f"{name}-n{n}", f"{name} of {n}", n))

    results = [
        *(result(2, seed, 0.5) for seed in range(3)),
        *(result(4, seed, deep) for seed, deep in enumerate((0.9, 0.95, 0.91))),
        *(control("blocks", 4, seed, deep) for seed, deep in enumerate((0.1, 0.12, 0.11))),
        *(control("loops", 4, seed, deep) for seed, deep in ((2, 0.95), (3, 0.1))),
        control("state", 8, 0, 0.5),  # there is no N = 8
    ]
    headers, rows = controls_table(results) or ([], [])
    assert headers == ["compared with controls", "hops 16", "how sure"]
    assert rows == [
        # 81 +- 4.303 x 1.732 / sqrt(3)
        ["N = 4 over blocks of 4", "+81.0 points",
         "95 % interval 76.7 to 85.3, 3 seeds paired: significant"],
        ["N = 4 over loops of 4", "-4.0 points", "one seed: no interval"],
    ]  # fmt: skip
    assert controls_table(results[:6]) is None


def test_no_verdict_between_runs_of_other_seeds() -> None:
    said = verdict([result(1, 1, 0.1), result(4, 0, 0.9)])
    assert said == ["N = 1 < N = 4: N = 1 and N = 4 have no seed in common yet."]


def test_what_a_diverged_run_answers_is_no_measurement() -> None:
    """Accuracy is a number even if the loss is not, and some rows of text may have finite ones."""
    diverged = [result(4, seed, 0.0) for seed in range(3)]
    diverged[1].scores[4]["loss"] = math.nan
    said = " ".join(verdict([*(result(1, seed, 0.5) for seed in range(3)), *diverged]))
    assert "cannot be decided" in said and "significantly worse" not in said
    one, four = result(1, 0, 0.5), result(4, 0, 0.5)
    for r, rows in ((one, [1.0, 2.0]), (four, [1.0])):
        r.rows[:], r.scores[r.passes] = rows, {"loss": math.nan if r is four else 1.0}
    assert "a run has diverged" in " ".join(verdict([one, four]))


def test_a_cell_says_how_many_seeds_have_diverged(tmp_path: Path) -> None:
    """Neither the mean of the others nor the accuracy of the diverged run is shown."""
    results = [*(result(1, seed, 0.5) for seed in range(2)), result(4, 0, 0.25), result(4, 1, 0.75)]
    for r in results:
        r.bits[r.passes] = [1.0, None, 1.5]  # no document reaches the second window
    results[-1].scores[4]["loss"] = math.nan
    results[-1].bits[4][0] = None
    _, rows = main_table(results)
    assert rows[1][1:4] == ["1 of 2 diverged"] * 3 and rows[0][3] == "50.0 (50.0, 50.0)"
    found = bits_table(results)
    assert found is not None and found[1] == [
        ["N = 1", "1.000 (1.000, 1.000)", "-", "1.500 (1.500, 1.500)", ""],
        ["N = 4", "1 of 2 diverged", "-", "1 of 2 diverged", "1 of 2 diverged"],
    ]
    (tmp_path / "depo").mkdir()
    (tmp_path / "depo/results.csv").write_text(final_csv(results))
    lines = overview([tmp_path / "depo"], tmp_path).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines}
    assert (cells["N = 1"], cells["N = 4"]) == ("50.0 (50.0, 50.0)", "1 of 2 diverged")


def test_depths_are_columns_in_order_of_depth() -> None:
    headers, _ = main_table([result(1, 0, 0.5)])
    assert headers[1:4] == ["hops 1", "hops 4", "hops 16"]
    assert in_order(["loss", "exact", "hops_b", "hops_a"]) == ["hops_a", "hops_b", "exact"]


def test_what_is_written_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(DEPO, passes=[1, 2], seeds=2)
    with pytest.raises(UserError, match="no run is done yet"):
        write_results(planned, tmp_path, "Depo")
    run_all([p.run for p in planned][:3], tmp_path, hypnos=HYPNOS, jobs=3)
    said = write_results(planned, tmp_path, "Depo")
    assert "Seeds not run: N = 2: 1." in said and "N = 1, tested with N = 2" in said
    assert "3 runs on a stand-in, commit 0123abc, 2026-01-01." in said
    text = (tmp_path / "results.md").read_text()
    for picture in ("accuracy_by_depth.png", "accuracy_by_cost.png", "loss_by_cost.png"):
        assert (tmp_path / picture).stat().st_size > 10_000 and f"({picture})" in text
    monkeypatch.setattr(reproduce, "draw", lambda *_: {})  # plots take most of the time
    assert "one seed: no interval" in (tmp_path / "results.html").read_text()
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert {(r["arm"], r["seed"]) for r in rows} == {("n1", "0"), ("n1", "1"), ("n2", "0")}
    # 500 tokens at 50 a second, twice, and a million operations a second
    assert {(r["tokens"], r["seconds"], r["flops"]) for r in rows} == {("1000", "20", "2e+07")}

    # in another folder a study continues from its runs' records
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "done", elsewhere / "done")
    assert write_results(planned, elsewhere, "Depo") == said
    for name in ("results.csv", "curves.csv"):
        assert (elsewhere / name).read_text() == (tmp_path / name).read_text()
    fewer = write_results([p for p in planned if p.arm.passes == 1], elsewhere, "Depo")
    assert "Done, but not asked for: n2-seed0." in fewer
    more = write_results(plan(DEPO, passes=[1, 2, 4], seeds=2), elsewhere, "Depo")
    assert "without weights to test, with N = 4: n1-seed0, n2-seed0, n1-seed1." in more
    assert "| N = 4 " in more and "not run" in more
    asked = ["reproduce", "depo", "--seeds", "2", "--minutes", "0", "--out", str(tmp_path)]
    assert (
        main([*asked, "--passes", "1", "2", "4"]) == REQUEUE
    )  # writes what there is, though N = 4 is missing
    assert "Not tested yet" in (tmp_path / "results.md").read_text()
    assert write_results(planned, tmp_path, "Depo") == said
    broken = elsewhere / "done" / "n1-seed0.json"
    broken.write_text("{}")
    with pytest.raises(UserError, match=r"n1-seed0.json: not a record of a finished run .* remove"):
        write_results(planned, elsewhere, "Depo")

    assert main(["report", str(tmp_path), "--out", str(tmp_path / "all")]) == 0
    lines = (tmp_path / "all" / "overview.md").read_text().splitlines()
    cells = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines if "|" in line
    }
    assert (cells["N = 1"], cells["N = 2"]) == ("25.0 (25.0, 25.0)", "50.0")
    assert cells["N = 1, tested with N = 2"] == "50.0 (50.0, 50.0)"
    assert cells["N = 4"] == cells["N = 2, no h carried"] == "not run"
    assert [line.split("|")[3].strip() for line in lines if "| N = 2 " in line] == ["not run"]


def test_an_overview_has_each_n_that_was_run(tmp_path: Path) -> None:
    (tmp_path / "depo").mkdir()
    equal = replace(result(1, 0, 0.5), arm=Arm("equal-flops-n3", "N = 1, FLOPs of N = 3", 3))
    (tmp_path / "depo/results.csv").write_text(final_csv([result(3, 0, 0.75), equal]))
    lines = overview([tmp_path / "depo"], tmp_path).splitlines()
    rows = {cells[1]: cells[2:4] for cells in ([c.strip() for c in r.split("|")] for r in lines)}
    assert rows["N = 3"] == ["75.0", "50.0"] and rows["N = 2"] == ["not run", "not run"]
    (tmp_path / "depo/results.csv").write_text(final_csv([result(8, 0, 0.75), equal]))
    assert "| N = 3, no h carried" in overview([tmp_path / "depo"], tmp_path)  # not of N = 8


def test_parts_of_one_study_are_one_column(tmp_path: Path) -> None:
    parts = [tmp_path / place for place in ("a/depo", "b/depo-cpu")]
    for part, passes in zip(parts, (1, 4), strict=True):
        part.mkdir(parents=True)
        (part / "results.csv").write_text(final_csv([result(passes, 0, passes / 4)]))
    lines = overview(parts, tmp_path).splitlines()
    assert lines[0].count("depo") == 1
    cells = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in lines}
    assert (cells["N = 1"], cells["N = 2"], cells["N = 4"]) == ("25.0", "not run", "100.0")
    assert overview([*parts, parts[0]], tmp_path).splitlines() == lines
    other_scale = parts[1].with_name("depo-paper")
    shutil.copytree(parts[1], other_scale)  # the same runs, but of larger models
    both = overview([*parts, other_scale], tmp_path).splitlines()
    assert "| depo-paper, hops 16 |" in both[0] and "100.0" in both[4]
    with pytest.raises(UserError, match=r"b.depo-cpu.results.csv: n1, seed 0, is in .*a.depo"):
        (parts[1] / "results.csv").write_text(final_csv([result(1, 0, 0.5)]))
        overview(parts, tmp_path)


def test_what_was_not_run_has_a_row_of_its_own() -> None:
    arms = [Arm("n1", "N = 1", 1), Arm("n4", "N = 4", 4)]
    _, rows = main_table([result(1, 0, 0.5)], arms)
    assert rows[1] == ["N = 4", "not run", "not run", "not run", "", "", "0"]


def test_runs_that_failed_or_diverged_are_named(tmp_path: Path) -> None:
    planned = plan(DEPO, passes=[1, 2, 4], seeds=2)
    run_all([p.run for p in planned if p.arm.passes < 4], tmp_path, hypnos=HYPNOS, jobs=3)
    path = tmp_path / "done" / "n2-seed1.json"
    left = json.loads(path.read_text())
    for found in left["evaluations"]:
        found["loss"] = None  # as metrics write a number that is not finite
    path.write_text(json.dumps(left))
    said = write_results(planned, tmp_path, "Depo", {"n4-seed0", "n4-seed1"})
    assert "Diverged (the loss is not finite): n2-seed1." in said
    assert f"Failed, and the logs in {tmp_path / 'logs'} say why: n4-seed0, n4-seed1." in said
    assert "Seeds not run" not in said and "not run" not in said
    assert re.search(r"\| N = 4 +\| +failed \|", said)


def test_an_origin_has_every_machine_and_commit_that_trained(tmp_path: Path) -> None:
    for commit, day in (("abc", "2026-01-01"), ("abc", "2026-01-02"), ("def", "2026-01-03")):
        with (tmp_path / "origins.jsonl").open("a") as file:
            file.write(json.dumps({"machine": "8 x H100", "commit": commit, "date": day}) + "\n")
    with (tmp_path / "origins.jsonl").open("a") as file:
        file.write('{"machine": "8 x H1')  # the disk is full
    assert origin_of(tmp_path) == {
        "machine": "8 x H100", "commit": "abc and def", "date": "2026-01-03",
    }  # fmt: skip


def test_text_is_told_in_bits_by_window() -> None:
    curve = Curve([10], [1000], [1e6], [2.0], [(10, {"loss": 1.0})])
    results = [
        Result(Arm("n2", "N = 2", 2), s, 2, {2: {"loss": 2.0}}, {2: [b, 1.0, 1.5]}, curve)
        for s, b in enumerate([1.0, 1.2, 1.4])
    ]
    found = bits_table(results)
    assert found is not None
    assert found[0] == ["bits per byte", "window 1", "window 2", "all", "nats gained on N = 2"]
    assert found[1] == [["N = 2", "1.200 ± 0.497", "1.000 ± 0.000", "1.500 ± 0.000", ""]]
    assert bits_table([result(1, 0, 0.5)]) is None


def test_one_seed_of_text_is_compared_row_by_row() -> None:
    curve = Curve([10], [1000], [1e6], [2.0], [(10, {"loss": 1.0})])
    rows = {1: [2.0, 3.0, 4.0], 2: [1.9, 2.8, 3.7]}
    results = [
        Result(Arm(f"n{n}", f"N = {n}", n), 0, n, {n: {"loss": sum(r) / 3}}, {n: [1.0]}, curve, r)
        for n, r in rows.items()
    ]
    found = bits_table(results)
    assert found is not None and found[1][1][-1] == "0.200 ± 0.248"  # 4.303 x 0.1 / sqrt(3)
    assert "+0.200 nats (one seed; over 3 held-out rows, paired, " in " ".join(verdict(results))
    more = [results[0], replace(results[0], seed=1), results[1]]
    assert "+0.200 nats (one seed; over 3 held-out rows, paired, " in " ".join(verdict(more))
    before = replace(results[1], rows=[])  # from before rows were evaluated
    found, said = bits_table([results[0], before]), verdict([results[0], before])
    assert found is not None and found[1][1][-1] == "0.200" and "one seed: no interval" in said[1]
    found = bits_table([results[0], replace(results[1], seed=1)])
    assert found is not None and found[1][1][-1] == ""


def test_a_dry_run_says_what_a_study_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["reproduce", "depo", "--scale", "paper", "--passes", "1", "4", "--seeds", "2"]
    assert main([*asked, "--dry-run", "--out", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    cells = [[c.strip() for c in line.split("|")] for line in said.splitlines()]
    one, four = (next(c for c in cells if c[1:2] == [name]) for name in ("n1", "n4"))
    assert one[4] == four[4] and (one[9], one[2]) == ("0", "2")
    flops = 2 * sum(float(row[8]) + float(row[9]) for row in (one, four))
    total = float(said.rpartition("All runs: ")[2].partition(" FLOPs")[0])
    assert total == pytest.approx(flops, rel=0.01) and "device hours of NVIDIA H100" in said
    assert "of a branch" not in said and not (tmp_path / "none").exists()
    for task in ("text", "stories"):  # of one a size is known, of the other a tokenizer is made
        asked = ["reproduce", task, "--seeds", "1", "--passes", "1", "--dry-run"]
        assert main([*asked, "--out", str(tmp_path / "none")]) == 0
        assert "| n1 " in capsys.readouterr().out and not (tmp_path / "none").exists()


def test_settings_of_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def row(task: str, *settings: str) -> list[str]:
        asked = ["reproduce", task, *settings, "--seeds", "1", "--passes", "1", "--dry-run"]
        assert main([*asked, "--out", str(tmp_path / "none")]) == 0
        lines = capsys.readouterr().out.splitlines()
        return next(line for line in lines if line.startswith("| n1 ")).replace(" ", "").split("|")

    usual, larger = (
        int(row("text", *s)[4].replace(",", "")) for s in ([], ["model.vocab_size=8192"])
    )
    assert larger > usual
    assert (row("depo")[3], row("depo", "parallel.tp=2")[3]) == ("1", "2")


def test_a_dry_run_is_no_array_and_its_hardware_none_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["reproduce", "depo", "--seeds", "1", "--out", str(tmp_path / "none")]
    assert main([*study, "--hardware", "h200"]) == 2
    assert "--hardware h200 is for --dry-run" in capsys.readouterr().err
    assert main([*study, "--dry-run", "--array", str(tmp_path / "left.txt")]) == 2
    assert "--array: --dry-run writes nothing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_controls_are_listed_and_an_unknown_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "depo", "--controls", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in CONTROLS)
    assert len(set(COLOURS)) >= len((1, 2, 4, 8)) + len(CONTROLS)  # each in a colour of its own
    method = (Path(__file__).parents[2] / "docs/method.md").read_text(encoding="utf-8")
    assert not [name for name in CONTROLS if f"`{name}`" not in method]  # its table has them all
    assert main(["reproduce", "depo", "--controls", "equal-flop"]) == 2
    assert "--controls: unknown control equal-flop; choose from" in capsys.readouterr().err
    assert main(["reproduce", "mqar", "--controls", "depth-rises"]) == 2
    assert "--controls depth-rises: " in capsys.readouterr().err
    assert main(["reproduce", "depo", "--controls", "no-h", "--controls-of", "3"]) == 2
    assert "--controls-of 3: name an N above 1 that --passes has: 2, 4" in capsys.readouterr().err
    assert main(["reproduce", "depo", "--passes", "1", "--controls", "no-h"]) == 2
    assert (
        "need an N above 1 to be compared with; name one with --passes" in capsys.readouterr().err
    )
    assert main(["reproduce", "depo", "sleep.passes=2"]) == 2
    assert (
        "sleep.passes=2: a study sets sleep.passes itself; use --passes" in capsys.readouterr().err
    )
