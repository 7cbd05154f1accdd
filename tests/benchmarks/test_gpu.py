"""benchmarks/gpu.sh from start to end, at tiny sizes; its stage "tests" is a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from pretrain.config.load import load
from pretrain.exit_status import after_signal
from pretrain.study.hardware import load_hardware
from pretrain.study.planner import plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_all_stages(tmp_path: Path) -> None:
    stages = ["environment", "graphs", "1B", "rule110"]
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *stages, "--out", str(tmp_path)]
    # as where the kit's flash-linear-attention is installed, whose kernels do not run on a CPU
    kernel = tmp_path / "fla/ops/gated_delta_rule/__init__.py"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("def chunk_gated_delta_rule(q): raise RuntimeError('0 active drivers')")
    settings = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    outcomes = {row["stage"]: row["outcome"] for row in rows if row["what"] == "stage"}
    assert outcomes == dict.fromkeys(stages, "done")
    measured = {row["what"] for row in rows}
    assert {"machine", "ours, N = 1", "a pass", "transformers", "step"} <= measured
    for stage in ("graphs", "1B"):
        assert "left out on a CPU" in (tmp_path / f"log-{stage}.txt").read_text()
    assert (tmp_path / "rule110.jsonl").read_text().count('"kind": "train"') == 3
    assert done.stdout.rstrip().splitlines()[-1].startswith("stage ")


def test_the_model_planned_on_a_cpu_fits_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "is_tiny", lambda: True)
    config = next(part for part in gpu.stages(tmp_path)["plan"].command if part.endswith(".toml"))
    h100 = load_hardware("h100")
    small = replace(h100, device=replace(h100.device, memory_gib=2, reserved_gib=0))
    assert plan(load(config), 1, small).best


def test_a_run_that_its_time_ends_must_have_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPNOS_GPU_OUT", str(tmp_path))
    for status, good in ((after_signal(signal.SIGTERM), True), (1, False)):
        end = f"import signal, sys, time; signal.signal(15, lambda *_: sys.exit({status}))"
        stage = gpu.Stage(60, ["-c", f"{end}; time.sleep(60)"], stops=True)
        assert gpu.run("rule110", stage, 3, tmp_path) == good


def test_the_last_stage_may_take_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {}
    monkeypatch.setattr(gpu, "run", lambda name, _, seconds, __: not limits.update({name: seconds}))
    for variable in ("HYPNOS_GPU_OUT", "FLA_CACHE_MODE"):  # main sets them
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(gpu, "table", lambda _: [])
    monkeypatch.setattr(sys, "argv", ["gpu", "1B", "tests", "--out", str(tmp_path)])
    assert gpu.main() == 0
    assert limits["tests"] == 180 and 500 < limits["1B"] <= 570


def test_a_part_alone_writes_to_the_usual_place(tmp_path: Path) -> None:
    """As docs/gpu.md starts it, without the variable that the stages have."""
    settings = {k: v for k, v in os.environ.items() if k != "HYPNOS_GPU_OUT"}
    command = [sys.executable, "-m", "benchmarks.gpu.speed", "1B", "throughput"]
    settings |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=settings, check=True)
    assert "ours, N = 1" in (tmp_path / "runs/gpu/results.jsonl").read_text()


def test_a_stage_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "environment", "graphs", "--budget", "16"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no time left" in done.stdout and "bf16 product" in done.stdout


def test_only_the_part_of_transformers_needs_it() -> None:
    """A machine may have a version without this model; the other parts are measured there."""
    says = "import sys; sys.modules['transformers'] = None; import benchmarks.gpu.speed"
    subprocess.run([sys.executable, "-c", says], cwd=ROOT, check=True)
