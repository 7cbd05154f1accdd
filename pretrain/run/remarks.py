"""Warnings about settings that may not be what was meant, given before a run begins."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pretrain.config.fields import differences
from pretrain.config.resume import changed_to
from pretrain.config.schema import Config
from pretrain.convert.engines import early_warning
from pretrain.run.optimizer import lr_factor

SMALL = 0.1  # initial std of the embedding; gradients were seen to grow with 0.02, not with 1


def remarks(config: Config, before: Config | None, start: int) -> Iterator[str]:
    """One line per warning; none for an ordinary run.

    Args:
        before: the configuration of the checkpoint that the run resumes from.
        start: steps that are done.
    """
    schedule, steps = config.optimizer, config.train.steps
    if not schedule.reaches_peak(steps):
        yield (
            f"optimizer.warmup = {schedule.warmup} and optimizer.decay = {schedule.decay} add up "
            f"to more than train.steps = {steps}: the learning rate does not reach its peak"
        )
    rising = {
        "sleep.curriculum": (config.sleep.curriculum, "no step has sleep.passes"),
        "data.curriculum": (config.data.curriculum, "no row is of the task's full depth"),
    }
    for name, (rises, what) in rising.items():
        if rises > steps:
            yield f"{name} = {rises} is more than train.steps = {steps}: {what}"
    keep, every = config.train.keep_every, config.train.checkpoint_every
    if keep % every:
        yield (
            f"train.keep_every = {keep} is not a multiple of train.checkpoint_every = {every}: "
            f"checkpoints are kept for good every {math.lcm(keep, every)} steps"
        )
    profile = config.train.profile
    is_new = before is None or before.train.profile != profile
    if profile and is_new and not (profile[0] <= steps and start < profile[1]):
        yield f"train.profile = {profile}: not in steps {start + 1} to {steps}: nothing is traced"
    std, passes = config.model.embedding_at_start, config.sleep.passes
    if before is None and not config.run.init_from and std < SMALL and passes > 1:
        mended = "tie_embeddings = false" if config.model.tie_embeddings else "embedding_std = 1"
        yield (
            f"the embedding begins at {std:g}: gradients grow with each of sleep.passes = {passes} "
            f"and it may learn nothing (docs/method.md); model.{mended} would fix that"
        )
    one_window = config.data.task == "text" and config.data.windows == 1
    if one_window and passes > 1 and not config.sleep.is_looped:
        yield (
            f"data.windows = 1: no gradient reaches what sleep.passes = {passes} write, as "
            "only other rows read it; set data.windows = 2 or more, or sleep.passes = 1"
        )
    if before is None and (line := early_warning(config)):
        yield line
    if before is not None and start < steps:
        now, was = (lr_factor(start, c.train.steps, c.optimizer) for c in (config, before))
        changed = {place: (old, new) for place, _, old, new in differences(before, config)}
        moved = " and ".join(
            changed_to(place, *changed[place])
            for place in ("train.steps", "optimizer.decay", "optimizer.decay_shape")
            if place in changed
        )
        if now != was and moved:
            yield (
                f"{moved} moves the learning rate's decay: it continues at {now:.3g} of its peak "
                f"instead of {was:.3g}"
            )
        if "train.eval_batches" in changed:
            yield (
                f"{changed_to('train.eval_batches', *changed['train.eval_batches'])}: from "
                "here on, held-out losses are measured on other rows than before"
            )
        elsewhere = _heldout(before).items() - _heldout(config).items()
        for setting in sorted(_heldout(config).keys() & dict(elsewhere)):
            yield (
                f"{setting} has another path: if its text is not the same, held-out losses "
                "from here on are not comparable with earlier ones"
            )


def _heldout(config: Config) -> dict[str, str]:
    """The held-out text that a run is evaluated on: its path, by what it is called."""
    sets = {f"{each.name} of data.heldout_sets": each.path for each in config.data.heldout_sets}
    return {"data.heldout": config.data.heldout} | sets
