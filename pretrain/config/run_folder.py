"""Makes run folders movable: adapts a run's configuration to where its folder is now.

A configuration's paths were right where the run was started. The run's folder holds its tokenizer,
so it can be moved, copied and used alone; only a corpus's data stay where they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pretrain.config.checks import uses_tokenizer
from pretrain.config.fields import differences, refused, values
from pretrain.config.load import given, load, override, read_tables, to_toml
from pretrain.config.schema import Config
from pretrain.data.store import is_remote
from pretrain.errors import UserError
from pretrain.files import read_whole, write_atomically
from tokenizer import TokenizerError, foreign
from tokenizer.encode import Tokenizer

CONFIG = "config.toml"
TOKENIZER = "tokenizer.model"  # a tokenizer of ours
FOREIGN_TOKENIZER = "tokenizer"  # the folder of another model's tokenizer


def own_tokenizer(run: Path) -> Path:
    """The tokenizer in a run's folder, or in an export, which keeps another model's tokenizer
    beside its weights.
    """
    if (run / FOREIGN_TOKENIZER).is_dir():
        return run / FOREIGN_TOKENIZER
    is_export = (run / "config.json").exists()
    return run if is_export and foreign.is_foreign(run) else run / TOKENIZER


def keep_tokenizer(run: Path, config: Config, resumes: bool) -> None:
    """Copies data.tokenizer, if the task uses one, into the run's folder.

    Args:
        resumes: the run resumes from a checkpoint, so its tokenizer must be the same, or UserError.
    """
    if not uses_tokenizer(config):
        return
    own, given = own_tokenizer(run), Path(config.data.tokenizer)
    content = _content(given)
    if own.exists() and _content(own) == content:
        return
    if own.exists() and resumes:
        raise UserError(
            f"data.tokenizer = {given}: is not this run's own, {own}; set data.tokenizer={own}, or "
            "begin another run with another run.name"
        )
    copy_tokenizer(given, run)


def copy_tokenizer(given: Path, run: Path) -> None:
    """Copies a tokenizer's file or folder into a run's folder."""
    shutil.rmtree(run / FOREIGN_TOKENIZER, ignore_errors=True)
    if foreign.is_foreign(given):
        foreign.hold(given, run / FOREIGN_TOKENIZER)
    else:
        write_atomically(run / TOKENIZER, _content(given)[TOKENIZER])


def check_same_tokenizer(start: Config, config: Config) -> None:
    """UserError if a run's tokenizer is not the one that its initial weights were trained with.

    Args:
        start: of the run that has the weights, from `configuration_of`. An imported one may have no
            tokenizer: then nothing is checked.
    """
    own, given = Path(start.data.tokenizer), Path(config.data.tokenizer)
    if not (uses_tokenizer(start) and uses_tokenizer(config) and own.exists()):
        return
    try:
        same = Tokenizer.load(own).fingerprint == Tokenizer.load(given).fingerprint
    except TokenizerError as error:
        raise UserError(str(error)) from None
    if not same:
        raise UserError(
            f"data.tokenizer = {given}: the weights of run.init_from were trained with another, "
            f"{own}: set data.tokenizer={own}, or leave it out"
        )


def _content(tokenizer: Path) -> dict[str, bytes]:
    """A tokenizer's files, by name."""
    if foreign.is_foreign(tokenizer):
        return foreign.contents(tokenizer)
    file = tokenizer / TOKENIZER if tokenizer.is_dir() else tokenizer
    return {TOKENIZER: read_whole(file)}


def load_run(config: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a run to train, like `pretrain.config.load.load`: adapted to where the
    run is now; for a new run, with what it takes over from the run of its initial weights.
    """
    of_folder = places(config)
    taken = [] if of_folder else _from_start(config, overrides)
    return load(config, [*of_folder, *taken, *overrides])


def _from_start(config: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides of [model], [sleep] and data.tokenizer, for settings that the file leaves out. If
    the run of the initial weights is gone, a run that has begun has them itself.
    """
    tables = read_tables(config)
    asked = given(tables, str(config), overrides).run
    if not asked.init_from:
        return []
    folder = Path(asked.init_from).expanduser()
    if not (folder / CONFIG).exists():
        folder = Path(asked.dir).expanduser() / asked.name
    if not (folder / CONFIG).exists():
        fix = "name a run or one of its checkpoints; `hypnos import` makes a run from another model"
        raise UserError(f"run.init_from = {asked.init_from}: has no {CONFIG}; {fix}")
    run = folder if (folder / "checkpoints").is_dir() else folder.absolute().parent.parent
    before, own = load(folder / CONFIG), own_tokenizer(run)
    found = {
        place: value for place, _, value in values(before) if place.startswith(("model.", "sleep."))
    }
    if own.exists():
        found["data.tokenizer"] = str(own.absolute())
    return [
        f"{place}={to_toml(value)}"
        for place, value in found.items()
        if place.partition(".")[2] not in tables.get(place.partition(".")[0], {})
    ]


def places(config: Path) -> list[str]:
    """For a run's own config.toml, overrides with where that run is now; otherwise none."""
    run = Path(os.path.abspath(config)).parent
    if config.name != CONFIG or not (run / "checkpoints").is_dir():
        return []
    found = {"run.dir": run.parent, "run.name": run.name}
    if (own := own_tokenizer(run)).exists():
        found["data.tokenizer"] = own
    return [f"{place}={to_toml(str(path))}" for place, path in found.items()]


def configuration_of(run: Path, trained: Config, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run was trained with, adapted to where its folder is now.

    Args:
        overrides: of settings that do not affect what the model has learned: those that a resumed
            run may change, train.batch, [sleep], and for text data.windows.
    Raises:
        UserError: an override is refused.
    """
    changed = override(trained, overrides)
    others = {"train.batch"} | ({"data.windows"} if trained.data.task == "text" else set())
    for place, setting, old, new in differences(trained, changed):
        free = setting.rule.changes or place in others or place.startswith("sleep.")
        if not free:
            raise UserError(
                f"{place} = {new!r}: {run} was trained with {old!r}; only settings that a resumed "
                f"run may change, {', '.join(sorted(others))} and those of [sleep] can be set here"
            )
    if not uses_tokenizer(trained):
        return changed
    own = own_tokenizer(run)
    if changed.data.tokenizer not in (trained.data.tokenizer, str(own)):
        raise UserError(f"data.tokenizer: {run} holds its own, {own.name}: leave it out")
    changed.data.tokenizer = str(own)
    return changed


def check_tokenizer(config: Config) -> None:
    """UserError if a run's folder lacks its tokenizer. config: from `configuration_of`."""
    own = Path(config.data.tokenizer)
    if uses_tokenizer(config) and not own.exists():
        fix = "copy the whole folder of the run, or put the tokenizer it was trained with there"
        raise UserError(f"{own}: missing; {fix}")


def check_data(config: Config, *, training: bool) -> None:
    """UserError if a run's data are not where its configuration says.

    Data on an object store are looked up only when they are opened.

    Args:
        training: also check the training data and data.tokenizer, not only the held-out data.
    """
    data, needed = config.data, list[tuple[str, str]]()
    if training and uses_tokenizer(config):
        needed.append(("data.tokenizer", data.tokenizer))
    if training and data.task == "text":
        needed += [(f"data.train[{i}].path", corpus.path) for i, corpus in enumerate(data.train)]
    if data.task == "text":
        needed += data.heldout_paths().items()
    if data.task == "stories" and config.stories.path:
        needed.append(("stories.path", config.stories.path))
    if data.task == "questions":
        if training or not config.questions.heldout:
            needed.append(("questions.path", config.questions.path))
        if config.questions.heldout:
            needed.append(("questions.heldout", config.questions.heldout))
    for place, path in needed:
        if not is_remote(path) and not Path(path).exists():
            where = "" if os.path.isabs(path) else f" in {Path.cwd()}"
            setting, is_listed, _ = place.partition("[")
            name = 'name="NAME", ' if setting == "data.heldout_sets" else ""
            more = ", ..." * any(other.startswith(f"{setting}[1]") for other, _ in needed)
            fix = f'{setting}=[{{{name}path="PATH"}}{more}]' if is_listed else f"{place}=PATH"
            raise refused(place, path, f"does not exist{where}; set its path: {fix}")
