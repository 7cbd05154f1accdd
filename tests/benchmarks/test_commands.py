"""The benchmarks as commands: help with an example, and one-line refusals before anything is
measured.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import memory

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


def benchmark(name: str, *arguments: str) -> object:
    """Runs one as `python -m` does; returns what it passes to sys.exit."""
    with mock.patch.object(sys, "argv", [name, *arguments]), pytest.raises(SystemExit) as end:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return end.value.code


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(name, "--help") == 0 and f"-m benchmarks.{name}" in capsys.readouterr().out


def test_a_pipeline_of_one_stage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    told = str(benchmark("bubble"))
    assert (
        told.startswith("benchmarks.bubble: ")
        and "start it with torchrun" in told
        and "\n" not in told
    )
    assert not capsys.readouterr().out


def test_a_report_of_what_no_commit_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "commit", lambda: "0123abc-dirty")
    monkeypatch.setattr(sys, "argv", ["memory", "--quick", "--out", str(tmp_path / "memory.md")])
    with pytest.raises(SystemExit, match=r"^benchmarks\.memory: .* commit first$"):
        memory.main()
    assert not any(tmp_path.iterdir())


def test_a_missed_goal_of_memory_is_named() -> None:
    """The limit of the page allows what the method stores; the goal did not."""
    plan = memory.Plan(stages=(1, 2), passes=(1, 8))
    peaks = {
        (1, "unit", 1): [memory.Peak(100, 90, 10)],
        (1, "unit", 8): [memory.Peak(120, 90, 40)],
        (2, "unit", 1): [memory.Peak(100, 90, 10), memory.Peak(50, 40, 10)],
        (2, "unit", 8): [memory.Peak(120, 90, 40), memory.Peak(90, 40, 40)],
    }
    *_, first, second, _, goal = memory.claim(plan, peaks)
    assert first.endswith("holds") and second.endswith("holds")
    assert goal.endswith("It is missed at stages = 2 (1.80).")
