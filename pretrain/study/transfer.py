"""Hyperparameter transfer over width, depth and passes, from one tuned configuration.

m = width / tuned width, d = effective depth / tuned effective depth, where a looped block counts
N^pass_weight times (docs/scaling.md has the measurements behind the default):

    of                                        at start          learning rate
    embedding, norms, biases, A_log, conv.    1                 1
    body's matrices, Muon                     1 / sqrt(m)       1
    body's matrices, AdamW                    1 / sqrt(m)       1 / m
    of them mixer.out, mlp.down, also         x 1 / d^p         x 1 / d^p
    head                                      1 / m             1 / m

Weight decay is scaled by 1 / m with Muon and unchanged with AdamW, so that decay x rate of the
body's matrices falls as 1 / m with either (arXiv 2512.05620).

Muon's steps have a spectral norm of lr sqrt(max(1, rows / columns)) whatever the width, which is
what the spectral condition for feature learning requires (arXiv 2310.17813); AdamW's are entrywise,
so they must shrink (muP, arXiv 2203.03466). p = 1/2 is 1 / sqrt(depth), p = 1 CompleteP (arXiv
2505.01618).
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.setting import setting
from pretrain.config.schema import Config


@dataclass(kw_only=True)
class Transfer:
    """The rule by which learning rates and initial values scale with size."""

    width: bool = setting(True, "rates and initial values follow the width")
    depth_power: float = setting(
        0.5,
        "what mixer.out and mlp.down begin with and learn by falls with depth to this power; "
        "1: CompleteP, 0: not at all",
        at_least=0,
        at_most=2,
    )
    pass_weight: float = setting(
        0.0,
        "a block of the loop counts N to this power times in depth; 0: once, 1: N times",
        at_least=0,
        at_most=2,
    )


def transferred(config: Config, tuned: Config, rule: Transfer) -> list[str]:
    """Overrides for a configuration whose size differs from the tuned one."""
    optimizer = tuned.optimizer
    m = config.model.d_model / tuned.model.d_model if rule.width else 1.0
    d = _depth(config, rule.pass_weight) / _depth(tuned, rule.pass_weight)
    branch = d**-rule.depth_power
    residual_std = tuned.model.residual_std or tuned.model.init_std
    settings = {
        "model.init_std": tuned.model.init_std * m**-0.5,
        "model.residual_std": residual_std * m**-0.5 * branch,
        "model.head_std": tuned.model.head_std / m,
        "optimizer.head_lr_share": optimizer.head_lr_share / m,
        "optimizer.residual_lr_share": optimizer.residual_lr_share * branch,
    }
    if optimizer.name == "adamw":
        settings["optimizer.body_lr_share"] = optimizer.body_lr_share / m
    else:
        settings["optimizer.weight_decay"] = optimizer.weight_decay / m
    return [f"{place}={value:.6g}" for place, value in settings.items()]


def _depth(config: Config, pass_weight: float) -> float:
    """The effective depth: blocks, with looped ones counted N^pass_weight times."""
    once = config.sleep.prelude + config.sleep.coda
    return once + (len(config.model.layers) - once) * config.sleep.passes**pass_weight
