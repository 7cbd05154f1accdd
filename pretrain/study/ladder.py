"""STUDY.toml -> runs: one dial for size, and at each size every N, window, seed and token budget.

    rung 0 (smallest)   N = 1, 2, 4  x  windows  x  seeds      a trunk each, and its branches
    rung 1              ...                                    rates by `pretrain.study.transfer`

    trunk    warm-up, stable, decay: the largest token budget
    branch   the trunk's checkpoint before a smaller budget's decay, and that decay

so one run's stable phase serves all token budgets, each of which ends in a decay of its own (the
schedule of OLMo's ladder). The dial is the width: heads and MLP scale with it, and blocks as the
study says; tokens and batch scale with the number of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path

from parallel.setting import REQUIRED, setting
from pretrain.config.checks import check_ranks
from pretrain.config.load import load, read_settings, to_toml
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.model.flops import parameters
from pretrain.study.controls import passes
from pretrain.study.estimate import with_vocabulary
from pretrain.study.one_run import Run
from pretrain.study.transfer import Transfer, transferred

PROPORTIONAL = (
    "attention_heads", "attention_kv_heads", "delta_key_heads", "delta_value_heads", "mlp_width",
)  # fmt: skip


@dataclass(kw_only=True)
class RungLayout:
    """How the runs of one rung are spread over ranks."""

    ranks: int = setting(1, "ranks that train a run", at_least=1)
    settings: list[str] = setting([], "such as parallel.tp=2")


@dataclass(kw_only=True)
class LadderConfig:
    """What varies between the runs."""

    config: str = setting(REQUIRED, "the tuned configuration, seen from the study's file")
    settings: list[str] = setting([], "settings that differ from it, for every run")
    widths: list[int] = setting(REQUIRED, "model.d_model of each rung", at_least=1)
    block_power: float = setting(
        1.0, "blocks grow with the width to this power; 0: all rungs have as many", at_least=0
    )
    passes: list[int] = setting([1, 2, 4], "N", at_least=1)
    windows: list[int] = setting(
        [], "L; empty: the configuration's. A step of text has as many tokens at any L", at_least=1
    )
    seeds: int = setting(3, "of weights and data, from 0", at_least=1)
    budgets: list[float] = setting(
        [0.25, 0.5, 1.0],
        "token budgets as shares of the largest, each a whole multiple of the smallest",
        above=0,
        at_most=1,
    )
    decay: float = setting(0.2, "share of a budget in which learning rates decay", above=0, below=1)
    token_power: float = setting(
        1.0,
        "the largest budget (train.steps where the width is the configuration's) grows with the "
        "number of parameters to this power; 1: in proportion",
        at_least=0,
    )
    batch_power: float = setting(
        0.0,
        "train.batch grows with the number of parameters to this power, and learning rates with "
        "its square root",
        at_least=0,
    )
    chance: float = setting(0.0, "accuracy of guessing", at_least=0, below=1)
    layouts: list[RungLayout] = setting([], "empty: one rank; else one for each width")


@dataclass(kw_only=True)
class Study:
    """STUDY.toml."""

    ladder: LadderConfig
    transfer: Transfer = field(default_factory=Transfer)


@dataclass(frozen=True)
class LadderRun:
    """One run of a ladder at one token budget."""

    run: Run
    rung: int  # the smallest is 0
    width: int
    passes: int
    window: int
    seed: int
    budget: float  # share of the largest

    @property
    def trunk(self) -> str:
        """The name of the run that all budgets share."""
        return self.run.trunk or self.run.name


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """UserError: the file cannot be read, or it or an override is refused."""
    study = read_settings(Study, path, overrides)
    ladder = study.ladder
    for name in ("widths", "passes", "windows", "budgets"):
        values = getattr(ladder, name)
        if values != sorted(set(values)) or (not values and name != "windows"):
            raise UserError(
                f"{path}: ladder.{name} = {values}: list each once, in increasing order"
            )
    if ladder.layouts and len(ladder.layouts) != len(ladder.widths):
        raise UserError(
            f"{path}: ladder.layouts has {len(ladder.layouts)} entries: leave it out, or give one "
            f"for each of the {len(ladder.widths)} widths"
        )
    smallest = ladder.budgets[0]
    if any(abs(b / smallest - round(b / smallest)) > 1e-6 for b in ladder.budgets):
        raise UserError(
            f"{path}: ladder.budgets = {ladder.budgets}: each must be a whole multiple of the "
            f"smallest, {smallest:g}, so that all can branch off one run"
        )
    return study


def expand(path: Path, study: Study) -> list[LadderRun]:
    """All runs of a study, rung by rung and seed by seed; a trunk before its branches.

    UserError: a width cannot be divided into heads, or a configuration is refused.
    """
    ladder = study.ladder
    config = path.parent / ladder.config
    tuned = load(config, ladder.settings)
    runs: list[LadderRun] = []
    for number, width in enumerate(ladder.widths):
        unit = len(pattern(tuned.model.layers))
        growth = (width / tuned.model.d_model) ** ladder.block_power
        blocks = unit * max(1, round(len(tuned.model.layers) / unit * growth))
        try:
            sizes = [*ladder.settings, *size(tuned, width, blocks)]
        except UserError as error:
            raise UserError(f"{path}: ladder.widths: {error}") from None
        for seed in range(ladder.seeds):
            for window in ladder.windows or [tuned.sleep.window]:
                for N in ladder.passes:
                    arm = [*sizes, *passes(N), f"sleep.window={window}"]
                    arm += [f"run.seed={seed}"]
                    name = f"w{width}-n{N}"
                    name += f"-l{window}" if ladder.windows else ""
                    place = (number, width, N, window, seed)
                    runs += _budgets(config, f"{name}-seed{seed}", arm, tuned, study, place)
    return runs


def _budgets(
    config: Path,
    name: str,
    arm: list[str],
    tuned: Config,
    study: Study,
    place: tuple[int, int, int, int, int],
) -> Iterator[LadderRun]:
    """A trunk and its branches."""
    ladder = study.ladder
    sized = load(config, arm)
    growth = count(sized)[0] / count(tuned)[0]
    arm = [*arm, *transferred(sized, tuned, study.transfer), *_batch(tuned, sized, growth, ladder)]
    settings = load(config, arm)
    rows = tuned.train.steps * tuned.train.batch * growth**ladder.token_power
    rows /= _row_length(settings, tuned)
    smallest = ladder.budgets[0]
    shortest = max(2, round(rows / settings.train.batch * smallest / ladder.budgets[-1]))
    decay = max(1, round(ladder.decay * shortest))
    layout = ladder.layouts[place[0]] if ladder.layouts else RungLayout()
    every = f"train.checkpoint_every={shortest - decay}"
    for budget in reversed(ladder.budgets):
        k = round(budget / smallest)
        schedule = [f"train.steps={k * shortest}", f"optimizer.decay={k * decay}", every]
        is_trunk = budget == ladder.budgets[-1]
        schedule += [f"train.keep_every={shortest - decay}"] if is_trunk else []
        run = Run(
            name if is_trunk else f"{name}-b{budget:g}",
            config,
            (*arm, *schedule, *layout.settings),
            (settings.sleep.passes,),
            ranks=layout.ranks,
            trunk="" if is_trunk else name,
            branch=0 if is_trunk else k * (shortest - decay),
        )
        check_ranks(run.settings(), layout.ranks)
        yield LadderRun(run, *place, budget)


def too_short(runs: Sequence[LadderRun]) -> list[str]:
    """The names of runs whose decay starts before warm-up ends."""
    each = ((r.run.name, r.run.settings()) for r in runs)
    return [name for name, c in each if not c.optimizer.reaches_peak(c.train.steps)]


def size(tuned: Config, width: int, blocks: int) -> list[str]:
    """Overrides for a width, with heads and MLP in proportion, and a number of blocks.

    UserError: the number of heads would not be a whole number.
    """
    model, ratio = tuned.model, width / tuned.model.d_model
    sizes = {"d_model": width}
    for name in PROPORTIONAL:
        exact = getattr(model, name) * ratio
        if exact != int(exact):
            least = model.d_model // math.gcd(*(getattr(model, n) for n in PROPORTIONAL))
            raise UserError(
                f"a width of {width} would have {exact:g} model.{name}; take multiples of {least}"
            )
        sizes[name] = int(exact)
    layers = [block for _, block in zip(range(blocks), cycle(pattern(model.layers)), strict=False)]
    places = (f"model.{name}={value}" for name, value in sizes.items())
    return [*places, f"model.layers={to_toml(layers)}"]


def pattern(layers: Sequence[str]) -> list[str]:
    """The shortest list of blocks that the layers repeat."""
    for length in range(1, len(layers) + 1):
        if list(layers[:length]) * (len(layers) // length) == layers:
            return list(layers[:length])
    return list(layers)


def _row_length(config: Config, tuned: Config) -> float:
    """A row's length relative to the tuned one's: rows of longer windows hold more text."""
    if config.data.task != "text":
        return 1.0
    return config.sleep.window / tuned.sleep.window


def _batch(tuned: Config, sized: Config, growth: float, ladder: LadderConfig) -> list[str]:
    """train.batch, a multiple of the microbatches: the same number of tokens at any window; and
    rates scaled by the square root of `batch_power`'s growth.
    """
    length = _row_length(sized, tuned)
    if not ladder.batch_power and length == 1:
        return []
    step = tuned.train.microbatches
    rows = tuned.train.batch * growth**ladder.batch_power / length
    batch = max(step, step * round(rows / step))
    rate = (batch * length / tuned.train.batch) ** 0.5 if ladder.batch_power else 1.0
    return [
        f"train.batch={batch}",
        f"optimizer.muon_lr={tuned.optimizer.muon_lr * rate:.6g}",
        f"optimizer.adamw_lr={tuned.optimizer.adamw_lr * rate:.6g}",
    ]


def count(config: Config) -> tuple[int, int]:
    """(all parameters, those of looped blocks). Embedding and head run once."""
    model = with_vocabulary(config).model
    last = len(model.layers) - config.sleep.coda
    outside = replace(model, layers=model.layers[: config.sleep.prelude] + model.layers[last:])
    return parameters(model), parameters(model) - parameters(outside)
