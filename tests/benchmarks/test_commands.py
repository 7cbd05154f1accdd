"""The benchmarks as commands: help with an example, and refusals in one line before anything is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


def benchmark(*arguments: str) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example(name: str) -> None:
    status, written, _ = benchmark(f"benchmarks.{name}", "--help")
    assert status == 0 and f"-m benchmarks.{name}" in written


def test_a_pipeline_of_one_stage_is_refused() -> None:
    status, written, error = benchmark("benchmarks.bubble")
    assert (status, written) == (1, "")
    assert error.startswith("benchmarks.bubble: ") and "start it with torchrun" in error and error.count("\n") == 1


def test_a_report_of_what_no_commit_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "commit", lambda: "0123abc-dirty")
    monkeypatch.setattr(sys, "argv", ["memory", "--quick", "--out", str(tmp_path / "memory.md")])
    with pytest.raises(SystemExit, match=r"^benchmarks\.memory: .* commit first$"):
        memory.main()
    assert not any(tmp_path.iterdir())
