"""Runs all checks and measurements on one GPU, stage by stage.

    benchmarks/gpu.sh                          # all of it: ten minutes on an H100
    benchmarks/gpu.sh tests graphs --out runs/gpu --budget 300
    python -m benchmarks.gpu --help            # the same without the kit of wheels

A stage that fails or takes too long is reported, and the next one begins; the last one may take
all the time that is left. Results are written as they come: OUT/results.jsonl, OUT/log-STAGE.txt,
traces of the timed models for Perfetto, and of Rule 110 OUT/rule110.jsonl; a table comes last.
On a CPU all stages run at tiny sizes; parts that need CUDA are named and left out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.command import described
from benchmarks.gpu.kernels import use_fastest
from benchmarks.gpu.record import OUT, RESULTS, is_tiny, record
from pretrain.exit_status import after_signal

ROOT = Path(__file__).parents[2]
LEAST = 15.0  # seconds that must be left for a stage to begin
DONE = "done"


class Stage(NamedTuple):
    """A command and its time limit."""

    seconds: float
    command: list[str]  # arguments of the interpreter
    stops: bool = False  # it is expected to run until its time is over; on SIGTERM it saves


def stages(out: Path) -> dict[str, Stage]:
    """In the order they run: what may fail first, what may take any time last."""
    # -v: a failure is shown at once, as time may run out before all tests are done.
    tests = ["-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--durations=10"]
    if find_spec("xdist") and not is_tiny():
        tests += ["-n", "12", "-p", "no:benchmark"]
    planned = "configs/depo-small.toml" if is_tiny() else "configs/recipes/1B.toml"
    plan = [str(ROOT / planned), "--gpus=1", f"--measure={out / 'card.toml'}"]
    rule110 = [f"run.dir={out / 'runs'}", "train.log_every=100", "train.checkpoint_every=1000"]
    if is_tiny():
        rule110 += ["model.d_model=32", "train.batch=4", "train.steps=3", "train.eval_batches=1"]
        rule110 += ["train.log_every=1"]
    else:
        rule110 += ["parallel.cuda_graphs=true"]
    return {
        "environment": Stage(60, ["-m", "benchmarks.gpu.environment"]),
        "tests": Stage(180, [*tests, "tests/gpu"]),
        "1B": Stage(150, ["-m", "benchmarks.gpu.speed", "1B"]),
        "100M": Stage(120, ["-m", "benchmarks.gpu.speed", "100M"]),
        "graphs": Stage(60, ["-m", "benchmarks.gpu.graphs"]),
        "plan": Stage(180, ["-m", "launch", "plan", *plan]),
        "rule110": Stage(
            600, ["-m", "launch", "train", str(ROOT / "configs/rule110.toml"), *rule110], True
        ),
    }


def run(name: str, stage: Stage, seconds: float, out: Path) -> bool:
    """Runs a stage in a process group of its own, for `seconds` at most."""
    print(f"=== {name}: at most {seconds:.0f} s", flush=True)
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *stage.command], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        env=os.environ | {"HYPNOS_GPU_OUT": str(out), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    copy = subprocess.Popen(["tee", str(out / f"log-{name}.txt")], stdin=process.stdout, text=True)
    process.stdout.close()
    status, late = _end(process, stage, seconds)
    copy.wait()
    took = time.monotonic() - begin
    outcome = _outcome(status, late, stage)
    record("stage", stage=name, seconds=took, outcome=outcome)
    return outcome == DONE


def _end(process: subprocess.Popen[str], stage: Stage, seconds: float) -> tuple[int, bool]:
    """Waits for it, ends it when its time is over; its status, and whether its time was over."""
    try:
        return process.wait(seconds), False
    except subprocess.TimeoutExpired:
        # on SIGINT pytest still reports what has failed so far
        process.send_signal(signal.SIGTERM if stage.stops else signal.SIGINT)
        try:
            return process.wait(30 if stage.stops else 10), True
        except subprocess.TimeoutExpired:
            pass
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait(), True


def _outcome(status: int, late: bool, stage: Stage) -> str:
    if late and not stage.stops:
        return "FAILED: out of time"
    saved = late and status == after_signal(signal.SIGTERM)
    return DONE if status == 0 or saved else f"FAILED: exit status {status}"


def table(out: Path) -> Iterator[str]:
    """A summary of the results, line by line."""
    for line in (out / RESULTS).read_text().splitlines():
        row = json.loads(line)
        what = row.pop("what")
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        yield f"{what:24} {'  '.join(cells)}"


def keep_metrics(out: Path) -> None:
    """Copies Rule 110's metrics beside the other results."""
    for metrics in (out / "runs").glob("*/metrics.jsonl"):
        (out / "rule110.jsonl").write_bytes(metrics.read_bytes())


def main() -> int:
    parser = described(__doc__)
    names = list(stages(Path()))
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go")
    parser.add_argument(
        "--budget", type=float, default=570, metavar="SECONDS", help="of all stages together"
    )
    args = parser.parse_args()
    if unknown := set(args.stages) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: stages are {', '.join(names)}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["HYPNOS_GPU_OUT"] = str(out)
    begin, good = time.monotonic(), True
    use_fastest(out / "kernels")
    chosen = {name: stage for name, stage in stages(out).items() if name in (args.stages or names)}
    *_, last = chosen
    for name, stage in chosen.items():
        left = args.budget - (time.monotonic() - begin) - (30 if stage.stops else 0)
        if left < LEAST:
            record("stage", stage=name, seconds=0.0, outcome="FAILED: no time left")
            good = False
            continue
        good &= run(name, stage, left if name == last else min(stage.seconds, left), out)
        keep_metrics(out)
    print("=" * 100, *table(out), sep="\n", flush=True)
    return not good


if __name__ == "__main__":
    sys.exit(main())
