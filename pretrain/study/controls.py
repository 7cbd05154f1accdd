"""The control experiments: each is a change to the study's configuration.

All of them read the same data in the same order; "equal FLOPs" reads more of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pretrain.config.load import override, to_toml
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.model.draw import drawn_passes
from pretrain.model.flops import step_flops
from pretrain.study.estimate import example, with_vocabulary


@dataclass(frozen=True)
class Control:
    """One way to train, for a number N."""

    label: str  # in tables; {N} is filled in
    meaning: str  # for --help and the documents
    overrides: Callable[[Config, int], list[str]]  # from the study's configuration and N
    every_n: bool = False  # run for every N but 1, not only for the largest
    tested_at_all: bool = False  # tested at every compared N, not only at its own


# With one pass, other settings of passes would be refused.
AWAKE = ["sleep.passes=1", "sleep.min_passes=0", "sleep.truncate_passes=0", "sleep.curriculum=0"]


def passes(N: int) -> list[str]:
    """Overrides: that many passes."""
    return AWAKE if N == 1 else [f"sleep.passes={N}"]


def _more_blocks(config: Config, N: int) -> list[str]:
    return [*AWAKE, f"model.layers={to_toml(config.model.layers * N)}"]


def _wider_state(config: Config, N: int) -> list[str]:
    return [*AWAKE, f"model.delta_key_dim={config.model.delta_key_dim * N}"]


def _read_again(config: Config, N: int) -> list[str]:
    return [*AWAKE, f"data.repeats={N}", f"sleep.window={N * config.sleep.window}"]


def _attention_only(config: Config) -> list[str]:
    return [*AWAKE, f"model.layers={to_toml(['attention'] * len(config.model.layers))}"]


def _equal_flops(config: Config, N: int) -> list[str]:
    awake, asleep = (flops_per_step(override(config, passes(n))) for n in (1, N))
    return [*AWAKE, f"train.steps={round(config.train.steps * asleep / awake)}"]


SLEEP = Control(
    "N = {N}",
    "N passes over each window of context",
    lambda _, N: passes(N),
    tested_at_all=True,
)
EQUAL_FLOPS = "equal-flops"
CONTROLS = {
    EQUAL_FLOPS: Control(
        "N = 1, FLOPs of N = {N}",
        "N = 1, trained on more data until its FLOPs equal those of each compared N; warm-up, "
        "decay and curricula keep their number of steps",
        _equal_flops,
        every_n=True,
    ),
    "more-blocks": Control(
        "N = 1, {N} x the blocks", "N = 1 with N times the blocks", _more_blocks
    ),
    "wider-state": Control(
        "N = 1, {N} x the state", "N = 1 with fast weights N times as wide", _wider_state
    ),
    "read-again": Control(
        "N = 1, text {N} x",
        "N = 1, the text repeated N times in one reading: no h is carried",
        _read_again,
    ),
    "loops-awake": Control(
        "{N} loops, awake",
        "every window makes N passes before it is predicted, with S reset at each pass: a looped "
        "model",
        lambda _, N: [f"sleep.passes={N}", 'sleep.when="awake"', 'sleep.carries="h"'],
    ),
    "awake-too": Control(
        "N = {N}, awake too",
        "prediction windows, too, make N passes before they are predicted",
        lambda _, N: [f"sleep.passes={N}", 'sleep.when="awake"'],
    ),
    "no-h": Control(
        "N = {N}, no h carried",
        "each pass begins with the embedding; S is carried",
        lambda _, N: [f"sleep.passes={N}", 'sleep.carries="S"'],
    ),
    "no-S": Control(
        "N = {N}, no S carried",
        "what every pass but the last wrote is discarded; h is carried",
        lambda _, N: [f"sleep.passes={N}", 'sleep.carries="h"'],
    ),
    "no-gradient": Control(
        "N = {N}, last pass trained",
        "backpropagation goes through a window's last pass only, so it reaches no earlier window "
        "either",
        lambda _, N: [f"sleep.passes={N}", "sleep.truncate_passes=1"],
    ),
    "random-n": Control(
        "N = 1..{N} at random",
        "each training step draws its N from 1 to N",
        lambda _, N: [f"sleep.passes={N}", "sleep.min_passes=1"],
        tested_at_all=True,
    ),
    "n-rises": Control(
        "N = 1 rising to {N}",
        "N rises from 1 to N in the first half of the steps",
        lambda config, N: [f"sleep.passes={N}", f"sleep.curriculum={config.train.steps // 2}"],
        tested_at_all=True,
    ),
    "depth-rises": Control(
        "N = {N}, depth rises",
        "the deepest rows come later: depth rises in the first half of the steps",
        lambda config, N: [f"sleep.passes={N}", f"data.curriculum={config.train.steps // 2}"],
    ),
    "state-passing": Control(
        "N = {N}, states passed on",
        "half of the rows begin with the S that another row left",
        lambda _, N: [f"sleep.passes={N}", "data.state_passing=0.5"],
    ),
    "negative": Control(
        "N = {N}, negative eigenvalues",
        "eigenvalues of the delta rule may be negative",
        lambda _, N: [f"sleep.passes={N}", "model.delta_negative_eigenvalues=true"],
    ),
    "negative-once": Control(
        "N = 1, negative eigenvalues",
        "N = 1, eigenvalues of the delta rule may be negative",
        lambda *_: [*AWAKE, "model.delta_negative_eigenvalues=true"],
    ),
    "attention": Control(
        "attention, evicted",
        "attention alone under eviction: chance, or the task leaks",
        lambda config, _: _attention_only(config),
    ),
    "attention-sees-all": Control(
        "attention, sees all",
        "attention alone without eviction: what full memory gives",
        lambda config, _: [*_attention_only(config), 'sleep.eviction="none"'],
    ),
}


def flops_per_step(config: Config) -> float:
    """FLOPs of a training step, forward and backward, averaged over the run."""
    config = with_vocabulary(config)
    batch = example(config, config.train.batch)
    return step_flops(batch, config.model, config.sleep, drawn_passes(config)).flops


def named(names: list[str]) -> list[str]:
    """The names, without duplicates. UserError: one of them is not a control."""
    for name in names:
        if name not in CONTROLS:
            known = ", ".join(CONTROLS)
            raise UserError(f"--controls: unknown control {name}; choose from {known}")
    return list(dict.fromkeys(names))
