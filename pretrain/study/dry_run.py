"""What a ladder's runs will need: parameters, FLOPs, memory, time and cost, before any starts."""

from __future__ import annotations

from collections.abc import Sequence

from pretrain.study.estimate import estimate, example
from pretrain.study.hardware import GIB, load_hardware
from pretrain.study.ladder import LadderRun
from pretrain.study.scale import Size
from pretrain.tables import table

HEADERS = (
    "run", "seeds", "ranks", "parameters", "looped", "steps", "tokens", "wake FLOPs", "sleep",
    "recomputed", "GiB a rank", "hours", "cost",
)  # fmt: skip


def dry_run(runs: Sequence[LadderRun], hardware: str) -> str:
    """A line for each rung, N, window and budget; totals count what branches share only once.

    UserError: there is no such hardware.
    """
    machine = load_hardware(hardware)
    seeds = len({r.seed for r in runs})
    rows, flops, hours, cost, too_large = [], 0.0, 0.0, 0.0, 0
    for r in runs:
        if r.seed:
            continue
        size = Size.of(r)
        train = size.config.train
        step = estimate(size.config, r.run.ranks, machine, example(size.config))
        steps = train.steps - r.run.branch  # of its own
        own = steps * seeds
        flops += own * size.flops / train.steps
        hours += own * step.seconds / 3600 * r.run.ranks
        cost += own * step.cost
        fits = step.memory.total <= machine.usable_bytes
        too_large += not fits
        rows.append([
            r.run.name.replace("-seed0", ""), str(seeds), str(r.run.ranks),
            f"{size.parameters:,}", f"{size.looped:,}", str(train.steps), f"{size.tokens:.3g}",
            f"{size.flops - size.sleep:.3g}", f"{size.sleep:.3g}",
            f"{train.steps * step.recomputed:.3g}",
            f"{step.memory.total / GIB:.2f}{'' if fits else ' !'}",
            f"{steps * step.seconds / 3600:.3g}", f"{steps * step.cost:.3g}",
        ])  # fmt: skip
    price = machine.price
    paid = f", {cost:,.2f} {price.currency}" if price.per_hour else ""
    total = f"{flops:.3g} FLOPs, {hours:.3g} device hours of {machine.device.name}{paid}"
    note = "The hours and cost of a branch are of its own steps only."
    said = f"{table(HEADERS, rows)}\n\n{note} All runs: {total}."
    if not too_large:
        return said
    return (
        f"{said}\n! {too_large} of {len(rows)} do not fit in the {machine.usable_bytes / GIB:.1f} "
        "GiB usable on a device: `hypnos plan` finds layouts for ladder.layouts"
    )
