"""STUDY.toml -> runs: sizes, budgets, transferred rates, branches; and reports on them."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from launch.cli import main
from launch.commands import many_runs
from pretrain.config.load import load, override, to_toml
from pretrain.errors import UserError
from pretrain.model.hybrid import initial_value
from pretrain.origin import add_origin
from pretrain.run.optimizer import lr_factor
from pretrain.study import coordinates
from pretrain.study.curve import Curve
from pretrain.study.fit_report import write_fit
from pretrain.study.ladder import LadderRun, count, expand, read_study
from pretrain.study.one_run import Left, fingerprint, is_done
from pretrain.study.predictions import predict
from pretrain.study.runner import branch_off, run_all, write_array
from pretrain.study.scale import finished
from pretrain.study.transfer import Transfer, transferred

HYPNOS = [sys.executable, str(Path(__file__).with_name("hypnos.py"))]
CONFIGS = Path(__file__).parents[2] / "configs"
DEPO = CONFIGS / "studies/depo-cpu.toml"
LADDER = f"""
[ladder]
config = "{DEPO}"
widths = [32, 64, 128]
passes = [1, 4]
seeds = 2
budgets = [0.25, 0.5, 1.0]
"""


def study(folder: Path, text: str = LADDER) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def rungs_of(folder: Path, text: str = LADDER) -> list[LadderRun]:
    path = study(folder, text)
    return expand(path, read_study(path))


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> list[LadderRun]:
    return rungs_of(tmp_path_factory.mktemp("study"))


def test_a_ladder_has_every_size_n_seed_and_budget_once(ladder: list[LadderRun]) -> None:
    assert len(ladder) == len({r.run.name for r in ladder}) == 3 * 2 * 2 * 3
    tuned = load(DEPO)
    sizes = {r.width: r.run.settings() for r in ladder if r.passes == 4 and r.budget == 1}
    assert [len(c.model.layers) for c in sizes.values()] == [2, 4, 8]
    assert sizes[64].model.attention_heads == tuned.model.attention_heads
    assert sizes[128].model.delta_value_heads == 2 * tuned.model.delta_value_heads
    grown = count(sizes[128])[0] / count(tuned)[0]
    assert sizes[128].train.steps == pytest.approx(grown * tuned.train.steps, rel=1e-2)


def test_a_branch_is_its_trunk_up_to_its_own_decay(ladder: list[LadderRun]) -> None:
    by_name = {r.run.name: r.run for r in ladder}
    for run in by_name.values():
        if not run.trunk:
            continue
        mine, its = run.settings(), by_name[run.trunk].settings()
        assert run.branch == mine.train.steps - mine.optimizer.decay
        assert run.branch % its.train.checkpoint_every == 0  # that checkpoint is saved
        assert run.branch % its.train.keep_every == 0  # and kept
        for step in (0, run.branch // 2, run.branch - 1):
            factors = [lr_factor(step, c.train.steps, c.optimizer) for c in (mine, its)]
            assert factors[0] == factors[1]
        assert mine.optimizer.decay == pytest.approx(0.2 * mine.train.steps, abs=1)


def test_rates_and_initial_values_follow_the_size(ladder: list[LadderRun]) -> None:
    tuned = load(DEPO)
    (wide,) = (r.run.settings() for r in ladder if r.run.name == "w128-n4-seed0")
    assert wide.optimizer.muon_lr == tuned.optimizer.muon_lr  # Muon's rate accounts for width
    assert wide.optimizer.head_lr_share == 0.5
    assert wide.model.init_std == pytest.approx(tuned.model.init_std / 2**0.5, rel=1e-5)
    branch = initial_value("blocks.0.mlp.down.weight", [512, 512], wide.model, 0).std()
    assert float(branch) == pytest.approx(wide.model.residual_std, rel=1e-2)
    assert wide.model.residual_std == pytest.approx(wide.model.init_std / 2**0.5, rel=1e-5)
    # with AdamW the body's rate decreases, and its decay with it
    adamw = override(tuned, ['optimizer.name="adamw"'])
    wider = override(adamw, ["model.d_model=128"])
    assert "optimizer.body_lr_share=0.5" in transferred(wider, adamw, Transfer())
    same = override(tuned, transferred(tuned, tuned, Transfer()))
    assert same.optimizer == tuned.optimizer and same.model.init_std == tuned.model.init_std


@pytest.mark.parametrize("name", ["depo", "rule110"])  # text would need a tokenizer first
def test_the_studies_of_the_repository_expand(name: str) -> None:
    path = CONFIGS / f"scale/{name}.toml"
    ladder = expand(path, read_study(path, ["ladder.seeds=1"]))
    assert len(ladder) == 4 * 3 * 2 and all(r.run.settings() for r in ladder[:2])
    assert read_study(CONFIGS / "scale/text.toml").ladder.windows == [64]
    tuned = load(path.parent / read_study(path).ladder.config)
    for _, _, arm in coordinates.points(tuned):
        override(tuned, arm)


def test_what_ran_of_text_is_found_again() -> None:
    """Also if windows of another length are added."""
    path = CONFIGS / "scale/text.toml"
    kept = {file.stem for file in (CONFIGS.parent / "docs/results/scale-text/done").glob("*.json")}
    settings = [*read_study(path).ladder.settings, "model.vocab_size=512"]
    small = f"ladder.settings={to_toml(settings)}"
    runs = {r.run.name for r in expand(path, read_study(path, [small]))}
    more = {r.run.name for r in expand(path, read_study(path, [small, "ladder.windows=[64,128]"]))}
    assert len(runs) == 72 and runs < more and runs < kept


def test_budgets_and_batches_of_text_are_tokens_whatever_the_window() -> None:
    path = CONFIGS / "scale/text.toml"
    settings = [*read_study(path).ladder.settings, "model.vocab_size=512"]
    asked = ["ladder.windows=[64,128]", "ladder.widths=[64]", "ladder.seeds=1"]
    tokens: dict[float, set[tuple[int, int]]] = {}
    for r in expand(path, read_study(path, [*asked, f"ladder.settings={to_toml(settings)}"])):
        c = r.run.settings()
        row = c.data.windows * c.sleep.window
        tokens.setdefault(r.budget, set()).add((c.train.batch * row, c.train.steps))
    assert len(tokens) == 2 and all(len(each) == 1 for each in tokens.values())


def test_a_width_without_whole_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ladder\.widths: a width of 40 .* multiples of 16"):
        rungs_of(tmp_path, LADDER.replace("[32, 64, 128]", "[40]"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budgets = [0.3, 1.0]", "whole multiple of the smallest, 0.3"),
        ("passes = [4, 1]", "list each once, in increasing order"),
        ("layouts = [{ranks = 2}]", "one for each of the 3 widths"),
        ("windws = [16]", "did you mean ladder.windows?"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    name = text.split(" = ")[0]
    kept = "\n".join(line for line in LADDER.splitlines() if not line.startswith(name))
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        read_study(study(tmp_path, f"{kept}\n{text}\n"))


def test_a_layout_on_the_command_line_is_refused_with_a_setting_of_the_study() -> None:
    with pytest.raises(UserError, match=r"layouts\[0\]\.passes; did you mean ladder\.passes\?"):
        read_study(CONFIGS / "scale/depo.toml", ["ladder.layouts=[{passes=2}]"])


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("{ranks = 3}", "is not divisible by 3 data-parallel"),
        ('{settings = ["parallel.tp=2"]}', "1 ranks are not divisible by parallel"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(tmp_path: Path, layout: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        rungs_of(tmp_path, f"{LADDER}layouts = [{layout}, {{}}, {{}}]\n")


def test_branches_wait_for_their_trunk_and_begin_with_it(
    tmp_path: Path, ladder: list[LadderRun]
) -> None:
    few = [r.run for r in ladder if r.trunk == "w32-n4-seed0"]
    trunk, branch = few[0], few[1]
    assert not branch_off(tmp_path, branch)
    array = tmp_path / "left.txt"
    assert write_array(few, tmp_path, array) == 1  # only the trunk
    there = tmp_path / "runs" / trunk.name
    (there / "checkpoints" / f"step-{branch.branch}").mkdir(parents=True)
    (there / "checkpoints" / f"step-{branch.branch}" / "index.json").write_text("weights")
    (there / "metrics.jsonl").write_text("rows\n")
    assert branch_off(tmp_path, branch) and branch_off(tmp_path, branch)
    here = tmp_path / "runs" / branch.name
    assert (here / f"checkpoints/step-{branch.branch}/index.json").read_text() == "weights"
    assert (here / "metrics.jsonl").exists() and write_array(few, tmp_path, array) == 2
    (there / "checkpoints" / f"step-{trunk.settings().train.steps}").mkdir()
    assert write_array(few, tmp_path, array) == 1  # the trunk is trained and waits for evaluation


def test_an_array_has_the_next_rung(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the next, so that each rung is predicted before it runs."""
    few = LADDER.replace("seeds = 2", "seeds = 1").replace("[0.25, 0.5, 1.0]", "[0.5, 1.0]")
    path, array = study(tmp_path, few), tmp_path / "left.txt"
    command = ["scale", str(path), "--array", str(array), "--out", str(tmp_path)]
    for width in (32, 64, 128):
        assert main(command) == 0
        assert f"width {width}: 2 runs, and 2 wait for some of these" in capsys.readouterr().out
        assert array.read_text().count(f"run.name=w{width}-") == 2
        results(tmp_path, [r for r in expand(path, read_study(path)) if r.width == width])
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 2 * 2 * 4
    assert main(command) == 0 and "all runs are done" in capsys.readouterr().out


def test_what_an_array_has_trained_is_evaluated_before_the_next_rung(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_runs, "HYPNOS", HYPNOS)
    path = study(tmp_path, LADDER.replace("seeds = 2", "seeds = 1"))
    runs = [r.run for r in expand(path, read_study(path))]
    for run in runs[:6]:  # the smallest rung
        there = tmp_path / "runs" / run.name
        (there / "checkpoints" / f"step-{run.settings().train.steps}").mkdir(parents=True)
        row = {"kind": "train", "step": 5, "loss": 1.5, "tokens": 500, "tokens_per_s": 50.0}
        (there / "metrics.jsonl").write_text(json.dumps(row | {"flops_per_s": 1e6}) + "\n")
        add_origin(there)
    command = ["scale", str(path), "--array", str(tmp_path / "left.txt"), "--out", str(tmp_path)]
    assert main([*command, "--jobs", "2"]) == 0
    assert "rung 1 of 2, width 64: 2 runs, and 4 wait" in capsys.readouterr().out
    assert [is_done(tmp_path, run) for run in runs] == [True] * 6 + [False] * 12
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {r.name for r in runs[:6]}


def test_a_branch_fails_with_its_trunk(tmp_path: Path, ladder: list[LadderRun]) -> None:
    (tmp_path / "FAILS").write_text("9")
    few = [r.run for r in ladder if r.trunk == "w32-n4-seed0"]
    jobs = run_all(few, tmp_path, hypnos=HYPNOS, jobs=2, retries=0)
    assert [job.state for job in jobs] == ["failed"] * 3


def results(folder: Path, ladder: Sequence[LadderRun]) -> None:
    """Writes finished runs as the runner does, by a law with phi = 0.5 and hops by N."""
    for r in ladder:
        config = r.run.settings()
        whole, looped = count(config)
        size = whole - looped + looped * r.passes**0.5
        tokens = config.train.steps * config.train.batch * 48
        loss = 0.1 + 50 * size**-0.5 + 60 * tokens**-0.4 + 1e-4 * r.seed
        accuracy = {f"hops_{k}": 1 / (1 + k / r.passes) for k in (1, 2, 4)}
        (folder / "done").mkdir(exist_ok=True)
        found = [{"passes": r.passes, "loss": loss, "accuracy": accuracy}]
        left = Left(fingerprint(r.run), found, {}, Curve([], [], [], [], []))
        (folder / "done" / f"{r.run.name}.json").write_text(json.dumps(asdict(left)))


def test_what_is_written_of_a_ladder(tmp_path: Path) -> None:
    some = rungs_of(tmp_path, LADDER.replace("seeds = 2", "seeds = 1"))
    results(tmp_path, some[:-1])
    done = finished(some, tmp_path)
    predicted = predict(some, done, 2, chance=0.0)
    assert not predict(some, done, 1, chance=0.0) and predicted[-1].of.width == 128
    assert [p.measure for p in predicted[:4]] == ["loss", "hops_1", "hops_2", "hops_4"]
    assert len([p for p in predicted if p.measured]) == len(predicted) - 4  # one is missing
    for p in predicted:
        # accuracy follows the law exactly, loss nearly
        assert not p.measured or abs(p.error) < (0.05 if p.measure == "loss" else 1e-6)
    text = write_fit(some, done, tmp_path, "tiny", 0.125, draws=2)
    assert f"Missing: {some[-1].run.name}" in text and "phi = 0.5 [" in text
    assert "more sleep: N = " in text and "![depth](depth.png)" in text
    loss, depth = text.split("Each rung left out, and predicted from all others:")[1:]
    off = [float(share) for share in re.findall(r"([\d.]+) points \|", depth)]
    assert "points" not in loss.split("##")[0] and len(off) == 3 and max(off) < 2
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert len(rows) == 17 and rows[0]["hops_4"] == "0.2" and rows[0]["blocks"] == "2"
    predicted = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(predicted) == 6 * 4 and predicted[-1]["measured"] == "-"
    for picture in ("frontier.png", "depth.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    first = tmp_path / "done" / f"{some[0].run.name}.json"  # make it diverge
    left = json.loads(first.read_text())
    left["evaluations"][0]["loss"] = None
    first.write_text(json.dumps(left))
    # an unfinished rung leaves no gap
    there = [d for d in finished(some, tmp_path) if d.of.rung != 1]
    text = write_fit(some, there, tmp_path, "tiny", 0.125, draws=2)
    assert "loss of rung 2 with N = 1" in text and "Fewer than three token budgets" not in text
    few = [d for d in there if d.of.budget > 0.25]
    assert "Fewer than three token budgets" in write_fit(some, few, tmp_path, "t", 0.125, draws=2)
    assert f"Diverged, and left out of the laws: {some[0].run.name}." in text


def test_a_dry_run_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = LADDER.replace("[32, 64, 128]", "[64]").replace("[0.25, 0.5, 1.0]", "[0.5, 1.0]")
    asked = ["--dry-run", "--hardware", "h200", "--out", str(tmp_path)]
    assert main(["scale", str(study(tmp_path, text)), *asked]) == 0
    said = capsys.readouterr().out
    assert "w64-n4-b0.5" in said and "210,384" in said and "device hours of" in said
    assert "do not fit" not in said and not (tmp_path / "runs").exists()
    brief = 'ladder.settings=["train.steps=40", "optimizer.warmup=20"]'
    assert main(["scale", str(study(tmp_path, text)), *asked, brief]) == 0
    short = capsys.readouterr().err
    assert "runs decay before they have warmed up, the first is w64-n1-seed0-b0.5" in short
    large = LADDER.replace("[32, 64, 128]", "[16384]") + "block_power = 0.0\n"
    assert main(["scale", str(study(tmp_path, large)), *asked, "ladder.passes=[4]"]) == 0
    assert "! 3 of 3 do not fit in the 133.8 GiB" in capsys.readouterr().out
