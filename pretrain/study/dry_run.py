"""What a ladder's runs will take: parameters, tokens, FLOPs, before any is begun."""

from __future__ import annotations

from collections.abc import Sequence

from pretrain.report import table
from pretrain.study.ladder import LadderRun
from pretrain.study.scale import Size


def dry_run(runs: Sequence[LadderRun]) -> str:
    """A line for each rung, N, window and budget; the total has what branches share once."""
    headers = ["run", "seeds", "parameters", "looped", "steps", "tokens", "wake FLOPs", "sleep"]
    rows, total = [], 0.0
    seeds = len({r.seed for r in runs})
    for r in runs:
        if r.seed:
            continue
        size = Size.of(r)
        steps = size.config.train.steps
        own = 1 - r.run.branch / steps
        total += seeds * own * size.flops
        rows.append([
            r.run.name.replace("-seed0", ""), str(seeds), f"{size.parameters:,}",
            f"{size.looped:,}", str(steps), f"{size.tokens:.3g}", f"{size.flops - size.sleep:.3g}",
            f"{size.sleep:.3g}",
        ])  # fmt: skip
    return f"{table(headers, rows)}\n\nall runs: {total:.3g} FLOPs, what branches share once"
