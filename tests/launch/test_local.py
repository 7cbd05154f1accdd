"""Ranks on one host: what is shown, what is logged, and that no rank outlives the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch import local, processes
from launch.local import run_ranks
from tests.launch.test_output import unread

ROOT = Path(__file__).parents[2]
# Three ranks; each writes its pid before it runs `what`.
RANK = """
import os, signal, sys, time
os.chdir(sys.argv[1])
rank = int(os.environ["RANK"])
open(f"{rank}.pid", "w").write(str(os.getpid()))
print(f"here is rank {rank} of {os.environ['WORLD_SIZE']}", flush=True)
"""


def run(folder: Path, what: str) -> int:
    """Runs three ranks that do `what`; the status of the launch."""
    return run_ranks(
        [sys.executable, "-c", RANK + what, str(folder)], ranks=3, logs=folder / "logs"
    )


def gone(folder: Path) -> bool:
    """Whether all ranks have ended."""
    pids = [int((folder / f"{rank}.pid").read_text()) for rank in range(3)]
    return not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    )


def test_rank_0_is_shown_and_each_has_a_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "") == 0
    assert capfd.readouterr().err == "here is rank 0 of 3\n"
    for rank in range(3):
        log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert log == f"here is rank {rank} of 3\n"


def test_a_rank_does_not_wait_for_a_reader_that_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unread() as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert run(tmp_path, "print('x' * 300_000)") == 0
    assert (tmp_path / "logs/rank-0.log").read_text().endswith("x\n")


def test_the_first_death_is_shown_and_ends_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE", 1.0)
    deaf = "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
    dies = "time.sleep(1)\nif rank == 1: sys.exit('the reason')\ntime.sleep(60)\ntime.sleep(60)"
    begin = time.monotonic()
    assert run(tmp_path, deaf + dies) == 1
    assert time.monotonic() - begin < 5 and gone(tmp_path)
    told = capfd.readouterr().err
    assert "rank 1 ended with status 1" in told and "  the reason\n" in told
    assert (tmp_path / "logs" / "rank-2.log").read_text().endswith("asked\n")


def test_a_rank_that_is_killed_gives_128_and_the_signal(tmp_path: Path) -> None:
    assert run(tmp_path, "if rank == 2: os.kill(os.getpid(), signal.SIGKILL)") == 128 + 9


@pytest.mark.parametrize(("statuses", "status"), [("0, 75, 75", 75), ("75, 3, 75", 3)])
def test_statuses_come_together(tmp_path: Path, statuses: str, status: int) -> None:
    assert run(tmp_path, f"sys.exit([{statuses}][rank])") == status


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGUSR1, 75), (signal.SIGHUP, 143), (signal.SIGKILL, -9)]
)
def test_signals_reach_all_and_none_stays_behind(
    tmp_path: Path, how: signal.Signals, status: int
) -> None:
    """SIGUSR1 is passed on, a closed terminal becomes SIGTERM for ranks; a killed launcher takes
    its ranks with it.
    """
    hears = "signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))\nprint('ready', flush=True)\n"
    waits = f"{hears}signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])"
    program = (
        "import signal, sys; from pathlib import Path; from tests.launch.test_local import run\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # also under nohup
        f"sys.exit(run(Path(sys.argv[1]), {waits + chr(10) + 'time.sleep(60)'!r}))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    logs = [tmp_path / "logs" / f"rank-{rank}.log" for rank in range(3)]
    deadline = time.monotonic() + 60
    while not all(log.exists() and "ready" in log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(launcher.pid, how)
    assert launcher.wait(20) == status
    time.sleep(0.5)
    assert gone(tmp_path)


def test_with_nohup_it_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        closes = "if rank == 0: os.kill(os.getppid(), signal.SIGHUP)\ntime.sleep(0.5)"
        assert run(tmp_path, closes) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("given", "threads"), [(None, "2"), ("5", "5")])
def test_ranks_share_the_cores_unless_told_otherwise(
    given: str | None, threads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert run(tmp_path, "print('threads', os.environ['OMP_NUM_THREADS'])") == 0
    assert f"threads {threads}\n" in (tmp_path / "logs/rank-2.log").read_text()
