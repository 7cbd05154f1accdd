"""A run's folder can be moved, copied and used alone: it holds its tokenizer, and is found by it.

What a configuration says of places is true where the run was started. Here it is brought to where
the run's folder lies now; only the data of a corpus stay where they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pretrain.config import Config
from pretrain.config.checks import uses_tokenizer
from pretrain.config.fields import refused, values
from pretrain.config.load import override
from pretrain.data.store import is_remote
from pretrain.errors import UserError
from pretrain.files import read_whole, write_atomically

CONFIG, TOKENIZER = "config.toml", "tokenizer.model"


def keep_tokenizer(run: Path, config: Config, resumes: bool) -> None:
    """Writes data.tokenizer, if the task has one, into the run's folder.

    Args:
        resumes: the run goes on from a checkpoint: what it has must be the same, or UserError.
    """
    if not uses_tokenizer(config):
        return
    own, given = run / TOKENIZER, Path(config.data.tokenizer)
    content = read_whole(given)
    if own.exists() and own.read_bytes() == content:
        return
    if own.exists() and resumes:
        raise UserError(
            f"data.tokenizer = {given}: is not the run's own, {own}; set data.tokenizer={own}, or "
            "begin another run with another run.name"
        )
    write_atomically(own, content)


def places(config: Path) -> list[str]:
    """For a run's own config.toml: overrides that say where that run lies now. Else none."""
    run = Path(os.path.abspath(config)).parent
    if config.name != CONFIG or not (run / "checkpoints").is_dir():
        return []
    found = {"run.dir": run.parent, "run.name": run.name}
    if (run / TOKENIZER).exists():
        found["data.tokenizer"] = run / TOKENIZER
    return [f"{place}={json.dumps(str(path))}" for place, path in found.items()]


def configuration_of(run: Path, trained: Config, overrides: Sequence[str] = ()) -> Config:
    """What a run was trained with, as it is used where its folder lies now.

    Args:
        overrides: of settings that do not enter what the model has learnt: those that a resumed run
            may change, train.batch, and [sleep].
    Raises:
        UserError: an override is refused.
    """
    changed = override(trained, overrides)
    for (place, setting, old), (_, _, new) in zip(values(trained), values(changed), strict=True):
        free = setting.rule.changes or place == "train.batch" or place.startswith("sleep.")
        if old != new and not free:
            raise UserError(
                f"{place} = {new!r}: {run} was trained with {old!r}; only settings that a resumed "
                "run may change, train.batch and those of [sleep] can be set here"
            )
    if not uses_tokenizer(trained):
        return changed
    own = run / TOKENIZER
    if changed.data.tokenizer not in (trained.data.tokenizer, str(own)):
        raise UserError(f"data.tokenizer: {run} holds its own, {TOKENIZER}: leave it out")
    changed.data.tokenizer = str(own)
    return changed


def check_tokenizer(config: Config) -> None:
    """UserError if the folder of a run that `configuration_of` gave lacks its tokenizer."""
    own = Path(config.data.tokenizer)
    if uses_tokenizer(config) and not own.exists():
        fix = "copy a run's folder as a whole, or the tokenizer that it was trained with there"
        raise UserError(f"{own}: missing; {fix}")


def check_data(config: Config, *, training: bool) -> None:
    """UserError if what a run reads is not where its configuration says.

    What lies on an object store is looked for when it is opened.

    Args:
        training: its training data and data.tokenizer are read, too, and not only held-out data.
    """
    data, needed = config.data, list[tuple[str, str]]()
    if training and uses_tokenizer(config):
        needed.append(("data.tokenizer", data.tokenizer))
    if training and data.task == "text":
        needed += [(f"data.train[{i}].path", corpus.path) for i, corpus in enumerate(data.train)]
    if data.task == "text":
        needed.append(("data.heldout", data.heldout))
    if data.task == "stories" and config.stories.path:
        needed.append(("stories.path", config.stories.path))
    for place, path in needed:
        if not is_remote(path) and not Path(path).exists():
            where = "" if os.path.isabs(path) else f" in {Path.cwd()}"
            fix = 'data.train=[{path="PATH"}]' if "train" in place else f"{place}=PATH"
            raise refused(place, path, f"not there{where}; say where it is now: {fix}")
