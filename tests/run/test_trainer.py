"""Runs: what they write, and that an interrupted and resumed run is the same run."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.cli import main
from pretrain import trainer
from pretrain.checkpoint import latest_valid, steps
from pretrain.checkpoint.folder import given_up
from pretrain.config.load import dump, load
from pretrain.config.schema import GuardConfig
from pretrain.errors import UserError
from pretrain.run import train_row
from pretrain.trainer import train
from tests.marks import slow
from tests.run.conftest import MakeConfig
from tests.run.planted import planted
from tests.runs import assert_same, assert_same_run, interrupted, rows, tensors

ROOT = Path(__file__).parents[2]


def test_a_run_is_a_folder(depo: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = depo("whole", checkpoint_every=2)
    run = train(config)
    assert {p.name for p in run.iterdir()} == {
        "config.toml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "lock",
        "origins.jsonl",
    }
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"latest", "step-4", "step-6"}
    written = load(run / "config.toml")
    assert written.model.vocab_size > 0 and written.optimizer == config.optimizer
    kinds = [(row["kind"], row["step"], row.get("passes")) for row in rows(run)]
    evaluations = [("eval", step, n) for step in (0, 3, 6) for n in (2, 1)]
    training = [("train", step, None) for step in (1, 3, 6)]
    assert sorted(kinds, key=str) == sorted(evaluations + training, key=str)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-3])
    assert row["kind"] == "train" and row["tokens"] == 6 * 4 * 24
    assert row["loss_per_window"][0] is None  # nothing is scored in the window of edges
    assert row["loss"] == pytest.approx(sum(row["loss_per_window"][1:]) / 2)
    assert row["wake_tokens_per_s"] == pytest.approx(row["tokens_per_s"])
    # one window of three, N = 2
    assert row["sleep_tokens_per_s"] == pytest.approx(row["wake_tokens_per_s"] / 3)
    assert len(row["grad_norm_per_pass"]) == len(row["update_norm_per_pass"]) == 2
    positive = ("grad_norm", "state_norm", "retention", "mfu", "flops_per_s", "lr_muon", "lr_adamw")
    assert all(row[key] > 0 for key in positive)
    log = capsys.readouterr().err
    assert "step 6/6  loss " in log and "held-out loss" in log and "eta" in log
    train(config)
    assert "has already finished, at step 6; raise" in capsys.readouterr().err
    assert len((run / "origins.jsonl").read_text().splitlines()) == 1  # only if it trains


def test_every_tensor_that_a_run_starts_with_is_progress(
    depo: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the watchdog: to draw or read a large model may take longer than parallel.timeout."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr("parallel.watchdog.part", lambda how, what, *_: seen.append((how, what)))
    config = interrupted(depo("slow"))
    weights = [name for how, name in seen if how == "drawing"]
    assert "embed.weight" in weights and all("." in name for name in weights)
    seen.clear()
    train(config)
    read = [name for how, name in seen if how == "reading"]
    assert read[: len(weights)] == weights
    assert sorted({name.partition(".")[2] for name in read[len(weights) :]}) == sorted(weights)
    assert "drawing" not in dict(seen)


def test_an_evaluation_is_no_training_time(
    depo: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the one before the first step; each evaluation seems to take 1,000 s here."""
    evaluate, late = trainer.evaluate, [0.0]

    def long(*given: Any) -> None:
        evaluate(*given)
        late[0] += 1000

    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + late[0])
    monkeypatch.setattr(trainer, "evaluate", long)
    monkeypatch.setattr(train_row, "time", clock)
    run = train(depo("timed", steps=2, log_every=1), progress=False)
    written = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rates = [row["tokens_per_s"] for row in written if row["kind"] == "train"]
    assert len(rates) == 2 and min(rates) > 4 * 24 / 1000


def test_steps_are_traced(depo: MakeConfig) -> None:
    """The requested steps, or those of them that the run reaches."""
    run = train(depo("traced", steps=3, profile=[2, 9]), progress=False)
    (path,) = (run / "profile").iterdir()
    assert path.name == "steps-2-to-9-rank-0.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert {"ProfilerStep#1", "ProfilerStep#2"} < {event["name"] for event in events}
    assert "ProfilerStep#0" not in {event["name"] for event in events}
    with pytest.raises(UserError, match=r"train\.profile = \[3, 2\]: must be a first and a last"):
        train(depo("refused", profile=[3, 2]), progress=False)


def test_the_last_evaluation_tries_each_number_of_passes(depo: MakeConfig) -> None:
    config = depo("tried", steps=2, eval_every=1)
    run = train(replace(config, sleep=replace(config.sleep, passes=4)), progress=False)
    evaluated = [row for row in rows(run) if row["kind"] == "eval"]
    tried = [(row["step"], row["passes"]) for row in evaluated]
    assert tried == [(0, 4), (0, 1), (1, 4), (1, 1), (2, 4), (2, 1), (2, 2), (2, 3)]
    assert len({row["loss"] for row in evaluated[-4:]}) == 4


@pytest.mark.slow  # a process of its own; for ranks under a launcher see tests/resume
def test_text_resumes_bit_for_bit_in_a_new_process(text: MakeConfig) -> None:
    expected = train(text("whole"), progress=False)
    assert any(name.startswith("state/lanes.") for name in tensors(expected, 3)), (
        "some document must go on"
    )
    config = interrupted(text("parts"))
    path = Path(config.run.dir) / "parts.toml"
    path.write_text(dump(config))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "train", str(path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "parts at step 3 with train.steps = 6 (was 3)\n" in done.stderr
    assert len((Path(config.run.dir) / "parts/origins.jsonl").read_text().splitlines()) == 2
    assert_same_run(Path(config.run.dir) / "parts", expected)


@pytest.mark.parametrize("zero", [slow(1), 2])
def test_bf16_and_sliding_eviction_resume_bit_for_bit(text: MakeConfig, zero: int) -> None:
    changes = {"precision": "bf16", "zero": zero, "eviction": "sliding", "microbatches": 2}
    expected = train(text("whole", **changes), progress=False)
    run = train(interrupted(text("parts", **changes)), progress=False)
    assert_same_run(run, expected)
    master = tensors(run)["model/norm.weight"]
    assert not torch.equal(master, master.bfloat16().float())


@pytest.mark.parametrize(("zero", "then"), [(0, 3), slow(2, 1), slow(3, 0)])
def test_another_stage_and_other_microbatches_go_on_the_same(
    depo: MakeConfig, zero: int, then: int
) -> None:
    expected = train(depo("whole"), progress=False)
    config = interrupted(depo("parts", zero=zero))
    config.parallel.zero, config.train.microbatches = then, 2
    assert_same_run(train(config, progress=False), expected, 1e-5)


def test_a_damaged_checkpoint_is_passed_over(
    depo: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train(depo("whole"), progress=False)
    config = interrupted(depo("parts", checkpoint_every=2), at=4)
    damaged = Path(config.run.dir) / "parts/checkpoints/step-4/optimizer.0.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    config.train.checkpoint_every = 3
    run = train(config)
    log = capsys.readouterr().err
    assert "step-4/optimizer.0.safetensors: damaged" in log and "at step 2" in log
    assert_same(tensors(run), tensors(expected), 0.0)
    assert steps(run) == [3, 6] and given_up(run) == ["given-up-step-4"]
    for file in run.glob("checkpoints/step-*/index.json"):
        file.unlink()
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        train(config, progress=False)


def test_a_future_that_was_given_up_is_no_past(
    depo: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run sent back by hand continues from there, also after damage; and nothing is lost."""
    config = depo("back", checkpoint_every=1, keep=4)
    run = train(config, progress=False)
    checkpoints = run / "checkpoints"
    first = {path: path.read_bytes() for path in checkpoints.glob("step-[56]/*")}
    config.train.checkpoint_every = 2
    for kept in (["5", "6"], ["5", "6", "6-2"]):
        assert steps(run)[:2] == [3, 4] and steps(run)[-1] == 6
        (checkpoints / "latest").write_text("step-4\n")
        train(config, progress=False)
        told = "step-6 renamed to given-up-step-N, as the run resumes from the earlier step-4"
        assert told in capsys.readouterr().err
        assert steps(run) == [3, 4, 6]
        assert given_up(run) == [f"given-up-step-{name}" for name in kept]
    for path, content in first.items():
        assert (checkpoints / f"given-up-{path.parent.name}" / path.name).read_bytes() == content
    (checkpoints / "step-6/index.json").unlink()
    found = latest_valid(run, lambda line: None)
    assert found is not None and found.step == 4
    assert main(["doctor", str(run)]) == 1
    assert "note  given up       given-up-step-6-2: " in capsys.readouterr().out


def test_settings_that_change_the_result_are_refused(depo: MakeConfig) -> None:
    """By the command. Which ones, and how each is named: see tests/config/test_fields.py."""
    train(depo("parts", steps=3, eval_every=9), progress=False)
    for section, name, value, message in (
        ("sleep", "passes", 3, r"step-3 cannot be used with sleep\.passes = 3 \(was 2\)"),
        ("sleep", "window", 4, r"another run with its weights: run\.init_from=\S+ run\.name=NEW$"),
        ("model", "norm_eps", 1e-3, r"set it back, or begin another run: run\.name=NEW$"),
        ("train", "precision", "bf16", r'train\.precision = "bf16" \(was "'),
        ("depo", "max_hops", 1, r"depo\.max_hops = 1 \(was "),
    ):
        config = depo("parts")
        setattr(getattr(config, section), name, value)
        with pytest.raises(UserError, match=message):
            train(config, progress=False)


def test_a_refused_resume_leaves_the_run_as_it_is(text: MakeConfig) -> None:
    """Also if it is refused for its data, which may have moved since but not changed."""
    config = text("other-data", steps=2)
    kept = (train(config, progress=False) / "config.toml").read_bytes()
    config.train.steps = 3
    config.data.train = [replace(corpus, weight=2.0) for corpus in config.data.train]
    with pytest.raises(UserError, match=r"^data\.train differs from the checkpoint's"):
        train(config, progress=False)
    assert Path(config.run.dir, "other-data/config.toml").read_bytes() == kept


def test_errors_of_the_layout_name_the_setting(depo: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"train\.batch = 4 is not divisible by 1 data-parallel ranks x .* = 3"
    ):
        train(depo("a", microbatches=3), progress=False)
    with pytest.raises(
        UserError, match=r"parallel\.zero = 0 with train\.precision = bf16 and .*: without ZeRO"
    ):
        train(depo("b", precision="bf16", zero=0, microbatches=2), progress=False)
    config = depo("b")
    config.model.vocab_size = 5
    with pytest.raises(UserError, match=r"model\.vocab_size = 5 is less than"):
        train(config, progress=False)
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UserError, match=r"c/checkpoints: cannot be written: Not a directory"):
        train(depo("c"), progress=False)


def test_a_configuration_that_could_not_be_read_again_is_refused(text: MakeConfig) -> None:
    config = text("many")
    many = replace(config, data=replace(config.data, train=config.data.train * 2000))
    with pytest.raises(UserError, match=r"config.toml: more than 64 KiB"):
        train(many)


def test_a_run_that_cannot_sleep_says_so(
    depo: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = depo("forgetful", steps=1)
    config.model.decay_init = (200.0, 300.0)  # S decays completely from one token to the next
    run = train(config)
    assert "warning: sleep changes nothing" in capsys.readouterr().err
    assert [row["step"] for row in rows(run) if row["kind"] == "warning"] == [1]
    shutil.rmtree(run)


@pytest.mark.parametrize("number", [errno.ENOSYS, slow(errno.EOPNOTSUPP), slow(errno.ENOLCK)])
def test_a_file_system_without_locks_is_named_once(
    number: int,
    depo: MakeConfig,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    config = depo(f"unlocked-{number}", steps=4, checkpoint_every=2)
    with planted({2, 3}):  # a rollback does not lock the folder again
        train(replace(config, guard=GuardConfig(limit=2, then="rollback")), progress=False)
    (line,) = capfd.readouterr().err.splitlines()
    assert f"lock: the file system has no locks ({os.strerror(number)})" in line
