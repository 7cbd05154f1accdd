"""Prints a plan as a table: a row for each grid, tp x cp x pp, with its best layout."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pretrain.config.schema import Config
from pretrain.model.flops import parameters
from pretrain.study.estimate import Estimate
from pretrain.study.hardware import GIB, Hardware
from pretrain.study.planner import Plan, settings

DAY = 86_400.0


def show(found: Plan, config: Config, gpus: int, hardware: Hardware) -> None:
    """Prints the plan; as plain text of any width if the output is not a terminal."""
    console = Console(soft_wrap=True)
    for line in heading(found, config, gpus, hardware):
        console.print(line, markup=False, highlight=False)
    table = Table(box=box.SIMPLE)
    rows = [_row(e, config, hardware) for e in found.best]
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "recompute" else "right")
    for row in rows:
        table.add_row(*row.values())
    # don't wrap rows, even if the terminal is narrower
    whole = console.measure(table, options=console.options.update(width=300)).maximum
    console.width = max(console.width, whole)
    console.print(table)


def heading(found: Plan, config: Config, gpus: int, hardware: Hardware) -> Iterator[str]:
    """Lines on what is planned for which hardware."""
    e = found.best[0]
    N, least = config.sleep.passes, config.sleep.min_passes
    yield (
        f"{parameters(config.model):,} parameters, N = "
        f"{f'{least} to {N}' if least else N}: {e.tokens:,} tokens and {e.work.flops:.3g} FLOPs "
        f"a step, {config.train.steps:,} steps"
    )
    yield (
        f"{gpus} x {hardware.device.name}, {hardware.usable_bytes / GIB:.1f} usable GiB each: "
        f"{found.fit} of {found.considered} layouts fit; the fastest of each tp x cp x pp:"
    )


def _row(e: Estimate, config: Config, hardware: Hardware) -> dict[str, str]:
    x = e.layout
    row = {
        "tp x cp x pp x dp": f"{x.tp}{'s' * x.sequence_parallel} x {x.cp} x {x.pp} x {e.dp}",
        "ZeRO": f"{x.zero}{' offload' if x.offload else ''}",
        "microbatches": f"{x.microbatches} x {e.rows}",
        "recompute": x.recompute,
        "GiB": f"{e.memory.total / GIB:.1f}",
        "s/step": f"{e.seconds:.3g}",
        "tokens/s": f"{e.tokens_per_s:,.0f}",
        "MFU": f"{e.mfu:.1%}",
        "bubble": f"{e.bubble:.1%}",
        "exchange": f"{e.exchange_s / e.seconds:.1%}",
        "days": f"{config.train.steps * e.seconds / DAY:.3g}",
    }
    if hardware.price.per_hour:
        row[hardware.price.currency] = f"{config.train.steps * e.cost:,.0f}"
    return row


def as_csv(found: Plan, config: Config) -> str:
    """The plan as CSV, with a column for each number."""
    rows = [_numbers(e, config) for e in found.best]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _numbers(e: Estimate, config: Config) -> dict[str, Any]:
    x, memory = e.layout, e.memory
    parts = ("weights", "gradients", "optimizer", "buffers", "activations", "update", "total")
    return {
        "tp": x.tp, "cp": x.cp, "pp": x.pp, "dp": e.dp, "sequence_parallel": x.sequence_parallel,
        "zero": x.zero, "offload": x.offload, "microbatches": x.microbatches, "rows": e.rows,
        "recompute": x.recompute,
        **{f"{part}_bytes": round(getattr(memory, part)) for part in parts},
        "seconds": e.seconds, "tokens_per_s": e.tokens_per_s, "mfu": e.mfu, "bubble": e.bubble,
        "exchange_s": e.exchange_s, "update_s": e.update_s, "cost": e.cost,
        "overrides": " ".join(settings(config, x)),
    }  # fmt: skip
