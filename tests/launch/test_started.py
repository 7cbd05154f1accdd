"""What `hypnos launch status`, `logs` and `cancel` print for runs on this machine, and refuse."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import progress, starts
from launch.cli import main
from launch.starts import End, RankEnd, Start

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run at step 30 of 60, saved at 20; its first start has failed on rank 1."""
    folder = tmp_path / "run"
    (folder / "checkpoints/step-20").mkdir(parents=True)
    rows = [{"kind": "train", "step": step, "loss": 3 - step / 100} for step in (10, 20, 30)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "eval", "st')
    (folder / "config.toml").write_text("[train]\nsteps = 60\n")
    start = starts.begin(folder, "local", "1", ("here",), 2)
    for rank in range(2):
        starts.log_of(start.logs(folder), rank).write_text(f"said by rank {rank}\n")
    RankEnd(1, "here", 137, False, time.time()).write(start.logs(folder))
    starts.finish(folder, start, End(137, "rank 1 on here died", 20, time.time(), 1, ("here",)))
    return folder


def going_on(run: Path, **changes: str) -> Start:
    """Records a second start, without an end."""
    start = starts.begin(run, "local", "1", ("here",), 1)
    starts.log_of(start.logs(run), 0).write_text("goes on\n")
    if changes:
        path = run / starts.JOURNAL
        first = path.read_text().splitlines()[:-1]
        row = {"kind": "start", **dataclasses.asdict(dataclasses.replace(start, **changes))}
        path.write_text("\n".join([*first, json.dumps(row)]) + "\n")
    return start


def test_nodes_that_slurm_has_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sinfo lists a node once per partition, and marks one that does not answer with a star."""
    sinfo = tmp_path / "sinfo"
    lines = ["n0 down*", "n0 down*", "n1 allocated", "n2 drained"]
    sinfo.write_text("#!/bin/sh\n" + "".join(f"echo {line!r}\n" for line in lines))
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert progress.down(("n0", "n1", "n2")) == ("n0",)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["launch", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["launch", *arguments]) == 2
    return capsys.readouterr().err


def test_status(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "status", str(run)).splitlines()
    assert told[0] == f"{run}: step 30 of 60, loss 2.7000; saved: step 20, 0 s ago"
    assert told[1].endswith("over")
    assert told[3].split()[:3] == ["1", "local", "1"] and "20 to 20" in told[3]
    assert told[3].rstrip().endswith("rank 1 on here died")


def test_status_of_a_loss_that_is_no_number(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"kind": "train", "step": 31, "loss": None}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert "step 31 of 60, loss not finite;" in said(capsys, "status", str(run))


def test_status_after_evaluations_of_long_windows(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their rows have a loss for every position in a window."""
    row = {"kind": "eval", "step": 30, "loss_per_position": [1.2345678901234567] * 8192}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(2 * ("\n" + json.dumps(row)))
    assert "step 30 of 60" in said(capsys, "status", str(run))


def test_logs_are_those_of_the_first_death(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "logs", str(run)) == "said by rank 1\n"
    assert said(capsys, "logs", str(run), "--rank", "0") == "said by rank 0\n"
    going_on(run)
    assert said(capsys, "logs", str(run)) == "goes on\n"
    assert said(capsys, "logs", str(run), "--start", "1") == "said by rank 1\n"
    assert "this start has 2 ranks" in refused(
        capsys, "logs", str(run), "--start", "1", "--rank", "2"
    )
    assert "--start 3" in refused(capsys, "logs", str(run), "--start", "3")


def test_logs_are_followed_to_the_last_line(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = going_on(run, job="999999999")

    def gone(run: Path, start: Start) -> bool:
        """The run writes why it ends, and ends, while this is asked."""
        with starts.log_of(start.logs(run), 0).open("a") as log:
            log.write("out of memory\n")
        return True

    monkeypatch.setattr(progress, "is_gone", gone)
    assert said(capfd, "logs", str(run), "--follow") == "goes on\nout of memory\n"
    assert start.number == 2


def test_what_cannot_be_cancelled(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "start 1 is over: rank 1 on here died" in refused(capsys, "cancel", str(run))
    going_on(run, job="999999999")
    assert "process 999999999 has already ended" in refused(capsys, "cancel", str(run))
    assert "no longer running; no end was recorded" in said(capsys, "status", str(run))
    assert said(capsys, "logs", str(run), "--follow") == "goes on\n"  # nothing more will be written


def test_a_start_elsewhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    going_on(run, host="elsewhere")
    assert "cannot be checked from this host" in said(capsys, "status", str(run))
    assert "started on elsewhere" in refused(capsys, "cancel", str(run))


def test_commands_to_copy_are_quoted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run.rename(run.with_name("a run"))
    going_on(run, host="elsewhere")
    assert f"run `hypnos launch cancel '{run}'` there" in refused(capsys, "cancel", str(run))
    told = refused(capsys, "logs", str(run), "--start", "3")
    assert f"see `hypnos launch status '{run}'`" in told


def test_a_process_here_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only if it is a `hypnos launch`; another process may have got its pid since."""
    sleeps = "import time; time.sleep(60)"
    for words, ours in (([], False), (["-m", "launch"], True)):
        process = subprocess.Popen([sys.executable, "-c", sleeps, *words])
        going_on(run, job=str(process.pid))
        told = (said if ours else refused)(capsys, "cancel", str(run))
        assert ("to save and end" in told) == ours
        process.terminate()
        process.wait(10)


def test_the_copy_of_a_run_that_goes_on_is_not_running(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cancelling it would end the original."""
    copy, log = run.with_name("copy"), run / "logs/start-2/rank-0.log"
    log.parent.mkdir()
    writes = "import sys, time; file = open(sys.argv[2], 'w'); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", writes, "launch", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        going_on(run, job=str(process.pid))
        shutil.copytree(run, copy)
        progress.check_over(copy)
        assert "has already ended" in refused(capsys, "cancel", str(copy))
        assert "no longer running" in said(capsys, "status", str(copy))
        assert "to save and end" in said(capsys, "cancel", str(run))


def test_a_process_of_another_user_is_not_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    going_on(run)
    monkeypatch.setattr(progress, "is_running", lambda *_: True)
    monkeypatch.setattr(os, "kill", forbidden)
    assert "process 1 is another user's" in refused(capsys, "cancel", str(run))


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_folder_that_was_not_launched(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{tmp_path}: no launch.jsonl in it" in refused(capsys, command, str(tmp_path))


def test_the_status_of_a_plain_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / starts.JOURNAL).unlink()
    assert main(["launch", "status", str(run)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "step 30 of 60, loss 2.7000; saved: step 20" in first
    assert second.startswith("started without `hypnos launch`, so its starts, logs and job are not")
    assert "launch.jsonl in it" in refused(capsys, "cancel", str(run))
    (run / "config.toml").unlink()
    assert "launch.jsonl in it" in refused(capsys, "status", str(run))


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_journal_that_says_nothing(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start that was killed, or found a full disk, before its first line."""
    (tmp_path / starts.JOURNAL).touch()
    assert "launch.jsonl: it records no start" in refused(capsys, command, str(tmp_path))


@pytest.mark.parametrize("line", ["[1]", '{"step": 3}'])
def test_a_journal_of_something_else(
    run: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (run / starts.JOURNAL).open("a") as file:
        file.write(line + "\n")
    assert f"this line is not from `hypnos launch`: {line}" in refused(capsys, "status", str(run))


def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Makes these the only commands available, each a line of shell."""
    for name, line in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_run_that_was_given_to_slurm_after_a_start_here(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job is what counts; while it is queued, no second job and no start here."""
    queued = "echo 'PENDING|Priority|0:00 of 1:00|'"
    tools = {"squeue": queued, "scontrol": "exit 1", "scancel": "exit 0", "sbatch": "echo 18"}
    slurm(run.parent, monkeypatch, **tools)
    starts.submitted(run, "17")
    assert "job 17: pending (Priority)" in said(capsys, "status", str(run))
    again = [str(ROOT / "configs/depo-small.toml"), f"run.dir={run.parent}", f"run.name={run.name}"]
    for other in (["slurm", "--submit"], ["local", "--ranks", "1"], ["mpi", "--ranks-per-host=1"]):
        told = refused(capsys, other[0], *again, *other[1:])
        assert "job 17 is already in Slurm's queue; wait until it ends, or end it with `" in told
    assert "job 17 cancelled" in said(capsys, "cancel", str(run))
    slurm(run.parent, monkeypatch, squeue="true")
    assert "submitted job 18" in said(capsys, "slurm", *again, "--submit")


@pytest.mark.parametrize("how", ["local --ranks=3", "mpi --ranks-per-host=3", "slurm --nodes=3"])
def test_ranks_that_do_not_fit_are_refused_before_anything_is_started(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *flags = how.split()
    told = refused(
        capsys, command, str(ROOT / "configs/depo-small.toml"), f"run.dir={tmp_path}", *flags
    )
    assert "train.batch = 32 is not divisible by 3 data-parallel ranks" in told
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_here_is_not_started_beside(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [str(ROOT / "configs/depo-small.toml"), f"run.dir={run.parent}", f"run.name={run.name}"]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "launch"])
    going_on(run, job=str(process.pid))
    told = refused(capsys, "local", *again, "--ranks", "1")
    assert f"process {process.pid} is already training it; wait until it ends" in told
    process.kill()
    process.wait(10)
    progress.check_over(run)
    going_on(run, job=str(os.getpid()))
    progress.check_over(run)  # a reused pid, as in a container


def test_slurm_that_does_not_answer_has_not_forgotten_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts.submitted(tmp_path, "17")
    down = "Unable to contact slurm controller"
    slurm(tmp_path, monkeypatch, squeue=f"echo 'slurm_load_jobs error: {down}' >&2; exit 1")
    for command in ("status", "cancel"):
        assert f"job 17: Slurm did not answer (slurm_load_jobs error: {down}); try" in refused(
            capsys, command, str(tmp_path)
        )
    unknown = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    slurm(tmp_path, monkeypatch, squeue=unknown, scontrol="exit 1")
    assert "job 17: over; Slurm has forgotten it" in said(capsys, "status", str(tmp_path))


def test_a_start_without_a_rank_has_its_launchers_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = starts.begin(tmp_path, "mpi", "1", ("a", "b"), 2)
    why = start.logs(tmp_path) / "mpirun.log"
    why.touch()
    assert f"the rank has not started; see {why}" in refused(capsys, "logs", str(tmp_path))


def test_jobs_of_slurm_are_asked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts.submitted(tmp_path, "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "job 17 is a Slurm job, and there is no Slurm here" in refused(
        capsys, "status", str(tmp_path)
    )
