"""Compares `hypnos plan` with measurements, and lists the layouts that it recommends for recipes.

    python -m benchmarks.plan --out docs/plan.md    # a quarter of an hour on two cores
    python -m benchmarks.plan --quick               # nothing is run: what was measured before

Training steps of 1 to 8 ranks are run here (`benchmarks/plan_run.py`) and compared by CPU time; all
else was measured before (`benchmarks/plan_cases.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

from benchmarks.command import described
from benchmarks.plan_cases import Compared, gpu_rows, memory_rows, published_rows
from benchmarks.plan_run import base, planned_yardstick, rows
from pretrain.config.checks import layout_of
from pretrain.config.load import load, override
from pretrain.errors import UserError
from pretrain.origin import commit, processor
from pretrain.study.estimate import Estimator
from pretrain.study.hardware import GIB, Hardware, load_hardware
from pretrain.study.measure import measured, written
from pretrain.study.planner import plan, settings

ROOT = Path(__file__).parents[1]
RECIPES = ("100M", "1B", "7B", "30B")
GPUS = (8, 64, 512, 4096)
SEVERAL = [  # ranks and their layout
    (2, ["parallel.tp=2"]), (2, []), (2, ["parallel.pp=2", "train.microbatches=4"]),
    (4, ["parallel.tp=2", "parallel.pp=2", "train.microbatches=4"]),
    (4, ["parallel.pp=4", "train.microbatches=8"]),
    (8, ["parallel.tp=2", "parallel.pp=2", "train.microbatches=2"]),
]  # fmt: skip

ROUNDS = 3
MARK = "<!-- measured -->\n"  # this benchmark writes what follows it in docs/plan.md


def table(rows: Iterable[Compared]) -> Iterator[str]:
    """Markdown, line by line."""
    yield "| | measured | planned | error |"
    yield "|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row.what} | {_number(row.measured)} {row.unit} | {_number(row.planned)} "
            f"| {row.error:+.0%} |"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def worst(rows: Iterable[Compared]) -> str:
    """The largest error, as "7 %"."""
    return f"{max(abs(row.error) for row in rows):.0%}"


def measure(folder: Path) -> None:
    """Measures this machine, and training steps on it, into hardware.toml and steps.jsonl.

    All is measured in several rounds, of which the median counts.
    """
    found, unfinished = [], folder / "unfinished.jsonl"
    unfinished.unlink(missing_ok=True)
    for _ in range(ROUNDS):
        found.append(measured())
        for ranks, case in [(1, []), *SEVERAL]:
            command = [sys.executable, "-W", "ignore", "-m"]
            if ranks > 1:
                distributed = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
                command += [*distributed, "-m"]
            command += ["benchmarks.plan_run", str(unfinished), *case]
            env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            subprocess.run(command, check=True, cwd=ROOT, env=env)
    (folder / "hardware.toml").write_text(written(typical(found)))
    unfinished.rename(folder / "steps.jsonl")


def typical(found: Sequence[Hardware]) -> Hardware:
    """The median of all that was measured."""

    def middle(rate: Callable[[Hardware], float]) -> float:
        return median(map(rate, found))

    def share(name: str) -> float:  # of the median peak
        return middle(lambda h: getattr(h.device, name) * h.device.bf16_tflops) / peak

    peak = middle(lambda h: h.device.bf16_tflops)
    device = replace(
        found[0].device,
        bf16_tflops=peak,
        fp32_tflops=middle(lambda h: h.device.fp32_tflops),
        **{name: share(name) for name in ("product_share", "attention_share", "delta_share")},
        memory_gbs=middle(lambda h: h.device.memory_gbs),
        launch_s=middle(lambda h: h.device.launch_s),
    )
    node = replace(
        found[0].node,
        link_gbs=middle(lambda h: h.node.link_gbs),
        latency_s=middle(lambda h: h.node.latency_s),
        crowding=[median(of) for of in zip(*(h.node.crowding for h in found), strict=True)],
    )
    return replace(found[0], device=device, node=node)


def step_rows(folder: Path) -> Iterator[Compared]:
    """The training steps measured in this folder."""
    here = load_hardware(str(folder / "hardware.toml"))
    lines = (folder / "steps.jsonl").read_text().splitlines()
    found: dict[tuple[int, tuple[str, ...]], list[float]] = {}
    for row in map(json.loads, lines):
        seconds = row["measured"] * planned_yardstick(here) / row["yardstick"]
        found.setdefault((row["ranks"], tuple(row["case"])), []).append(seconds)
    for (ranks, case), took in found.items():
        config = override(base(), case)
        estimator = Estimator(config, ranks, here, rows(config, 1))
        planned = estimator.processor_seconds(layout_of(config))
        yield Compared(f"{ranks} ranks: {' '.join(case) or 'dp 2'}", "s", median(took), planned)


def recipes() -> Iterator[str]:
    """The layouts of the recipes on H100s."""
    h100 = load_hardware("h100")
    yield "| recipe | GPUs | layout: overrides | GiB | s/step | tokens/s | MFU | bubble |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in RECIPES:
        config = load(ROOT / f"configs/recipes/{name}.toml")
        for gpus in GPUS:
            try:
                e = plan(config, gpus, h100, top=1).best[0]
            except UserError as error:
                yield f"| {name} | {gpus:,} | {str(error).partition(': ')[2]} | | | | | |"
                continue
            layout = " ".join(settings(config, e.layout))
            yield (
                f"| {name} | {gpus:,} | `{layout}` | {e.memory.total / GIB:.0f} "
                f"| {e.seconds:.3g} | {e.tokens_per_s:,.0f} | {e.mfu:.0%} | {e.bubble:.0%} |"
            )


def steps_section(folder: Path) -> Iterator[str]:
    """The section on training steps on this machine."""
    steps = list(step_rows(folder))
    alone = [row for row in steps if row.what.startswith("1 ranks")]
    yield (
        "**Training steps on this CPU**: a hybrid of 4 blocks, D = 256, 8 rows of 4 windows of "
        "128 tokens, N = 2, with DeepSpeed, Muon and AdamW, at the rates that `--measure` found. "
        "Ranks share two cores with each other and with whatever else runs, so the table "
        "compares the CPU seconds of a step, summed over all ranks. As the machine's own speed "
        "drifts by a third within minutes, they are scaled by a yardstick measured before each "
        "step: some products, attention and gates, for which the rates say how long they should "
        "take. One rank: within "
        f"{worst(alone)}; all: within {worst(steps)}."
    )
    yield ""
    yield from table(steps)
    yield ""


def report(folder: Path | None) -> Iterator[str]:
    """What follows the mark in docs/plan.md, line by line."""
    yield "## Planned and measured"
    yield ""
    yield (
        f"`python -m benchmarks.plan` on {os.cpu_count()} cores ({processor()}), {date.today()}, "
        f"commit {commit() or 'unknown'}."
    )
    yield ""
    memory = list(memory_rows())
    yield (
        f"**Memory on a CPU**: activations of the fullest stage, all rows of "
        f"[memory.md](memory.md); within {worst(memory)}. Nothing was fitted."
    )
    yield ""
    yield from table(memory)
    yield ""
    if folder:
        yield from steps_section(folder)
    gpu = list(gpu_rows())
    yield (
        "**One H200**: [gpu.md](gpu.md)'s runs: forward and backward of 983M parameters in bf16, "
        "windows of 2,048, units run kernel by kernel. The fractions and bandwidth in the hardware "
        f"file were fitted to the first; within {worst(gpu)}."
    )
    yield ""
    yield from table(gpu)
    yield ""
    others = list(published_rows())
    yield (
        "**Published runs**, planned with the same sizes and layout; nothing was fitted to them. "
        f"Within {worst(row for row, _ in others)}; we do not know what the FSDP runs recompute, "
        "so both cases are listed. Our rates are those of one card in bursts of a second, theirs "
        "of hundreds in runs of days."
    )
    yield ""
    yield from table(row for row, _ in others)
    yield ""
    yield from dict.fromkeys(f"- {run.source}: {run.differs}." for _, run in others)
    yield ""
    yield "## Recipes"
    yield ""
    yield (
        "`configs/recipes/`: hybrids in the portable shape, N = 2, four windows of 2,048 a "
        "sequence. The fastest planned layout on H100s; none was run, but tests build each of them:"
    )
    yield ""
    yield from recipes()


def main() -> None:
    """Prints or writes the report."""
    parser = described(__doc__)
    parser.add_argument("--quick", action="store_true", help="without training steps")
    parser.add_argument(
        "--steps",
        type=Path,
        metavar="FOLDER",
        default=ROOT / "runs/plan",
        help="what is measured here goes there; what is there is not measured again",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write it there, below the mark, instead of printing it",
    )
    args = parser.parse_args()
    if not args.quick and not (args.steps / "steps.jsonl").exists():
        args.steps.mkdir(parents=True, exist_ok=True)
        measure(args.steps)
    text = "\n".join(report(None if args.quick else args.steps)) + "\n"
    if args.out:
        before = args.out.read_text().partition(MARK)[0] if args.out.exists() else ""
        args.out.write_text(before + MARK + "\n" + text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
