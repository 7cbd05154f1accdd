"""One rank under srun or mpirun: the files it leaves, and that no rank waits for a dead one."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import rank, starts
from launch.rank import run_rank
from launch.starts import RankEnd, first_failed, rank_ends


def run(logs: Path, what: str, number: int = 1) -> int:
    return run_rank([sys.executable, "-uc", f"import os, signal, time\n{what}"], number, logs)


def later(number: signal.Signals) -> None:
    """Sends a signal to this process once the rank is running."""
    threading.Timer(1.0, os.kill, (os.getpid(), number)).start()


def test_what_a_rank_leaves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "print('fine')", 0) == 0
    assert run(tmp_path, "print('bad'); raise SystemExit(3)", 1) == 3
    assert run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", 2) == 128 + 9
    assert (tmp_path / "rank-1.log").read_text() == "bad\n"
    ends = rank_ends(tmp_path)
    assert {number: end.status for number, end in ends.items()} == {1: 3, 2: 137}
    assert first_failed(tmp_path) == 1
    told = capfd.readouterr().err
    assert told.startswith("fine\n") and "bad" not in told  # only rank 0's output
    assert "rank 2 on" in told and "ended with status 137 (SIGKILL)" in told


def test_a_rank_that_cannot_leave_word_has_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(starts, "write_atomically", full)
    assert run(tmp_path, "raise SystemExit(74)") == 74
    assert "ended with status 74" in capfd.readouterr().err and not rank_ends(tmp_path)


@pytest.mark.parametrize("status", [75, 76])
def test_who_ends_for_no_reason_of_its_own_is_not_the_first(status: int, tmp_path: Path) -> None:
    assert run(tmp_path, f"raise SystemExit({status})") == status
    assert first_failed(tmp_path) is None and rank_ends(tmp_path)[1].status == status


def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    """SIGUSR1 also if the rank cannot handle it yet: it does not end the rank."""
    later(signal.SIGUSR1)
    hears = "signal.signal(signal.SIGUSR1, lambda *_: (time.sleep(0.5), os._exit(75)))"
    wants = "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])"
    assert run(tmp_path, f"time.sleep(1.5)\n{hears}\n{wants}\ntime.sleep(60)") == 75
    assert not rank_ends(tmp_path)[1].told


def test_after_a_death_nobody_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher sends SIGTERM, and the rank would try to save together with the dead one."""
    monkeypatch.setattr(rank, "GRACE", 0.5)
    RankEnd.now(0, 137, told=False).write(tmp_path)
    later(signal.SIGTERM)
    begin = time.monotonic()
    assert run(tmp_path, "signal.signal(signal.SIGTERM, lambda *_: 0)\ntime.sleep(60)") == 137
    assert time.monotonic() - begin < 10
    assert rank_ends(tmp_path)[1].told and first_failed(tmp_path) == 0


def test_a_host_without_the_runs_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank, "WAIT_S", 0.1)
    assert run(tmp_path / "nowhere", "") == 69
    assert f"{tmp_path}/nowhere does not exist" in capfd.readouterr().err
