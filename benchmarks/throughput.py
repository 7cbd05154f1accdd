"""Training speed on a CPU: compared with transformers, time of a pass against FLOPs, a profile.

The same hybrid (ours and transformers' Qwen3.5, random weights) reads the same tokens, in turns, on
one thread; CPU time is measured, and the fastest of several turns counts. FLOPs are the model's
(`pretrain.model.flops`); their rate is compared with that of a large matrix product, measured in
the same turns.

    python -m benchmarks.throughput --out docs/speed.md    # ten minutes on one core
    python -m benchmarks.throughput --quick                # one size, two lengths: a minute
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch.autograd.profiler_util import FunctionEvent

from benchmarks.command import described
from benchmarks.hybrid import hybrid
from benchmarks.latency import SHAPE
from benchmarks.rows import random_rows
from parallel import mesh
from pretrain.config.load import load
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.data.batch import Batch
from pretrain.model.flops import parameters, step_flops
from pretrain.model.sleep import SleepLM
from pretrain.origin import commit, processor
from pretrain.plots import COLOURS, INK, figure
from pretrain.run.host_memory import keep_freed_memory
from pretrain.study.one_block import one_block
from pretrain.tasks import make_task

SIZES = {
    "10M": SHAPE,
    "50M": replace(
        SHAPE, d_model=512, layers=["attention", "delta"] * 5, attention_heads=8,
        attention_kv_heads=8, delta_key_heads=8, delta_value_heads=8, mlp_width=2048,
    ),
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOKENS = 2048  # per turn
GOAL_OVER_TRANSFORMERS, GOAL_OF_PRODUCTS = 1.4, 0.65


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    sizes: tuple[str, ...] = ("10M", "50M")
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    lengths: tuple[int, ...] = (64, 512, 2048)
    passes: tuple[int, ...] = (1, 2, 4)
    turns: int = 2


QUICK = Plan(sizes=("10M",), dtypes=("fp32",), lengths=(64, 512), passes=(1, 4), turns=3)


def batch(config: ModelConfig, T: int, windows: int = 1) -> Batch:
    """TOKENS in rows of some windows of T."""
    return random_rows(max(1, TOKENS // (T * windows)), windows, T, config.vocab_size)


def ours(config: ModelConfig, sleep: SleepConfig, dtype: torch.dtype, read: Batch) -> Callable:
    """Forward and backward of a batch."""
    model = SleepLM(config, sleep).initialize(0).to(dtype)

    def run() -> None:
        (model(read).loss / read.targets.numel()).backward()
        model.zero_grad(set_to_none=False)

    return run


def theirs(config: ModelConfig, dtype: torch.dtype, read: Batch, compiled: bool) -> Callable:
    """The same in transformers."""
    model = hybrid(config).to(dtype).train()
    call = torch.compile(model) if compiled else model

    def run() -> None:
        call(input_ids=read.tokens, labels=read.tokens, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=False)

    return run


def product(dtype: torch.dtype) -> tuple[Callable, float]:
    """A large matrix product, and its number of FLOPs."""
    n = 1024
    a = torch.randn(n, n).to(dtype)
    return lambda: a @ a, 2.0 * n**3


def take_turns(contenders: Sequence[Callable], turns: int) -> list[float]:
    """CPU seconds of each contender's fastest turn; the first turn is not counted."""
    best = [float("inf")] * len(contenders)
    for turn in range(turns + 1):
        for i, run in enumerate(contenders):
            begin = time.process_time()
            run()
            if turn:
                best[i] = min(best[i], time.process_time() - begin)
    return best


class Beside(NamedTuple):
    """Our model's figures beside those of transformers."""

    model: str  # "10.9M, fp32"
    tokens: int  # per sequence
    ours: float  # tokens a second
    theirs: float
    share: float  # of a large product's rate that our model reaches


def beside_transformers(
    plan: Plan, say: Callable[[str], None], found: list[Beside]
) -> Iterator[str]:
    """One window per sequence, N = 1; adds its results to `found`."""
    yield (
        "| parameters | precision | T | Hypnos, tokens/s | transformers, tokens/s | speedup "
        "| transformers compiled, tokens/s | Hypnos, share of the matmul rate "
        "| transformers, share of the matmul rate |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for size in plan.sizes:
        for name in plan.dtypes:
            for T in plan.lengths:
                say(f"{size}, {name}, T = {T}")
                config, dtype, read = SIZES[size], DTYPES[name], batch(SIZES[size], T)
                sleep = SleepConfig(passes=1, window=T)
                matmul, flops = product(dtype)
                runs = [
                    ours(config, sleep, dtype, read),
                    theirs(config, dtype, read, False),
                    matmul,
                ]
                if (size, name, T) == ("10M", "fp32", 512):
                    runs.append(theirs(config, dtype, read, True))
                mine, other, one_product, *compiled = take_turns(runs, plan.turns)
                work = step_flops(read, config, sleep)
                share, their_share = (
                    work.flops / took / (flops / one_product) for took in (mine, other)
                )
                n, millions = read.tokens.numel(), f"{parameters(config) / 1e6:.1f}M"
                found.append(Beside(f"{millions}, {name}", T, n / mine, n / other, share))
                yield (
                    f"| {millions} | {name} | {T} | {n / mine:,.0f} | "
                    f"{n / other:,.0f} | {other / mine:.2f}x | "
                    f"{f'{n / compiled[0]:,.0f}' if compiled else ''} | {share:.0%} | "
                    f"{their_share:.0%} |"
                )
    yield ""
    for goal, missed in (
        (
            f"{GOAL_OVER_TRANSFORMERS}x transformers",
            [b for b in found if b.ours / b.theirs < GOAL_OVER_TRANSFORMERS],
        ),
        (
            f"{GOAL_OF_PRODUCTS:.0%} of the matmul rate",
            [b for b in found if b.share < GOAL_OF_PRODUCTS],
        ),
    ):
        where = "; ".join(f"{b.model}, T = {b.tokens}" for b in missed)
        yield f"The goal of {goal} is {f'missed at {where}' if missed else 'met everywhere'}."


def draw(found: Sequence[Beside], path: Path) -> None:
    """The speed relative to transformers, and the share of the product's rate, by length."""
    models = list(dict.fromkeys(b.model for b in found))
    lengths = list(dict.fromkeys(b.tokens for b in found))
    width = 0.8 / len(models)
    legend = [(model, COLOURS[i]) for i, model in enumerate(models)]
    with figure(path, legend, panels=2, width=8.0) as axes:
        for i, model in enumerate(models):
            mine = [b for b in found if b.model == model]
            x = [lengths.index(b.tokens) + (i - (len(models) - 1) / 2) * width for b in mine]
            for axis, heights in zip(
                axes, ([b.ours / b.theirs for b in mine], [b.share for b in mine]), strict=True
            ):
                axis.bar(x, heights, 0.9 * width, color=COLOURS[i])
        for axis, goal, title in zip(
            axes,
            (GOAL_OVER_TRANSFORMERS, GOAL_OF_PRODUCTS),
            ("Times as fast as transformers", "Share of a large product's rate"),
            strict=True,
        ):
            axis.axhline(goal, color=INK, linewidth=0.8, linestyle="--")
            axis.set(title=title, xlabel="tokens of a sequence")
            axis.set_xticks(range(len(lengths)), [f"{T:,}" for T in lengths])


def passes(plan: Plan, say: Callable[[str], None]) -> Iterator[str]:
    """Time of a pass, in sequences of four windows of 128 tokens."""
    yield "| parameters | N | tokens/s | time vs N = 1 | FLOPs vs N = 1 | time / FLOPs |"
    yield "|---|---|---|---|---|---|"
    for size in plan.sizes:
        say(f"{size}, N = {plan.passes}")
        config, read = SIZES[size], batch(SIZES[size], 128, windows=4)
        sleeps = [SleepConfig(passes=n, window=128) for n in plan.passes]
        times = take_turns([ours(config, s, torch.float32, read) for s in sleeps], plan.turns)
        flops = [step_flops(read, config, s).flops for s in sleeps]
        for n, t, f in zip(plan.passes, times, flops, strict=True):
            by_time, by_flops = t / times[0], f / flops[0]
            yield (
                f"| {parameters(config) / 1e6:.1f}M | {n} | {read.tokens.numel() / t:,.0f} | "
                f"{by_time:.2f} | {by_flops:.2f} | {by_time / by_flops:.2f} |"
            )


PRODUCTS = (
    "aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::linalg_solve_triangular",
)  # fmt: skip
COPIES = ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::index")
VIEWS = ("aten::view", "aten::as_strided", "aten::empty", "aten::t", "aten::transpose")


def kind_of(event: FunctionEvent) -> str:
    """The kind that an event's own time counts for."""
    within: FunctionEvent | None = event
    while within is not None:
        if "ChunkedDeltaRule" in within.name:
            return "delta rule"
        if "scaled_dot_product" in within.name:
            return "attention's scores"
        within = within.cpu_parent
    if event.name.startswith(PRODUCTS):
        return "products"
    if event.name.startswith(COPIES):
        return "copies"
    is_kernel = event.name.startswith("aten::") and not event.name.startswith(VIEWS)
    return "elementwise, norms, sums" if is_kernel else "framework: autograd, views, Python"


def profile(say: Callable[[str], None]) -> Iterator[str]:
    """Own time by kind, of forward and backward."""
    small = load(Path(__file__).parents[1] / "configs/depo-small.toml", [])
    task = make_task(small, small.sleep.window)
    depo = replace(small.model, vocab_size=task.vocab_size)
    ten = SIZES["10M"]
    cases = {
        "10M, T = 512": (ten, SleepConfig(passes=1, window=512), batch(ten, 512)),
        "10M, N = 4, windows of 128": (ten, SleepConfig(passes=4, window=128), batch(ten, 128, 4)),
        "Depo-small, N = 4": (depo, small.sleep, task.sample(0, 0, small.train.batch)),
    }
    found = {}
    for name, (config, sleep, read) in cases.items():
        say(f"profile of {name}")
        run = ours(config, sleep, torch.float32, read)
        run()
        with torch.profiler.profile() as profiler:
            run()
        times: Counter[str] = Counter()
        for event in profiler.events():
            times[kind_of(event)] += event.self_cpu_time_total
        found[name] = times
    yield "| where time goes | " + " | ".join(found) + " |"
    yield "|---|" + "---|" * len(found)
    for kind in sorted(set().union(*found.values())):
        shares = (times[kind] / times.total() for times in found.values())
        yield f"| {kind} | " + " | ".join(f"{share:.0%}" for share in shares) + " |"


def compiled_whole(say: Callable[[str], None]) -> Iterator[str]:
    """Depo-small's blocks through torch.compile (Inductor) unchanged; the trainer compiles blocks
    only on a GPU.
    """
    small = load(Path(__file__).parents[1] / "configs/depo-small.toml", [])
    rows, tokens = small.train.batch, small.sleep.window
    yield "| block | uncompiled | compiled whole | speedup | seconds to compile |"
    yield "|---|---|---|---|---|"
    for kind in ("attention", "delta"):
        say(f"compiling a block: {kind}")
        block = one_block(small.model, kind, rows, tokens, torch.float32)
        compiled = torch.compile(block, dynamic=False)

        def run(call: Callable[[], torch.Tensor]) -> None:
            y = call()
            y.backward(torch.ones_like(y))

        begin = time.perf_counter()
        run(compiled)
        took = time.perf_counter() - begin
        calls = [partial(run, call) for call in (block, compiled)]
        plain, whole = (1e3 * seconds for seconds in take_turns(calls, 40))
        yield (f"| {kind} | {plain:.1f} ms | {whole:.1f} ms | {plain / whole:.2f} | {took:.0f} |")


def report(plan: Plan, say: Callable[[str], None], picture: Path | None) -> Iterator[str]:
    """The page, line by line; its picture is written if `picture` is given."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # of kernels that are for GPUs
    mesh.initialize(alone=True)
    keep_freed_memory()  # as training does
    yield "# Speed on a CPU"
    yield ""
    yield (
        f"`python -m benchmarks.throughput` on {os.cpu_count()} cores ({processor()}), one thread, "
        f"{date.today()}, commit {commit()}. The script describes how it measures."
    )
    yield ""
    yield (
        f"Forward and backward of {TOKENS:,} tokens, in sequences of T, N = 1. The matmul rate is "
        "that of one large matrix product; transformers is compiled at one length only, as that "
        "takes minutes:"
    )
    yield ""
    found: list[Beside] = []
    yield from beside_transformers(plan, say, found)
    if picture:
        draw(found, picture)
        yield ""
        yield (
            "![Compared with transformers and a large matrix product; dashed: the goal]"
            f"({picture.name})"
        )
    yield ""
    yield "Cost of passes relative to their FLOPs, in sequences of four windows of 128 tokens:"
    yield ""
    yield from passes(plan, say)
    yield ""
    yield "Forward and backward in the profiler, which makes small operations appear longer:"
    yield ""
    yield from profile(say)
    yield ""
    yield "Forward and backward of single blocks of Depo-small, 32 rows of 16 tokens:"
    yield ""
    yield from compiled_whole(say)


def main() -> None:
    """Prints the page, or writes it."""
    parser = described(__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, two lengths")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the page there, and its picture beside it"
    )
    given = parser.parse_args()
    lines = []
    for line in report(
        QUICK if given.quick else Plan(),
        lambda doing: print(f"... {doing}", flush=True),
        given.out.with_suffix(".png") if given.out else None,
    ):
        print(line, flush=True)
        lines.append(line)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
