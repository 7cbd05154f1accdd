"""What a study's runs will need: parameters, FLOPs, memory, time and cost, before any starts."""

from __future__ import annotations

from collections.abc import Sequence

from pretrain.study.estimate import estimate, example
from pretrain.study.hardware import GIB, load_hardware
from pretrain.study.one_run import Run
from pretrain.study.scale import Size
from pretrain.tables import table

HEADERS = (
    "run", "seeds", "ranks", "parameters", "looped", "steps", "tokens + PAD", "wake FLOPs",
    "sleep", "recomputed", "GiB a rank", "hours", "cost",
)  # fmt: skip


def dry_run(runs: Sequence[Run], seeds: int, hardware: str) -> str:
    """A line for each run of the first seed; totals count all seeds, and what branches share once.

    UserError: there is no such hardware.
    """
    machine = load_hardware(hardware)
    rows, flops, hours, cost, too_large = [], 0.0, 0.0, 0.0, 0
    for run in runs:
        size = Size.of(run)
        train = size.config.train
        layout = size.config.parallel  # a study of the paper trains one by an array's tasks
        ranks = max(run.ranks, layout.tp * layout.cp * layout.pp)
        step = estimate(size.config, ranks, machine, example(size.config))
        steps = train.steps - run.branch  # of its own
        own = steps * seeds
        flops += own * size.flops / train.steps
        hours += own * step.seconds / 3600 * ranks
        cost += own * step.cost
        fits = step.memory.total <= machine.usable_bytes
        too_large += not fits
        rows.append([
            run.name.replace("-seed0", ""), str(seeds), str(ranks),
            f"{size.parameters:,}", f"{size.looped:,}", str(train.steps), f"{size.tokens:.3g}",
            f"{size.flops - size.sleep:.3g}", f"{size.sleep:.3g}",
            f"{train.steps * step.recomputed:.3g}",
            f"{step.memory.total / GIB:.2f}{'' if fits else ' !'}",
            f"{steps * step.seconds / 3600:.3g}", f"{steps * step.cost:.3g}",
        ])  # fmt: skip
    price = machine.price
    paid = f", {cost:,.2f} {price.currency}" if price.per_hour else ""
    total = f"{flops:.3g} FLOPs, {hours:.3g} device hours of {machine.device.name}{paid}"
    branches = any(run.branch for run in runs)
    note = "The hours and cost of a branch are of its own steps only. " if branches else ""
    said = f"{table(HEADERS, rows)}\n\n{note}All runs: {total}."
    if not too_large:
        return said
    return (
        f"{said}\n! {too_large} of {len(rows)} do not fit in the {machine.usable_bytes / GIB:.1f} "
        "GiB usable on a device: `hypnos plan` finds a layout (of a ladder: ladder.layouts)"
    )
