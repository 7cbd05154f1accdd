"""The coordinate check: how much a few training steps change, over width, depth and passes.

A rule for initial values and learning rates transfers if activations, memory and their changes in a
step are as large in wide, deep and many-pass models as in the tuned one (Yang et al., arXiv
2203.03466, D.1). Measured on one batch, before and after the same few steps:

    asleep      h after the last pass over the first window (as far as it is computed)
    h           the core's output in the last window
    S           after that window
    logits      at scored positions
    d...        the change of each by training

all as root mean squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parallel.engine import Engine
from parallel.state import DeltaState, State
from parallel.window import Window
from pretrain.config.load import override
from pretrain.config.schema import Config
from pretrain.data.batch import IGNORE, Batch
from pretrain.model.sleep import SleepLM
from pretrain.plots import COLOURS, figure
from pretrain.run import prepare
from pretrain.run.optimizer import MuonAdamW, lr_factor
from pretrain.run.step import accumulate
from pretrain.study.controls import passes
from pretrain.study.ladder import pattern, size
from pretrain.study.transfer import Transfer, transferred

LOOKED_AT = ("asleep", "h", "S", "logits")
MEASURES = (*LOOKED_AT, *(f"d{name}" for name in LOOKED_AT))
FLAT = 0.25  # a slope less steep than this, of log against log, is called flat


@dataclass(frozen=True)
class Coordinate:
    """The measures of one model after some steps."""

    axis: str  # "width", "blocks", "passes"
    at: int
    seed: int
    sizes: dict[str, float]  # by measure


class _Watched(SleepLM):
    """A model that records h after each run of the core (without gradient), and the newest
    state.
    """

    state: State

    def forget(self) -> None:
        self.seen: list[Tensor] = []

    def run(
        self, numbers: range, h: Tensor, state: State, window: Window, **how: Any
    ) -> tuple[Tensor, State]:
        h, self.state = super().run(numbers, h, state, window, **how)
        # an empty prelude begins there, too
        is_core = numbers and numbers.start == self.sleep.prelude
        if is_core and not torch.is_grad_enabled():
            self.seen.append(h.detach())
        return h, self.state


def points(tuned: Config) -> Iterator[tuple[str, int, list[str]]]:
    """(axis, value, overrides) of the models that are compared: the tuned, wider, deeper ones, and
    ones with more passes.
    """
    width, blocks = tuned.model.d_model, len(tuned.model.layers)
    unit = len(pattern(tuned.model.layers))  # one stays whole, or no "delta" may be left
    least = unit * max(1, blocks // unit // 2)
    for factor in (1, 2, 4, 8):
        yield "width", factor * width // 2, size(tuned, factor * width // 2, blocks)
    for factor in (1, 2, 4, 8):
        yield "blocks", factor * least, size(tuned, width, factor * least)
    for N in (1, 2, 4, 8):
        yield "passes", N, passes(N)


def check(
    tuned: Config, rule: Transfer, *, steps: int, seeds: int, tell: Callable[[str], None]
) -> list[Coordinate]:
    """Trains each model some steps at the full learning rate, and measures it."""
    found = []
    for axis, at, overrides in points(tuned):
        config = override(tuned, overrides)
        config = override(config, transferred(config, tuned, rule))
        for seed in range(seeds):
            sizes = _measure(override(config, [f"run.seed={seed}"]), steps)
            found.append(Coordinate(axis, at, seed, sizes))
        tell(f"{axis} {at}: measured")
    return found


def _measure(config: Config, steps: int) -> dict[str, float]:
    source = prepare.make_source(config)
    config = prepare.resolve(config, source)
    config.optimizer.warmup = config.optimizer.decay = 0
    model = _Watched(config.model, config.sleep, prepare.make_stage(config))
    model.initialize(config.run.seed)
    model.forget()
    optimizer = MuonAdamW(model.named_parameters(), config.optimizer)
    engine = Engine(model, optimizer, zero=0, precision="fp32")
    batch = source.next()
    before = _look(model, batch)
    for step in range(steps):
        read = source.next()
        n_scored = int((read.targets != IGNORE).sum())
        (out,) = accumulate(engine, model, [read], [None], n_scored, config.parallel)
        optimizer.lr_factor = lr_factor(step, steps, config.optimizer)
        optimizer.loss = out.loss / n_scored
        engine.step()
    after = _look(model, batch)
    engine.close()
    source.close()
    sizes: dict[str, float] = {}
    for name in LOOKED_AT:
        sizes |= {name: _rms(after[name]), f"d{name}": _rms(after[name] - before[name])}
    return sizes


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@torch.no_grad()
def _look(model: _Watched, batch: Batch) -> dict[str, Tensor]:
    """Activations and memory on one batch, by LOOKED_AT."""
    model.forget()
    logits = []

    def head(_: object, y: Tensor, targets: Tensor) -> Tensor:
        logits.append(model.logits(y))
        return torch.zeros(len(targets))

    model(batch, head=head)
    memory = [b.S.flatten() for b in model.state.blocks if isinstance(b, DeltaState)]
    asleep, h = model.seen[model.sleep.passes - 1], model.seen[-1]
    return {"asleep": asleep, "h": h, "S": torch.cat(memory), "logits": torch.cat(logits)}


def slope(found: list[Coordinate], axis: str, measure: str) -> float:
    """The slope of log measure against log width, blocks or passes; 0 is flat."""
    chosen = [c for c in found if c.axis == axis]
    x, y = (np.log([f(c) for c in chosen]) for f in (lambda c: c.at, lambda c: c.sizes[measure]))
    return float(np.polyfit(x, y, 1)[0])


def slopes(found: list[Coordinate]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: how each measure grows along each axis, as a power."""
    axes = dict.fromkeys(c.axis for c in found)
    rows = [[axis, *(_cell(slope(found, axis, m)) for m in MEASURES)] for axis in axes]
    return ["grows as a power of", *MEASURES], rows


def _cell(power: float) -> str:
    return f"{power:+.2f}" + ("" if abs(power) < FLAT else " *")


def lines(found: list[Coordinate]) -> tuple[list[str], list[list[object]]]:
    """Headers and rows: each model and seed."""
    rows = [[c.axis, c.at, c.seed, *(c.sizes[m] for m in MEASURES)] for c in found]
    return ["axis", "at", "seed", *MEASURES], rows


def draw(found: list[Coordinate], out: Path) -> None:
    """Plots each measure along each axis, relative to its first value: flat lines transfer."""
    axes = list(dict.fromkeys(c.axis for c in found))
    colours = [(m, COLOURS[i]) for i, m in enumerate(MEASURES)]
    with figure(out, colours, panels=len(axes), width=4.0 * len(axes)) as panels:
        for panel, axis in zip(panels, axes, strict=True):
            places = sorted({c.at for c in found if c.axis == axis})
            for measure, colour in colours:
                line = np.array([_mean(found, axis, measure, at) for at in places])
                panel.plot(places, line / line[0], "o-", color=colour, markersize=3)
            panel.set(title=f"by {axis}", xlabel=axis, xscale="log", yscale="log")
            panel.set_xticks(places, [str(at) for at in places])
            panel.xaxis.minorticks_off()
        panels[0].set_ylabel("size, relative to the smallest")


def _mean(found: list[Coordinate], axis: str, measure: str, at: int) -> float:
    return float(np.mean([c.sizes[measure] for c in found if (c.axis, c.at) == (axis, at)]))
