"""Time per token and memory by length of what was read, compared with transformers and its caches.

The contenders: one model of 10.9 million parameters that sleeps (windows of 256 tokens), at several
N; Qwen3 of the same size in transformers, all attention; and Qwen3.5 in transformers, the same
hybrid with a cache that keeps everything. Contexts of all lengths are kept, and continued in turns
of a few tokens, in changing order, so that other load on the machine affects all equally. CPU time
of one thread is measured; the median token counts, without the first of each turn, which finds
another model's weights in the CPU caches. Our sessions read several windows and sleep between them;
caches grow by one window in the same time.

Before that, our sessions really read the context: all but the last 4,096 tokens with N = 1, and
these with their own N. transformers reads 1,024 tokens; the rest of its cache is filled with random
keys, since reading would take hours, and times do not depend on the keys.

    python -m benchmarks.latency --out docs/latency.md    # and latency.svg; 15 minutes on one core
    python -m benchmarks.latency --quick                  # up to 4,096 tokens
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.command import described
from benchmarks.hybrid import hybrid
from benchmarks.rows import random_rows
from parallel import mesh
from pretrain.config.schema import ModelConfig, SleepConfig
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session
from pretrain.model.sleep import SleepLM
from pretrain.origin import commit, processor

MB = 1e6
WINDOW, OWN, REALLY_READ = 256, 4096, 1024
IN_A_ROW = 4  # tokens that count in each turn
SHAPE = ModelConfig(
    d_model=256, layers=["attention", "delta"] * 3, attention_heads=4, attention_kv_heads=4,
    attention_head_dim=64, delta_key_heads=4, delta_value_heads=4, delta_key_dim=64,
    delta_value_dim=64, mlp_width=1024, vocab_size=8192,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    lengths: tuple[int, ...] = (1 << 10, 1 << 14, 1 << 17, 1 << 20)
    passes: tuple[int, ...] = (1, 2, 4, 8)
    cached: int = 1 << 17  # the longest context for transformers
    tokens: int = WINDOW  # measured per cache
    windows: int = 6  # measured per session of ours
    long: int = 1 << 16  # from this length on, a cache gets only every `seldom`-th turn
    seldom: int = 8


QUICK = Plan(lengths=(1 << 10, 1 << 12), passes=(1, 4), cached=1 << 12, tokens=32, windows=1)


@dataclass
class Contender:
    """A model measured at one length."""

    name: str
    length: int
    step: Callable[[], object]  # reads one token
    nbytes: int  # of everything it keeps of the context
    every: int = 1  # it takes part in every so many turns
    sleep: Callable[[], object] = lambda: None  # called when it has read a window


def tokens(count: int) -> Tensor:
    """Random tokens, the same each time."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, SHAPE.vocab_size, (count,), generator=generator)


# ---- ours


def sessions(plan: Plan, decoder: Decoder, say: Callable[[str], None]) -> Iterator[Contender]:
    """Sessions that have read each length, at each N, at the start of a window."""
    reader = Session(decoder, passes=1)
    for length in plan.lengths:
        say(f"reading {length:,} tokens")
        alone = max(0, length - OWN)
        if alone > reader.position:
            reader.read(tokens(alone - reader.position))
            reader.sleep()
        for N in plan.passes:
            session = reader.fork() if alone else Session(decoder)
            session.passes = N
            session.read(tokens(length - session.position))
            session.sleep()
            assert session.position == length and session.filled == 0
            read, nbytes = (lambda s=session: s.read([7])), session.memory.nbytes
            yield Contender(ours(N), length, read, nbytes, sleep=session.sleep)


def ours(N: int) -> str:
    return f"N = {N}"


def sleep_ms(decoder: Decoder, N: int) -> float:
    """The median of five sleeps over a full window."""
    session, times = Session(decoder, N), []
    for _ in range(5):
        session.read(tokens(WINDOW))
        times.append(milliseconds(session.sleep))
    return statistics.median(times)


def reading(model: SleepLM, decoder: Decoder, N: int) -> tuple[float, float]:
    """Tokens per second: a session's prefill, and training's forward, both with their sleep."""
    batch = random_rows(1, 8, WINDOW, SHAPE.vocab_size)
    batch.carries[:] = True  # otherwise the last window would not sleep

    def prefill() -> None:
        session = Session(decoder, N)
        session.read(batch.tokens[0])
        session.sleep()

    def forward() -> None:
        with torch.no_grad():
            model(batch, passes=N)

    fastest = [min(milliseconds(f) for _ in range(3)) for f in (prefill, forward)]
    return 8000 * WINDOW / fastest[0], 8000 * WINDOW / fastest[1]


# ---- transformers


def attention_only() -> Qwen3ForCausalLM:
    """Qwen3 with as many blocks; its MLP is a little wider, as its attention has no gate."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=SHAPE.vocab_size, hidden_size=SHAPE.d_model, intermediate_size=1110,
            num_hidden_layers=len(SHAPE.layers), num_attention_heads=SHAPE.attention_heads,
            num_key_value_heads=SHAPE.attention_kv_heads, head_dim=SHAPE.attention_head_dim,
            max_position_embeddings=1 << 21, tie_word_embeddings=False,
        )
    )  # fmt: skip


def cached(plan: Plan, name: str, model: PreTrainedModel, length: int) -> Contender:
    """transformers with a cache of this length."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(tokens(REALLY_READ)[None], past_key_values=cache, use_cache=True)
        for i, layer in enumerate(cache.layers):
            if getattr(layer, "keys", None) is not None:
                more = (1, SHAPE.attention_kv_heads, length - REALLY_READ, SHAPE.attention_head_dim)
                cache.update(torch.randn(more), torch.randn(more), i)
    one = torch.tensor([[7]])

    def step() -> None:
        with torch.inference_mode():
            model(one, past_key_values=cache, use_cache=True)

    every = plan.windows * (plan.seldom if length >= plan.long else 1)
    return Contender(name, length, step, sum(nbytes(vars(layer)) for layer in cache.layers), every)


def nbytes(held: Any) -> int:
    """Total bytes of the tensors in a nested structure."""
    if isinstance(held, Tensor):
        return held.nbytes
    values = held.values() if isinstance(held, dict) else held
    return sum(map(nbytes, values)) if isinstance(held, dict | list | tuple) else 0


# ---- measuring


def milliseconds(f: Callable[[], object]) -> float:
    """CPU time of one call."""
    begin = time.process_time()
    f()
    return 1000 * (time.process_time() - begin)


def take_turns(plan: Plan, contenders: Sequence[Contender]) -> dict[tuple[str, int], float]:
    """The median token's ms, for each contender."""
    times, order = defaultdict(list), random.Random(0)
    a_window = plan.tokens // (IN_A_ROW + 1)
    for turn in range(plan.windows * a_window):
        for each in order.sample(contenders, len(contenders)):
            if turn % each.every:
                continue
            if turn and turn % a_window == 0:
                each.sleep()
            each.step()
            for _ in range(IN_A_ROW):
                times[each.name, each.length].append(milliseconds(each.step))
    return {key: statistics.median(found) for key, found in times.items()}


CACHED = ("full attention", "hybrid, cached")


def table(
    plan: Plan, ms: dict[tuple[str, int], float], held: dict[tuple[str, int], int]
) -> Iterator[str]:
    """One row per length."""
    names = [*map(ours, plan.passes), *CACHED]
    yield (
        "| tokens read | "
        + " | ".join(f"{n}, ms" for n in names)
        + " | Hypnos, MB | "
        + " | ".join(f"{n}, MB" for n in CACHED)
        + " |"
    )
    yield "|" + "---|" * (len(names) + 4)
    for length in plan.lengths:
        cells = [f"{ms[n, length]:.2f}" if (n, length) in ms else "" for n in names]
        cells.append(f"{held[names[0], length] / MB:.1f}")
        cells += [f"{held[n, length] / MB:,.1f}" if (n, length) in held else "" for n in CACHED]
        yield f"| {length:,} | " + " | ".join(cells) + " |"


def claims(plan: Plan, ms: dict[tuple[str, int], float]) -> Iterator[str]:
    """Whether the time per token is constant and low."""
    mine = {key: t for key, t in ms.items() if key[0] not in CACHED}
    spread = max(mine.values()) / min(mine.values()) - 1
    yield f"- Over all lengths and N, Hypnos's slowest and fastest times differ by {spread:.1%},"
    yield f"  {'within' if spread <= 0.05 else 'NOT within'} 5 %."
    for name in CACHED:
        ratios = [
            f"{ms[name, length] / ms[ours(plan.passes[0]), length]:.1f}x after {length:,}"
            for length in plan.lengths
            if (name, length) in ms
        ]
        yield f"- Time of transformers, {name}, relative to Hypnos: {', '.join(ratios)}."


def plot(plan: Plan, ms: dict[tuple[str, int], float], path: Path) -> None:
    """ms per token by tokens read."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for name in [*map(ours, plan.passes), *CACHED]:
        points = [(length, ms[name, length]) for length in plan.lengths if (name, length) in ms]
        axes.plot(*zip(*points, strict=True), "o-" if name not in CACHED else "s--", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens read before", ylabel="ms per token, awake")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def report(plan: Plan, say: Callable[[str], None], picture: Path | None) -> Iterator[str]:
    """Measures, and yields the page line by line."""
    revision = commit() or "unknown"  # now, before it can change
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # no warnings about GPU-only kernels
    mesh.initialize(alone=True)
    torch.manual_seed(0)
    model = SleepLM(SHAPE, SleepConfig(window=WINDOW)).initialize(0)
    decoder = Decoder(model)
    others = dict(zip(CACHED, (attention_only(), hybrid(SHAPE)), strict=True))
    contenders = list(sessions(plan, decoder, say))
    for name, other in others.items():
        lengths = [length for length in plan.lengths if length <= plan.cached]
        contenders += [cached(plan, name, other.eval(), length) for length in lengths]
    say(f"{plan.windows} windows of tokens after each length, in turn")
    ms = take_turns(plan, contenders)
    held = {(each.name, each.length): each.nbytes for each in contenders}
    sizes = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (model, *others.values())]

    yield "# Time and memory per token, awake"
    yield ""
    yield "This page measures what a token costs in time and memory, by the number of tokens read"
    yield "before it, compared with transformers; and what sleep and prefill cost."
    yield ""
    yield (
        f"D = {SHAPE.d_model}, {len(SHAPE.layers)} blocks ({', '.join(SHAPE.layers[:2])}, ...), "
        f"windows of {WINDOW} tokens, hard eviction, fp32, one thread; "
        f"{sizes[0]:.1f}M parameters, transformers' {sizes[1]:.1f}M (Qwen3) and {sizes[2]:.1f}M "
        "(Qwen3.5, the same hybrid), with its own growing cache. `benchmarks/latency.py` "
        "describes how it measures."
    )
    yield ""
    yield (
        f"`python -m benchmarks.latency` on {os.cpu_count()} cores ({processor()}), "
        f"{date.today()}, commit {revision}."
    )
    yield ""
    yield from table(plan, ms, held)
    yield ""
    if picture:
        plot(plan, ms, picture)
        yield f"![Time per token by tokens read]({picture.name})"
        yield ""
    yield from claims(plan, ms)
    yield ""
    yield "Sleep comes once per window, and can run while nobody waits. Its cost, and the speed of"
    yield "reading many tokens at once (sleep included), compared with training's forward pass:"
    yield ""
    yield (
        "| N | sleep, ms/window | sleep, ms/token | prefill, tokens/s "
        "| training's forward, tokens/s |"
    )
    yield "|---|---|---|---|---|"
    for N in plan.passes:
        say(f"sleep and prefill at N = {N}")
        slept, (prefill, forward) = sleep_ms(decoder, N), reading(model, decoder, N)
        yield f"| {N} | {slept:.0f} | {slept / WINDOW:.2f} | {prefill:,.0f} | {forward:,.0f} |"


def main() -> None:
    """Measures, and prints or writes the page."""
    parser = described(__doc__)
    parser.add_argument("--quick", action="store_true", help="two lengths, two N")
    parser.add_argument(
        "--cached",
        type=int,
        metavar="TOKENS",
        help="transformers up to this length (13 GB at 2^20)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page and a plot there")
    args = parser.parse_args()
    if args.out and commit().endswith("-dirty"):
        sys.exit(
            "benchmarks.latency: a report names its commit, but files here differ: commit first"
        )
    plan = QUICK if args.quick else Plan(cached=args.cached or Plan.cached)
    picture = args.out.with_suffix(".svg") if args.out else None
    lines = report(plan, lambda line: print(line, file=sys.stderr, flush=True), picture)
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
