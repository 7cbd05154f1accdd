"""The planner: which layouts of a configuration fit on so many ranks, and which are fastest.

    plan(config, 1024, load_hardware("h100")).best[0]

It considers all layouts that `parallel.combinations` allows and that divide heads, widths,
vocabulary and batch. Each is first estimated with approximately minimal pipeline idle time; the
promising ones are then estimated with their real schedule, best first, until no other can be
faster. The best layout of each grid, tp x cp x pp, is returned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from parallel.combinations import Layout, refusal
from pretrain.config.checks import SHARED, layout_of
from pretrain.config.load import override
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.study.estimate import Estimate, Estimator, example
from pretrain.study.hardware import GIB, MAX_GPUS, Hardware

SEARCHED = ("tp", "cp", "pp", "sequence_parallel", "zero", "offload", "recompute")  # of [parallel]


@dataclass(frozen=True)
class Plan:
    """The result of planning."""

    best: list[Estimate]  # the fastest fitting layout of each grid, fastest first
    fit: int  # how many layouts fit
    considered: int


def plan(
    config: Config, gpus: int, hardware: Hardware, *, fixed: Collection[str] = (), top: int = 10
) -> Plan:
    """The fastest layouts of a training step.

    Args:
        config: with its vocabulary (model.vocab_size).
        fixed: settings that must not change, such as "parallel.tp" or "train.microbatches".
        top: how many to return, from different grids.
    Raises:
        UserError: there is no layout, or none fits; says what would help.
    """
    estimator = Estimator(config, gpus, hardware, example(config))
    quick = _quick(estimator, fixed)
    fitting = [e for e in quick if e.memory.total <= hardware.usable_bytes]
    if not fitting:
        raise UserError(_nothing_fits(estimator, quick, fixed))
    grids = defaultdict[tuple[int, int, int], list[Estimate]](list)
    for e in sorted(fitting, key=_urgency):
        grids[e.layout.tp, e.layout.cp, e.layout.pp].append(e)
    best: list[Estimate] = []
    for candidates in grids.values():  # the most promising grid first
        slowest = sorted(e.seconds for e in best)[top - 1] if len(best) >= top else float("inf")
        if slowest <= candidates[0].seconds:
            break  # no remaining grid can be faster
        best += _fastest(estimator, candidates, slowest)
    if not best:
        raise UserError(_nothing_fits(estimator, quick, fixed))
    best.sort(key=_urgency)
    return Plan(best[:top], len(fitting), len(quick))


def _fastest(estimator: Estimator, candidates: list[Estimate], limit: float) -> list[Estimate]:
    """The fastest candidate that fits and, simulated, takes less than `limit` seconds, if there is
    one. Candidates are sorted, the most promising first.
    """
    best: list[Estimate] = []
    for e in candidates:
        if e.seconds >= limit:
            break
        exact = estimator.estimate(e.layout)
        fits = exact.memory.total <= estimator.hardware.usable_bytes
        if fits and exact.seconds < limit:
            best, limit = [exact], exact.seconds
    return best


def _urgency(e: Estimate) -> tuple[float, bool, int, bool]:
    """Sort key: by time; among equals the simplest first."""
    return e.seconds, e.layout.offload, e.layout.zero, e.layout.sequence_parallel


def _quick(estimator: Estimator, fixed: Collection[str]) -> list[Estimate]:
    """Estimates of all layouts, not simulated."""
    layouts = list(_layouts(estimator.config, estimator.gpus, estimator.hardware, fixed))
    if not layouts:
        raise UserError(_no_layout(estimator, fixed))
    return [estimator.estimate(x, simulated=False) for x in layouts]


def _layouts(
    config: Config, gpus: int, hardware: Hardware, fixed: Collection[str]
) -> Iterator[Layout]:
    """All valid layouts."""
    own = layout_of(config)
    of = _options(own, fixed)
    for tp, cp, pp in _grids(config, gpus, hardware, of):
        dp = gpus // (tp * cp * pp)
        rows = config.train.batch / dp
        if not rows.is_integer():
            continue
        for M, sequence_parallel, zero, recompute, offload in product(
            [m for m in of("microbatches", _divisors(int(rows))) if rows % m == 0],
            of("sequence_parallel", [False, True] if tp > 1 else [False]),
            # a single rank has nothing to shard
            of("zero", [0, 1, 2, 3] if dp * cp > 1 else [0, 1]),
            of("recompute", ["none", "block", "unit"]),
            of("offload", [False, True] if hardware.device.kind == "cuda" else [False]),
        ):
            shares = {config.sleep.window // cp, -(-config.sleep.window // cp)}
            if sequence_parallel and any(rows / M * tokens % tp for tokens in shares):
                continue
            x = replace(
                own, tp=tp, cp=cp, pp=pp, sequence_parallel=sequence_parallel, zero=zero,
                offload=offload, microbatches=M, recompute=recompute,
            )  # fmt: skip
            if refusal(x) is None:
                yield x


_Options = Callable[[str, list[Any]], list[Any]]


def _options(own: Layout, fixed: Collection[str]) -> _Options:
    """The options of a setting: only its own value if it is fixed."""

    def of(name: str, options: list[Any]) -> list[Any]:
        section = "train" if name == "microbatches" else "parallel"
        return [getattr(own, name)] if f"{section}.{name}" in fixed else options

    return of


def _grids(
    config: Config, gpus: int, hardware: Hardware, of: _Options
) -> Iterator[tuple[int, int, int]]:
    """(tp, cp, pp) that divide ranks and model; ranks that split a layer are on one host."""
    blocks = len(config.model.layers)
    split = not (config.sleep.is_looped or config.sleep.carries != "both")  # checks._controls
    near = _divisors(hardware.node.ranks(gpus))
    for tp, cp in product(of("tp", near), of("cp", near)):
        ranks = {name: tp * cp if name.endswith("_heads") else tp for name in SHARED}
        if gpus % (tp * cp) or any(getattr(config.model, name) % n for name, n in ranks.items()):
            continue
        for pp in of("pp", [n for n in _divisors(gpus // (tp * cp)) if n <= blocks]):
            if gpus % (tp * cp * pp) == 0 and (split or pp == 1):
                yield tp, cp, pp


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


# ---- why there is no layout


def _no_layout(estimator: Estimator, fixed: Collection[str]) -> str:
    config, gpus = estimator.config, estimator.gpus
    grids = list(_grids(config, gpus, estimator.hardware, _options(layout_of(config), fixed)))
    if not grids:
        settings = ", ".join(sorted(fixed)) or "the model"
        return (
            f"no layout of {gpus} GPUs: {settings} cannot be split so; tp must divide heads, "
            "model.mlp_width and model.vocab_size, tp x cp the heads, tp x cp x pp the GPUs: "
            "change --gpus or leave out what is set"
        )
    dp = min(gpus // (tp * cp * pp) for tp, cp, pp in grids)
    batch, microbatches = config.train.batch, config.train.microbatches
    if batch % dp == 0:  # what is set leaves less than a row to each
        return (
            f"no layout of {gpus} GPUs: train.microbatches = {microbatches} do not divide the "
            f"{batch // dp} sequences that each of {dp} data-parallel ranks has: set "
            f"train.microbatches to a divisor of {batch // dp}, or leave it out"
        )
    return (
        f"no layout of {gpus} GPUs: train.batch = {batch} sequences do not divide by the "
        f"data-parallel ranks, of which there are at least {dp}: set train.batch to a multiple of "
        f"{dp}, for example {-(-batch // dp) * dp}"
    )


def _nothing_fits(estimator: Estimator, quick: list[Estimate], fixed: Collection[str]) -> str:
    closest = estimator.estimate(min(quick, key=lambda e: e.memory.total).layout)
    memory, device = closest.memory, estimator.hardware.device
    held = memory.total - memory.activations
    what = (
        f"nothing fits on {estimator.gpus} x {device.name}: of {len(quick)} layouts the smallest "
        f"({described(closest.layout, closest.dp)}) needs {memory.total / GIB:,.1f} GiB on a rank "
        f"and {estimator.hardware.usable_bytes / GIB:,.1f} can be used"
    )
    more = _enough(estimator, fixed)
    if more:
        return f"{what}; it fits on --gpus {more}"
    if held > memory.activations:
        return f"{what}; lower the sizes in [model], or leave out what is set of [parallel]"
    return f"{what}; most is activations: lower sleep.window, or raise parallel.cp"


def _enough(estimator: Estimator, fixed: Collection[str]) -> int | None:
    """How many GPUs, by doubling, would make some layout fit."""
    gpus = 2 * estimator.gpus
    while gpus <= MAX_GPUS:
        more = Estimator(estimator.config, gpus, estimator.hardware, estimator.row)
        layouts = _layouts(more.config, gpus, more.hardware, fixed)
        quick = (more.estimate(x, simulated=False) for x in layouts)
        if any(e.memory.total <= more.hardware.usable_bytes for e in quick):
            return gpus
        gpus *= 2
    return None


def described(x: Layout, dp: int) -> str:
    """As "tp 2, pp 4, dp 8, zero 1, 16 microbatches, recompute unit"."""
    extra = ["sequence parallel"] * x.sequence_parallel + ["offload"] * x.offload
    extra += [f"cp {x.cp}"] * (x.cp > 1)
    return ", ".join(
        [f"tp {x.tp}, pp {x.pp}, dp {dp}, zero {x.zero}, {x.microbatches} microbatches",
         f"recompute {x.recompute}", *extra]
    )  # fmt: skip


def settings(config: Config, x: Layout) -> list[str]:
    """The overrides that give a configuration this layout; what it has already is left out."""
    own, names = layout_of(config), (*SEARCHED, "microbatches")
    found = [
        f"{'train' if name == 'microbatches' else 'parallel'}.{name}={_written(getattr(x, name))}"
        for name in names
        if getattr(x, name) != getattr(own, name)
    ]
    other = config.parallel.stages and len(config.parallel.stages) != x.pp
    return [*found, "parallel.stages=[]"] if other else found


def with_layout(config: Config, x: Layout) -> Config:
    """The configuration with a layout of its own."""
    return override(config, settings(config, x))


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
