"""Many runs: each is done once, retried, given up, stopped in time, refused with other settings."""

from __future__ import annotations

import fcntl
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from launch.cli import main
from launch.commands.many_runs import tell_end
from pretrain.checkpoint.folder import checkpoint_dir
from pretrain.config.load import dump, load
from pretrain.errors import UserError
from pretrain.study import progress, runner
from pretrain.study.one_run import Run, check_begun, is_done, left_by
from pretrain.study.progress import StudyProgress
from pretrain.study.runner import Job, run_all, write_array
from tests.marks import slow

HYPNOS = [sys.executable, str(Path(__file__).with_name("hypnos.py"))]
DEPO = Path(__file__).parents[2] / "configs/depo-small.toml"
RUNS = [Run(f"r{i}", DEPO, (f"run.seed={i}",), (1, 2)) for i in range(4)]


def starts(folder: Path, run: Run) -> int:
    """How often the run was started."""
    path = folder / "runs" / run.name / "starts"
    return len(path.read_text()) if path.exists() else 0


def test_every_run_is_trained_and_evaluated_once(tmp_path: Path) -> None:
    most = 0

    def watch(jobs: list[Job]) -> None:
        nonlocal most
        most = max(most, sum(job.process is not None for job in jobs))

    jobs = run_all(RUNS, tmp_path, hypnos=HYPNOS, jobs=2, show=watch)
    assert [job.state for job in jobs] == ["done"] * 4 and most == 2
    assert [e["loss"] for e in left_by(tmp_path, RUNS[3]).evaluations] == [1.0, 0.5]
    again = run_all(RUNS, tmp_path, hypnos=["/no/such/command"], jobs=2)
    assert [job.state for job in again] == ["done"] * 4
    assert [starts(tmp_path, run) for run in RUNS] == [1] * 4
    assert "run.seed=2" in (tmp_path / "logs" / "r2.log").read_text()


def test_what_an_array_has_trained_is_only_evaluated(tmp_path: Path) -> None:
    run_all(RUNS[:1], tmp_path, hypnos=HYPNOS)
    (tmp_path / "done" / "r0.json").unlink()
    checkpoint_dir(tmp_path / "runs" / "r0", 1250).mkdir(parents=True)
    states = set[str]()
    (job,) = run_all(RUNS[:1], tmp_path, hypnos=HYPNOS, show=lambda jobs: states.add(jobs[0].state))
    assert states <= {"waiting", "evaluating", "done"} and job.state == "done"
    assert starts(tmp_path, RUNS[0]) == 1


def test_each_run_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: only the assignment is tested."""
    monkeypatch.setattr(runner, "visible", lambda: ["2", "5", "GPU-a"])
    together = set[tuple[str, ...]]()

    def watch(jobs: list[Job]) -> None:
        cards = [card for job in jobs if job.process for card in job.cards]
        assert len(set(cards)) == len(cards)
        together.add(tuple(sorted(cards)))

    wide = Run("wide", DEPO, (), (1, 2), ranks=2)
    run_all([*RUNS, wide], tmp_path, hypnos=HYPNOS, jobs=2, show=watch)
    assert ("2", "5") in together
    given = {run.name: (tmp_path / "runs" / run.name / "cards").read_text() for run in RUNS}
    assert {*given.values()} <= {"2", "5", "GPU-a"} and len({*given.values()}) > 1


@pytest.mark.parametrize(("fails", "state", "begun"), [(2, "done", 3), slow(9, "failed", 3)])
def test_a_run_that_fails_is_begun_again_so_many_times(
    tmp_path: Path, fails: int, state: str, begun: int
) -> None:
    (tmp_path / "FAILS").write_text(str(fails))
    (job,) = run_all(RUNS[:1], tmp_path, hypnos=HYPNOS, jobs=1, retries=2)
    assert (job.state, job.tries, starts(tmp_path, RUNS[0])) == (state, begun, begun)


def test_a_branch_is_given_up_when_its_trunk_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = Run("branch", DEPO, trunk="r0", branch=3)
    (tmp_path / "FAILS").write_text("9")
    jobs = run_all([branch, RUNS[0]], tmp_path, hypnos=HYPNOS, jobs=1, retries=0)
    assert [(job.state, job.tries) for job in jobs] == [("failed", 0), ("failed", 1)]
    tell_end(jobs)
    assert "branch was not started: r0 has ended without its" in capsys.readouterr().err


def test_a_branch_of_a_trunk_that_left_its_results_alone_begins_at_the_beginning(
    tmp_path: Path,
) -> None:
    run_all(RUNS[:1], tmp_path, hypnos=HYPNOS, jobs=1)
    shutil.rmtree(tmp_path / "runs")
    branch = Run("branch", DEPO, trunk="r0", branch=3)
    (job,) = run_all([branch], tmp_path, hypnos=HYPNOS, jobs=1, seconds=30)
    assert (job.state, starts(tmp_path, branch)) == ("done", 1)


def test_runs_have_a_core_for_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "cores", lambda: 4)
    wide, most = [replace(run, ranks=2) for run in RUNS], 0

    def watch(jobs: list[Job]) -> None:
        nonlocal most
        most = max(most, sum(job.process is not None for job in jobs))

    jobs = run_all(
        [*wide, replace(RUNS[0], name="wider", ranks=8)], tmp_path, hypnos=HYPNOS, show=watch
    )
    assert [job.state for job in jobs] == ["done"] * 5 and most == 2


@pytest.mark.slow
def test_after_its_time_what_trains_is_ended_and_nothing_more_is_begun(tmp_path: Path) -> None:
    (tmp_path / "SLOW").touch()
    begin = time.monotonic()
    jobs = run_all(RUNS, tmp_path, hypnos=HYPNOS, jobs=2, seconds=1.5)
    assert time.monotonic() - begin < 20
    assert [(job.state, job.process) for job in jobs] == [("waiting", None)] * 4
    assert starts(tmp_path, RUNS[3]) == 0


def test_a_folder_whose_runs_another_process_does_can_be_looked_at_alone(tmp_path: Path) -> None:
    """Otherwise it would call the other's running trainings failed, and repeat its evaluations."""
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process does these runs; wait for it, or choose"):
        run_all(RUNS[:1], tmp_path, hypnos=HYPNOS)
    assert [job.state for job in run_all(RUNS[:1], tmp_path, hypnos=HYPNOS, seconds=0)] == [
        "waiting"
    ]
    os.close(folder)
    assert [job.state for job in run_all(RUNS[:1], tmp_path, hypnos=HYPNOS)] == ["done"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends them on Linux alone")
def test_no_training_outlives_a_study_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "SLOW").touch()
    study = multiprocessing.get_context("fork").Process(
        target=run_all, args=(RUNS[:1], tmp_path), kwargs={"hypnos": HYPNOS}
    )
    study.start()
    while not starts(tmp_path, RUNS[0]):
        time.sleep(0.05)
    (training,) = Path(f"/proc/{study.pid}/task/{study.pid}/children").read_text().split()
    study.kill()
    study.join()
    deadline = time.monotonic() + 20
    with suppress(FileNotFoundError, ProcessLookupError):  # there may be no process to reap it
        while Path(f"/proc/{training}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_results_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    run_all(RUNS[:1], tmp_path, hypnos=HYPNOS, jobs=1)
    more = Run("r0", DEPO, ("run.seed=0",), (1, 2, 4))
    run_all([more], tmp_path, hypnos=HYPNOS, jobs=1)
    assert [e["passes"] for e in left_by(tmp_path, more).evaluations] == [1, 2, 4]
    # a published record without weights counts as done for a larger study
    shutil.copytree(tmp_path / "done", tmp_path / "published/done")
    still = Run("r0", DEPO, ("run.seed=0",), (1, 2, 4, 8))
    checkpoint_dir(tmp_path / "runs" / "r0", 1250).mkdir(parents=True)
    assert is_done(tmp_path / "published", still) and not is_done(tmp_path, still)
    shutil.rmtree(
        tmp_path / "runs" / "r0" / "checkpoints"
    )  # deleted to save space: no reason to train again
    assert is_done(tmp_path, still)
    assert is_done(tmp_path, replace(still, overrides=("run.seed=0", "run.wandb=project")))
    changed = Run("r0", DEPO, ("run.seed=0", "sleep.passes=2"), (1, 2))
    with pytest.raises(
        UserError, match="was made with other settings or data than the study has now"
    ):
        run_all([changed], tmp_path, hypnos=HYPNOS, jobs=1)
    with pytest.raises(UserError, match=r"unknown setting sleep\.pases"):
        run_all([Run("x", DEPO, ("sleep.pases=1",))], tmp_path, hypnos=HYPNOS, jobs=1)


@pytest.mark.parametrize(
    ("begun", "told"),
    [
        ("model.d_model=32", "begun with model.d_model = 32; the study now has 64"),
        ("train.steps=900", "begun with train.steps = 900; the study now has 1250"),
        ("optimizer.decay=200", "begun with optimizer.decay = 200; the study now has 300"),
        (
            "optimizer.decay_shape=sqrt",
            'begun with optimizer.decay_shape = "sqrt"; the study now has "linear"',
        ),
        ("parallel.pp=2", ""),
        ("train.checkpoint_every=7", ""),
    ],
)
def test_what_was_begun_with_other_settings_is_not_gone_on_with(
    begun: str, told: str, tmp_path: Path
) -> None:
    """Started, for example, by an array with other settings, or as a trial."""
    config = load(DEPO, ["run.seed=0", begun])
    (tmp_path / "runs" / "r0").mkdir(parents=True)
    (tmp_path / "runs" / "r0" / "config.toml").write_text(dump(config))
    if told:
        with pytest.raises(UserError, match=re.escape(told)):
            run_all(RUNS[:1], tmp_path, hypnos=HYPNOS)
    else:
        assert [job.state for job in run_all(RUNS[:1], tmp_path, hypnos=HYPNOS)] == ["done"]


def test_a_begun_run_has_the_questions_of_the_study(tmp_path: Path) -> None:
    """By content, wherever they are: what it has evaluated is recorded as the study's."""
    config, folder = DEPO.with_name("questions.toml"), tmp_path / "runs" / "r"
    files = {name: tmp_path / name for name in ("a", "copy", "b")}
    for name, file in files.items():
        file.write_text("b" if name == "b" else "a")
    first = (f"questions.path={files['a']}", f"questions.heldout={files['a']}")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(dump(load(config, first)))
    check_begun(tmp_path, Run("r", config, (*first, f"questions.heldout={files['copy']}")))
    for other in (f"questions.heldout={files['b']}", "questions.heldout=", "questions.group=hops"):
        place = other.partition("=")[0]
        with pytest.raises(UserError, match=f"was begun with {place} = "):
            check_begun(tmp_path, Run("r", config, (*first, other)))
    files["a"].unlink()  # moved
    check_begun(tmp_path, Run("r", config, (first[0], f"questions.heldout={files['copy']}")))


def test_what_is_left_becomes_a_slurm_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(RUNS[:1], tmp_path, hypnos=HYPNOS, jobs=1)
    lines = tmp_path / "left.txt"
    assert write_array(RUNS, tmp_path, lines) == 3
    assert main(["launch", "slurm", str(DEPO), "--array", str(lines)]) == 0
    script = capsys.readouterr().out
    assert "0-2" in script and "run.seed=3" in script and f"run.dir={tmp_path}/runs" in script


def test_a_study_that_goes_to_slurm_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = tmp_path / "what is left.txt"
    asked = ["--seeds", "2", "--passes", "1", "4", "--out", str(tmp_path / "out")]
    assert main(["reproduce", "depo", *asked, "--array", str(array)]) == 0
    said = capsys.readouterr().out
    assert "4 runs; next: hypnos launch slurm" in said and f" --array '{array}' ..." in said
    assert len(array.read_text().splitlines()) == 4 and not (tmp_path / "out" / "runs").exists()


def test_a_study_of_a_configuration_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEPO, "mine.toml")
    asked = ["--seeds", "1", "--passes", "1", "4", "--controls", "equal-flops"]
    assert main(["reproduce", "mine.toml", "depo.max_hops=2", *asked, "--array", "left.txt"]) == 0
    assert "3 runs; next: hypnos launch slurm mine.toml" in capsys.readouterr().out
    lines = Path("left.txt").read_text().splitlines()
    assert all("depo.max_hops=2" in line and "runs/reproduce/mine/runs" in line for line in lines)
    for study, said in (
        (["dep"], "dep: no experiment; name rule110, depo, "),
        (["mine.toml", "--scale", "paper"], "--scale paper: mine.toml has the one size"),
        (["mqar", "--scale", "paper"], "mqar is not from the paper, so it has no --scale paper"),
        (["gone.toml"], "gone.toml: cannot read the configuration"),
    ):
        assert main(["reproduce", *study]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("study", [["reproduce", "depo"], ["scale", "configs/scale/depo.toml"]])
def test_an_array_has_no_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], study: list[str]
) -> None:
    asked = ["--minutes", "5", "--array", str(tmp_path / "left.txt")]
    assert main([*study, *asked, "--out", str(tmp_path / "out")]) == 2
    assert "--minutes: --array trains nothing; leave one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_text_reads_the_text_that_it_is_given(tmp_path: Path) -> None:
    array, out = tmp_path / "left.txt", tmp_path / "out"
    mine = ['data.train=[{path="mine"}]', "data.heldout=apart"]
    asked = ["--seeds", "1", "--passes", "1", "--out", str(out), "--array", str(array)]
    assert main(["reproduce", "text", *asked, *mine]) == 0
    (line,) = array.read_text().splitlines()
    assert [word for word in shlex.split(line) if word.startswith("data.")] == mine
    assert list(out.iterdir()) == []  # no tokenizer trained, no text prepared


def test_on_a_small_screen_the_table_has_what_is_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = ["done", "training", "failed", *["waiting"] * 9]
    jobs = [Job(replace(RUNS[0], name=f"r{i}"), tmp_path, 10, s) for i, s in enumerate(states)]
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, height=12)
    monkeypatch.setattr(progress, "Console", lambda **_: screen)
    with StudyProgress() as table:
        table.show(jobs)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "r1 " in shown and "r2 " in shown and "r0 " not in shown and "r3 " not in shown
    assert "12 runs: 1 done, 1 training, 1 failed, 9 waiting" in shown


def test_of_text_trainings_own_evaluation_is_not_enough(tmp_path: Path) -> None:
    """A study compares losses by row, which training does not record."""
    job = Job(Run("text", DEPO, (), (1,)), tmp_path, steps=5)
    job.path.mkdir(parents=True)
    row = {"kind": "eval", "step": 5, "passes": 1, "loss": 4.2}
    for found, said in ((row, [row]), (row | {"bits_per_byte": 2.1}, None)):
        (job.path / "metrics.jsonl").write_text(json.dumps(found) + "\n")
        assert job.own_evaluations() == said


def test_evaluations_of_long_windows_are_read_as_a_whole(tmp_path: Path) -> None:
    """A row has a loss for every position in a window."""
    job = Job(Run("long", DEPO, (), (1, 4)), tmp_path, steps=5)
    job.path.mkdir(parents=True)
    trained = {"kind": "train", "step": 5, "loss": 1.5}
    places = [1.2345678901234567] * 8192
    evaluated = [
        {"kind": "eval", "step": 5, "passes": n, "loss_per_position": places} for n in (1, 4)
    ]
    rows = [trained, *evaluated]
    (job.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert job.progress() == trained and job.own_evaluations() == evaluated
