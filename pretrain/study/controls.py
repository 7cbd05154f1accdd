"""Who sleep is compared with: each is one line of configuration on the study's own.

All of them read the same data in the same order; "equal FLOPs" reads more of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pretrain.config.load import override, to_toml
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.model.flops import step_flops
from pretrain.tasks import make_task


@dataclass(frozen=True)
class Control:
    """One way to train, for a number N."""

    label: str  # in tables; {N} is filled in
    meaning: str  # for --help and the documents
    overrides: Callable[[Config, int], list[str]]  # of the study's configuration and N


def _more_blocks(config: Config, N: int) -> list[str]:
    return ["sleep.passes=1", f"model.layers={to_toml(config.model.layers * N)}"]


def _wider_state(config: Config, N: int) -> list[str]:
    return ["sleep.passes=1", f"model.delta_key_dim={config.model.delta_key_dim * N}"]


def _equal_flops(config: Config, N: int) -> list[str]:
    awake, asleep = (flops_per_step(override(config, [f"sleep.passes={n}"])) for n in (1, N))
    return ["sleep.passes=1", f"train.steps={round(config.train.steps * asleep / awake)}"]


SLEEP = Control(
    "N = {N}", "N passes over each window of context", lambda _, N: [f"sleep.passes={N}"]
)
CONTROLS = {
    "equal-flops": Control(
        "N = 1, FLOPs of N = {N}", "N = 1, trained on more data, for as many FLOPs", _equal_flops
    ),
    "more-blocks": Control(
        "N = 1, {N} x the blocks", "N = 1 with N times the blocks", _more_blocks
    ),
    "wider-state": Control(
        "N = 1, {N} x the state", "N = 1 with fast weights N times as wide", _wider_state
    ),
    "no-gradient": Control(
        "N = {N}, last pass trained",
        "backpropagation goes through the last pass only",
        lambda _, N: [f"sleep.passes={N}", "sleep.truncate_passes=1"],
    ),
}


def flops_per_step(config: Config) -> float:
    """Of a training step, forward and backward."""
    task = make_task(config, config.sleep.window)
    config.model.vocab_size = config.model.vocab_size or task.vocab_size
    work = step_flops(task.sample(0, 0, config.train.batch), config.model, config.sleep)
    return work.forward + work.backward


def named(names: list[str]) -> list[str]:
    """The names, each once. UserError: one of them is no control."""
    for name in names:
        if name not in CONTROLS:
            raise UserError(f"--controls {name}: there is none; there are {', '.join(CONTROLS)}")
    return list(dict.fromkeys(names))
