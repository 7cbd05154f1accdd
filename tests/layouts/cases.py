"""Which layouts are compared with one process: smoke tests, a chosen few, all on demand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from parallel import combinations
from tests.layouts.problem import ROWS, L, Problem


@dataclass(frozen=True)
class Layout:
    """How a problem is spread over ranks."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 1
    recompute: str = "none"
    microbatches: int = 1
    sequence_parallel: bool = False
    offload: bool = False
    stages: tuple[int, ...] = ()
    cp: int = 1
    by_tokens: bool = False  # cp ranks split the delta rule by tokens, not by heads

    @property
    def world(self) -> int:
        return self.tp * self.cp * self.pp * self.dp


class Case(NamedTuple):
    layout: Layout
    problem: Problem
    plant: str | None = None  # see planted.py

    def excess(self, errors: dict[str, float]) -> dict[str, float]:
        """The errors above their tolerance."""
        return {name: e for name, e in errors.items() if not e <= self.tolerance[name]}

    @property
    def tolerance(self) -> dict[str, float]:
        """The largest errors allowed."""
        if self.problem.documents is not None:
            return TOLERANCE["random"]
        wider = {"gradient": WIDER} if self.problem.key_heads > 2 else {}
        low = self.problem.precision == "bf16"
        return TOLERANCE["bf16"] if low else TOLERANCE["fp32"] | wider

    def __str__(self) -> str:
        changed = [
            f"{k}={v}"
            for new, old in ((self.layout, Layout()), (self.problem, Problem()))
            for k, v in vars(new).items()
            if v != vars(old)[k]
        ]
        return " ".join([*changed, *([self.plant] if self.plant else [])])


# Largest relative errors, see worker.errors. In bf16 a different order of additions changes the
# last of 8 bits in every sum, three passes amplify this, and Muon scales directions that hardly
# matter to the same length as all others.
# Random models are worse conditioned: fp32 rounding alone changes their gradients, and Adam's
# updates from small ones, by up to 3e-5.
TOLERANCE = {
    "fp32": {"loss": 1e-5, "norm": 1e-5, "gradient": 1e-5, "weight": 1e-5, "state": 1e-5},
    "random": {"loss": 1e-5, "norm": 1e-5, "gradient": 1e-4, "weight": 1e-4, "state": 1e-5},
    "bf16": {"loss": 2e-3, "norm": 2e-2, "gradient": 0.2, "weight": 1e-2, "state": 5e-2},
}

# For gradients in fp32 of models with four key heads: there one process differs from fp64 by up to
# 7.6e-6, and another order of additions adds as much again.
WIDER = 2e-5

# One layout of each kind, on two ranks.
SMOKE = [
    Case(
        Layout(tp=2, recompute="unit"),
        Problem(prelude=1, coda=1, when="context", tied=True, biased=True),
    ),
    Case(
        Layout(pp=2, microbatches=4, stages=(1, 3)),
        Problem(when="context", prelude=2, coda=1, passes=4),
    ),
    Case(Layout(dp=2, zero=3), Problem(when="context", prelude=1, biased=True)),
    Case(
        Layout(cp=2, recompute="unit"),
        Problem(when="context", eviction="sliding", coda=1, biased=True),
    ),
    Case(Layout(cp=2, by_tokens=True), Problem()),
]

DAILY = [
    # two ranks
    Case(Layout(tp=2, sequence_parallel=True, zero=3),
         Problem(eviction="sliding", coda=1, biased=True)),
    Case(Layout(pp=2, microbatches=2, recompute="unit"), Problem(tied=True)),
    Case(Layout(pp=2, microbatches=2),
         Problem(truncate_windows=2, truncate_passes=1, prelude=1, eviction="sliding")),
    Case(Layout(pp=2, microbatches=2, recompute="block"),
         Problem(precision="bf16", tied=True, passes=2)),
    Case(Layout(dp=2, zero=2, microbatches=2, offload=True), Problem(when="context", coda=2)),
    Case(Layout(dp=2, zero=3, recompute="unit"),
         Problem(tied=True, when="context", coda=1), "weights leave at once"),
    Case(Layout(cp=2, zero=3), Problem(tied=True, prelude=1), "weights leave at once"),
    Case(Layout(cp=2, zero=0, microbatches=2), Problem(passes=1, optimizer="adamw")),
    Case(Layout(cp=2, zero=2, recompute="block"), Problem(precision="bf16", coda=1)),
    Case(Layout(cp=2, by_tokens=True, zero=2, recompute="unit"),
         Problem(when="context", eviction="sliding", coda=1, truncate_passes=1)),
    # four ranks
    Case(Layout(cp=4), Problem(key_heads=4, eviction="sliding", truncate_passes=1)),
    Case(Layout(tp=2, cp=2, recompute="unit"), Problem(key_heads=4, tied=True, when="context")),
    Case(Layout(cp=2, dp=2, zero=2, microbatches=2), Problem(when="context", coda=2)),
    Case(Layout(cp=4, by_tokens=True), Problem(key_heads=4, coda=1)),
    Case(Layout(tp=2, cp=2, by_tokens=True, zero=3, sequence_parallel=True, recompute="block"),
         Problem(key_heads=4, when="context", prelude=1)),
    Case(Layout(cp=2, pp=2, microbatches=2, recompute="unit"),
         Problem(tied=True, eviction="sliding", truncate_windows=2)),
    Case(Layout(tp=2, pp=2, microbatches=2, recompute="unit"),
         Problem(eviction="sliding", when="context", coda=2)),
    Case(Layout(tp=2, pp=2, sequence_parallel=True, microbatches=2),
         Problem(tied=True, precision="bf16", passes=2)),
    Case(Layout(pp=2, dp=2, microbatches=4),
         Problem(eviction="sliding", when="context", prelude=1, truncate_passes=1)),
    Case(Layout(pp=4, microbatches=4),
         Problem(prelude=1, coda=2, when="context", layers=("delta", "attention") * 3)),
    Case(Layout(pp=4, microbatches=2),
         Problem(layers=("attention", "delta", "delta", "attention"), when="context",
                 update="delta")),
    Case(Layout(tp=2, dp=2, zero=3), Problem(update="delta"), "weights leave at once"),
    Case(Layout(dp=2, zero=2), Problem(update="delta", precision="bf16", tied=True)),
    Case(Layout(tp=2), Problem(update="delta", optimizer="adamw")),
]  # fmt: skip

# For `make test-layouts`: each setting of these also occurs in a case above.
MORE = [
    Case(Layout(tp=2, sequence_parallel=True, zero=0),
         Problem(optimizer="adamw", when="context", coda=1)),
    Case(Layout(pp=2, microbatches=2), Problem(when="context", prelude=1, truncate_passes=1)),
    Case(Layout(dp=2, zero=3), Problem(eviction="sliding"), "weights leave at once"),
    Case(Layout(tp=2, cp=2, zero=3, sequence_parallel=True), Problem(key_heads=4, prelude=1)),
    Case(Layout(tp=2, dp=2, zero=2), Problem(passes=1)),
    Case(Layout(tp=2, dp=2, zero=0, recompute="block"), Problem(tied=True)),
    Case(Layout(pp=2, dp=2, microbatches=2), Problem(tied=True, optimizer="adamw")),
]  # fmt: skip

FAULTY = [
    Case(Layout(tp=2), Problem(), "one tp rank's gradient dropped"),
    Case(Layout(tp=2), Problem(), "shared parameters counted twice in the norm"),
    Case(Layout(pp=2, microbatches=2), Problem(), "gradient of the fast weights dropped"),
    Case(Layout(pp=2, microbatches=2), Problem(), "gradient of the next pass dropped"),
    Case(
        Layout(pp=2, microbatches=2),
        Problem(tied=True),
        "one end's gradient of a tied embedding dropped",
    ),
    Case(Layout(cp=2), Problem(), "gradients stay where they are in an exchange"),
    Case(Layout(cp=2), Problem(), "every context-parallel rank takes the first one's decays"),
    Case(Layout(cp=2), Problem(), "context-parallel ranks count as one in the mean"),
    Case(Layout(cp=2, by_tokens=True), Problem(), "what comes before a share of tokens is lost"),
]

# For every two columns, each pair of values is in some row (the orthogonal array L8).
PAIRS = [
    (0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 1, 1, 1, 1),
    (0, 1, 1, 0, 0, 1, 1),
    (0, 1, 1, 1, 1, 0, 0),
    (1, 0, 1, 0, 1, 0, 1),
    (1, 0, 1, 1, 0, 1, 0),
    (1, 1, 0, 0, 1, 1, 0),
    (1, 1, 0, 1, 0, 0, 1),
]


def draw(seed: int, ranks: Sequence[int] = (1, 2, 2, 4)) -> Case:
    """A random valid layout of a random model that reads random documents.

    Args:
        ranks: the numbers of ranks to choose from.
    """
    choose = random.Random(seed)
    while True:
        world = choose.choice(ranks)
        tp, cp, pp, dp = choose.choice(
            [g for g in itertools.product((1, 2, 3, 4), repeat=4) if prod(g) == world]
        )
        blocks, passes = choose.randint(pp, 6), choose.randint(1, 4)
        ends = sorted(choose.sample(range(1, blocks), pp - 1))
        windows = choose.randint(1, 4)
        layout = Layout(
            tp=tp, cp=cp, pp=pp, dp=dp, zero=choose.randint(0, 3),
            recompute=choose.choice(("none", "block", "unit")),
            microbatches=choose.choice((1, 2, 4)),
            sequence_parallel=choose.random() < 0.5, by_tokens=cp > 1 and choose.random() < 0.5,
            stages=tuple(b - a for a, b in itertools.pairwise([0, *ends, blocks])),
        )  # fmt: skip
        prelude = choose.choice((0, 0, 1, 2))
        problem = Problem(
            layers=tuple(choose.choice(("delta", "attention")) for _ in range(blocks)),
            prelude=prelude, coda=choose.choice((0, 0, 1, 2)), passes=passes, windows=windows,
            when=choose.choice(("always", "context")), eviction=choose.choice(("hard", "sliding")),
            truncate_passes=choose.choice((0, choose.randint(0, passes))),
            truncate_windows=choose.choice((0, choose.randint(0, windows))),
            tied=choose.random() < 0.3, optimizer=choose.choice(("muon", "adamw")), documents=seed,
            key_heads=4 if tp * cp == 4 else 2, biased=choose.random() < 0.3,
        )  # fmt: skip
        plant = "weights leave at once" if layout.zero == 3 and choose.random() < 0.5 else None
        case = Case(layout, problem, plant)
        if _may_be_run(case):
            return case


def _may_be_run(case: Case) -> bool:
    layout, problem = case.layout, case.problem
    core = problem.layers[problem.prelude : len(problem.layers) - problem.coda]
    return (
        ROWS % (layout.dp * layout.microbatches) == 0
        and len(problem.layers) >= problem.prelude + problem.coda
        and (problem.passes == 1 or "delta" in core)
        and problem.key_heads % (layout.tp * layout.cp) == 22 % layout.tp == 0
        and _tokens_divide(layout, problem)
        and combinations.refusal(
            combinations.Layout(
                tp=layout.tp, pp=layout.pp, sequence_parallel=layout.sequence_parallel,
                zero=layout.zero, microbatches=layout.microbatches, cp=layout.cp,
                cp_delta="tokens" if layout.by_tokens else "heads",
            )
        ) is None
    )  # fmt: skip


def _tokens_divide(layout: Layout, problem: Problem) -> bool:
    """Whether `pretrain.run.prepare.check_tokens_divide` would accept it."""
    widths = {min(L, problem.tokens), problem.tokens % L or L}
    rows, cp = ROWS // layout.dp // layout.microbatches, layout.cp
    own = {w * (r + 1) // cp - w * r // cp for w in widths for r in range(cp)}
    return not layout.sequence_parallel or all(rows * n % layout.tp == 0 for n in own)


def everything() -> Iterator[Case]:
    """All layouts of up to eight ranks (but cp = 2 with pp = 4), every ZeRO stage, N = 1 and 3;
    each with every pair of the other choices.

    The choices are in two groups, `first` and `second` below. Each layout has every pair within a
    group; how the groups' rows are combined changes from layout to layout. With cp, each layout has
    two of the eight rows. Added to these: the smoke tests, the chosen few, and offloading wherever
    it is allowed.
    """
    yield from [*SMOKE, *DAILY, *MORE]
    for split, zero, precision in itertools.product(
        ("tp", "cp", "dp", "pp"), (1, 2, 3), ("fp32", "bf16")
    ):
        if split != "pp" or (zero, precision) == (1, "fp32"):
            layout = Layout(**{split: 2}, zero=zero, offload=True, microbatches=2)
            yield Case(layout, Problem(precision=precision, tied=True))
    grids = [
        grid
        for grid in itertools.product((1, 2), (1, 2), (1, 2, 4), (1, 2))
        if prod(grid) <= 8 and grid[1] * grid[2] <= 4
    ]
    combinations = [
        (*grid, zero, n)
        for grid in grids
        for zero in ((1,) if grid[2] > 1 else range(4))
        for n in (1, 3)
    ]
    for turn, (tp, cp, pp, dp, zero, passes) in enumerate(combinations):
        rows = list(zip(PAIRS, PAIRS[turn % 8 :] + PAIRS[: turn % 8], strict=True))
        for first, second in rows if cp == 1 else rows[turn % 4 :: 4]:
            recompute, parts, low, adamw, context, tied, padded = first
            sliding, prelude, coda, few_passes, few_windows, many_parts, _ = second
            layout = Layout(
                tp=tp, cp=cp, pp=pp, dp=dp, zero=zero, recompute=("none", "unit")[recompute],
                # ZeRO 0 would accumulate in bf16
                microbatches=(1, 1 if low and zero == 0 else (2, 4)[many_parts])[parts],
                sequence_parallel=tp > 1 and bool(context ^ parts),
                by_tokens=cp > 1 and bool(tied ^ sliding),
            )  # fmt: skip
            problem = Problem(
                passes=passes, precision=("fp32", "bf16")[low], optimizer=("muon", "adamw")[adamw],
                when=("always", "context")[context], tied=bool(tied) and tp * cp < 4,
                padded=bool(padded), eviction=("hard", "sliding")[sliding], prelude=prelude,
                coda=coda, truncate_passes=few_passes, truncate_windows=2 * few_windows,
                key_heads=max(2, tp * cp),
            )  # fmt: skip
            if not _tokens_divide(layout, problem):
                layout = replace(layout, sequence_parallel=False)
            yield Case(layout, problem)
