"""What each pipeline stage does in each unit, independent of ranks and hardware.

There are many stages and units, but most are alike: layers, windows and passes repeat. So a unit on
a stage is described by a value, `StageUnit`, and everything derived from it is computed only once.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from parallel.critical_path import CriticalPath
from parallel.passes import Pass
from parallel.schedule import step_schedule
from parallel.stages import Stage
from pretrain.config.schema import Config
from pretrain.model.flops import stage_bounds
from pretrain.model.plan import WindowPlan, plan_passes


class BlockUnit(NamedTuple):
    """Blocks of a stage that are alike in a unit."""

    kind: str  # "attention" | "delta"
    past: int  # keys of earlier windows
    write_only: bool
    has_grad: bool


class StageUnit(NamedTuple):
    """A unit on a stage."""

    width: int  # tokens of the window
    blocks: tuple[tuple[BlockUnit, int], ...]  # and how many of them
    scored: int  # positions of a row whose logits the head computes here
    sends: bool  # its hidden states go to another stage
    has_backward: bool
    sends_back: bool  # the gradient of its input goes back to another stage


class StageUnits:
    """The units of one microbatch on P stages."""

    def __init__(self, config: Config, pp: int, windows: tuple[WindowPlan, ...]) -> None:
        """
        Args:
            windows: of one row; all rows are alike.
        """
        self._config, self._windows = config, {w.index: w for w in windows}
        self.bounds = stage_bounds(config, pp)
        self.widest = max(w.width for w in windows)
        stage = Stage(0, self.bounds)
        self.passes: tuple[Pass, ...] = tuple(
            p for w in windows for p in plan_passes(w, config.model, config.sleep, stage)
        )
        self.of = [[self._unit(s, p) for p in self.passes] for s in range(pp)]  # None: no part
        self._paths: dict[tuple[int, str], CriticalPath] = {}

    def path(self, M: int, recompute: str) -> CriticalPath:
        """The critical path of the schedule of M such microbatches."""
        if (M, recompute) not in self._paths:
            schedule = step_schedule((self.passes,) * M, len(self.of), recompute)
            self._paths[M, recompute] = CriticalPath(schedule)
        return self._paths[M, recompute]

    def _unit(self, s: int, p: Pass) -> StageUnit | None:
        if not p.visits(s):
            return None
        w, last = self._windows[p.window], len(self.bounds) - 2
        scored = p.reads and w.any_scored and s == last
        several = last > 0
        return StageUnit(
            width=w.width,
            blocks=self._blocks(s, p),
            scored=len(w.scored_index) if scored else 0,
            sends=several and (s < p.last_stage or (p.loops and s == p.core_end)),
            has_backward=p.has_backward(s),
            sends_back=several and p.has_backward(s) and p.input_needs_grad(s),
        )

    def _blocks(self, s: int, p: Pass) -> tuple[tuple[BlockUnit, int], ...]:
        w, layers = self._windows[p.window], self._config.model.layers
        found = Counter(
            BlockUnit(
                layers[b], w.past, b == p.write_only, p.core_has_grad if b in p.core else w.has_grad
            )
            for b in p.blocks
            if self.bounds[s] <= b < self.bounds[s + 1]
        )
        return tuple(found.items())
