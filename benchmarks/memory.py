"""Peak memory and time of a training step, by recomputation, number of passes and stages.

A step is forward and backward of a few microbatches, without the optimiser; every window but the
last is slept over. Stages are processes of their own (`benchmarks/stage.py`). Measured memory is
compared with what the method should need, `counted`. Memory and time come from separate processes:
for memory, glibc is made to return freed tensors at once, so that resident memory equals what is
held, which costs time.

    python -m benchmarks.memory --out docs/memory.md    # 36 rows, about ten minutes on two cores
    python -m benchmarks.memory --quick                 # 8 rows of a smaller model
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import NamedTuple

from benchmarks.command import described
from benchmarks.ranks import on_ranks
from parallel.passes import Pass
from parallel.simulator import Span
from pretrain.origin import commit, processor
from pretrain.study.block_work import BlockBytes
from pretrain.study.rank_memory import UnitBytes, peak, unit_bytes

MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """What is measured, and the sizes."""

    policies: tuple[str, ...] = ("none", "unit", "block")
    passes: tuple[int, ...] = (1, 2, 4, 8)
    stages: tuple[int, ...] = (1, 2, 4)
    layers: tuple[str, ...] = ("attention", "delta", "attention", "delta")
    width: int = 256  # D
    vocabulary: int = 512
    microbatches: int = 4
    # per microbatch; enough that tensors outweigh a unit's graph nodes and Python objects
    rows: int = 6
    windows: int = 2
    window: int = 128  # tokens
    repeats: int = 1  # steps, of which the fastest counts

    @property
    def cases(self) -> list[tuple[str, int]]:
        """What one set of processes measures: (recompute, N)."""
        return [(policy, N) for N in self.passes for policy in self.policies]


QUICK = Plan(("none", "unit"), (1, 2), (1, 2), width=128)


class Peak(NamedTuple):
    """Bytes of one stage in one step."""

    held: int  # the peak, beyond what the process held before
    counted: float
    stored: float  # one (h, S) for each of the units that are live at a time


# ---- what the method should need


class Weight(NamedTuple):
    """What one block holds in one unit of work."""

    whole: BlockBytes
    write_only: BlockBytes  # the same if nothing reads the block's output


def counted(
    policy: str, passes: Sequence[Pass], spans: Sequence[Span], blocks: Mapping[int, Weight]
) -> float:
    """Peak bytes of a stage in one step: the maximum, over its actions, of what is live at once, by
    `pretrain.study.rank_memory`, for the blocks that the plan runs in each unit.

    Not counted: weights and their gradients, allocated before; the embedding, the head and its
    logits; what a stage keeps of the hidden states it has sent, and messages in flight; gradients
    of activations, and whatever else lives only inside a forward or a backward.

    Args:
        passes: of a microbatch; all are alike. spans: the stage's actions, in order.
        blocks: the stage's, by their index in the model.
    """

    def of(p: Pass) -> UnitBytes:
        here = [(b, blocks[b]) for b in p.blocks if b in blocks]
        return unit_bytes(policy, [w.write_only if b == p.write_only else w.whole for b, w in here])

    units = list(map(of, passes))
    return peak([(span.action.backward, span.action.unit) for span in spans], units)


# ---- what was measured


Peaks = Mapping[tuple[int, str, int], Sequence[Peak]]  # by (P, recompute, N): one per stage
Seconds = Mapping[tuple[int, str, int], float]


def table(plan: Plan, peaks: Peaks, seconds: Seconds) -> Iterator[str]:
    """Markdown, line by line."""
    columns = (
        "recompute", "N", "stages", "peak MiB of each stage", "highest", "vs N = 1", "counted MiB",
        "measured / counted", "time vs none", "time vs 1 stage",
    )  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for P, policy, N in product(plan.stages, plan.policies, plan.passes):
        most = max(peaks[P, policy, N])
        first = max(peaks[P, policy, plan.passes[0]])
        time = seconds[P, policy, N]
        cells = (
            policy, N, P, " / ".join(f"{stage.held / MIB:.0f}" for stage in peaks[P, policy, N]),
            f"{most.held / MIB:.0f}", f"{most.held / first.held:.2f}",
            f"{most.counted / MIB:.0f}", f"{most.held / most.counted:.2f}",
            f"{time / seconds[P, 'none', N]:.2f}",
            f"{time / seconds[plan.stages[0], policy, N]:.2f}",
        )  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"


def claim(plan: Plan, peaks: Peaks) -> Iterator[str]:
    """Whether deep sleep costs no more than what it must store, line by line."""
    low, high = plan.passes[0], plan.passes[-1]
    yield f'The limit: with "unit", N = {high} may take 1.3 times the peak of N = {low}, and'
    yield "beyond that only the inputs (h, S) of the additional units (passes over windows) that"
    yield "await their backward. For each number of stages, the stage closest to the limit, or"
    yield "furthest above it:"
    yield ""
    missed = []
    for P in plan.stages:
        sides = []
        for before, after in zip(peaks[P, "unit", low], peaks[P, "unit", high], strict=True):
            sides.append((after.held, before.held, after.stored - before.stored))
        after, before, stored = max(sides, key=lambda side: side[0] / (1.3 * side[1] + side[2]))
        limit = 1.3 * before + stored
        yield (
            f"- stages = {P}: {after / MIB:.1f} {'<=' if after <= limit else '>'} "
            f"{limit / MIB:.1f} MiB = 1.3 x {before / MIB:.1f} + {stored / MIB:.1f}: "
            f"{'holds' if after <= limit else 'DOES NOT HOLD'}"
        )
        if (worst := max(after / before for after, before, _ in sides)) > 1.3:
            missed.append(f"stages = {P} ({worst:.2f})")
    yield ""
    yield "The goal was 1.3 on every stage, these inputs included. It is " + (
        f"missed at {', '.join(missed)}." if missed else "met."
    )


def heading(plan: Plan) -> Iterator[str]:
    """What was measured, where, when and at which commit."""
    yield "# Memory and time of a training step"
    yield ""
    yield "This page measures peak memory and time of a training step on a CPU, by recomputation,"
    yield "passes N and pipeline stages, and compares the peak with what the method should need."
    yield ""
    yield (
        f"Forward and backward of {plan.microbatches} microbatches of {plan.rows} rows of "
        f"{plan.windows} windows of {plan.window} tokens; all windows but the last sleep. "
        f"D = {plan.width}, {len(plan.layers)} blocks "
        f"({', '.join(plan.layers)}), fp32. One process per stage, one thread each, gloo."
    )
    yield ""
    yield (
        "Peak: resident memory beyond what the process held before the step. Counted: what the "
        "method should need, on the stage with the highest peak (`benchmarks/memory.py` "
        "lists what is counted and what is not). Times are ratios: to no recomputation with the "
        "same N and stages, and to one stage with the same N and "
        "recomputation."
    )
    yield ""
    yield (
        f"`python -m benchmarks.memory` on {os.cpu_count()} cores ({processor()}), {date.today()}, "
        f"commit {commit() or 'unknown'}."
    )
    yield ""


def measure(plan: Plan, what: str, stages: int) -> list:
    """Runs all cases on `stages` processes.

    Args:
        what: "peak" returns a list of `Peak` for each case, by stage; "seconds" returns seconds.
    """
    sizes = json.dumps(asdict(plan))
    return on_ranks(stages, "benchmarks.stage", what, sizes, returns_freed=what == "peak")


def main() -> None:
    """Measures, and prints or writes the table."""
    parser = described(__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rows of a smaller model")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the table there instead of printing it"
    )
    args = parser.parse_args()
    if args.out and commit().endswith("-dirty"):
        sys.exit(
            "benchmarks.memory: a report names its commit, but files here differ: commit first"
        )
    plan = QUICK if args.quick else Plan()
    peaks, seconds = {}, {}
    for P in plan.stages:
        for (policy, N), stages in zip(plan.cases, measure(plan, "peak", P), strict=True):
            peaks[P, policy, N] = [Peak(*stage) for stage in stages]
        for (policy, N), took in zip(plan.cases, measure(plan, "seconds", P), strict=True):
            seconds[P, policy, N] = took
    text = "\n".join([*heading(plan), *table(plan, peaks, seconds), "", *claim(plan, peaks)]) + "\n"
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
