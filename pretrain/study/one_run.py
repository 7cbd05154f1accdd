"""One run of a study: its settings, and the record that is kept when it is done.

DIR/done/NAME.json    its evaluations, its curve, a hash of settings and data, and where, when and
                      at which commit it was trained

Nothing else of a finished run is read again: a study continues from these files, wherever its runs
were trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.checkpoint.folder import steps
from pretrain.config.fields import differences, shown
from pretrain.config.load import load, to_toml
from pretrain.config.run_folder import CONFIG, load_run
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.files import parse_json, sha256, write_atomically
from pretrain.origin import Origin, origin_of
from pretrain.run.facts import contents
from pretrain.study.curve import Curve
from pretrain.tasks import make_task

# settings that may change on resume, but affect a run's result
DECISIVE = (
    "train.steps", "optimizer.decay", "optimizer.decay_shape", "train.eval_batches",
    "questions.group",
)  # fmt: skip
FILES = ("questions.path", "questions.heldout", "stories.path")  # their content does


@dataclass(frozen=True)
class Run:
    """One run of a study."""

    name: str
    config: Path
    overrides: tuple[str, ...] = ()
    passes: tuple[int, ...] = (1,)  # the N at which it is evaluated after training
    ranks: int = 1  # if more than one, by `hypnos launch local`
    trunk: str = ""  # the run that it branches off, if any
    branch: int = 0  # after so many steps of the trunk

    def settings(self) -> Config:
        """Its configuration, as `hypnos train` reads it. UserError names the file or the override
        that is wrong.
        """
        return load_run(self.config, self.overrides)


@dataclass(frozen=True)
class Left:
    """The record of a finished run."""

    settings: str  # `fingerprint` of those it was trained with, and of its data
    evaluations: list[dict[str, Any]]  # of `pretrain.evaluate`, one for each N; loss nan: diverged
    origin: Origin  # where, when and at which commit it was trained
    curve: Curve


def finish(folder: Path, run: Run, found: list[dict[str, Any]]) -> None:
    """Writes the record of a finished run, with its evaluations, one dict for each N."""
    trained = folder / "runs" / run.name
    left = Left(fingerprint(run), found, origin_of(trained), Curve.of(trained))
    path = _path(folder, run)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(asdict(left)) + "\n")


def left_by(folder: Path, run: Run) -> Left:
    """The record of a finished run. UserError names a file that is not one."""
    path = _path(folder, run)
    try:
        left = parse_json(path.read_text(encoding="utf-8"))
        for found in left["evaluations"]:
            found["loss"] = math.nan if found["loss"] is None else found["loss"]  # not in JSON
        return Left(**left | {"curve": Curve(**left["curve"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        fix = f"remove it and {folder / 'runs' / run.name}, and the run is made again"
        raise UserError(f"{path}: not a record of a finished run ({error}); {fix}") from None


def all_done(folder: Path) -> set[str]:
    """Names of all runs that are done."""
    return {path.stem for path in (folder / "done").glob("*.json")}


def is_done(folder: Path, run: Run) -> bool:
    """Whether a run is trained, and evaluated at each N; if only its record is here and its weights
    are elsewhere, evaluation at its own N suffices.

    UserError: it was trained with other settings or data, or data cannot be read.
    """
    tested = _tested(folder, run)
    if tested is None or not _own(run) <= tested:
        return False
    return {*run.passes} <= tested or not steps(folder / "runs" / run.name)


def has_results(folder: Path, run: Run) -> bool:
    """Whether a run is trained, and evaluated at its own N (if that is requested). UserError: as
    `is_done`.
    """
    tested = _tested(folder, run)
    return tested is not None and _own(run) <= tested


def _own(run: Run) -> set[int]:
    """The N of a run's main results: its own, if it is evaluated at it."""
    return {run.settings().sleep.passes} & {*run.passes} or {*run.passes}


def _tested(folder: Path, run: Run) -> set[int] | None:
    """Each N that a trained run was evaluated at; None: it is not trained. UserError: as
    `is_done`.
    """
    path = _path(folder, run)
    if not path.exists():
        return None
    left = left_by(folder, run)
    if left.settings != fingerprint(run):
        raise UserError(
            f"{path} was made with other settings or data than the study has now: remove it and "
            f"{folder / 'runs' / run.name}, or choose another folder with --out"
        )
    return {found["passes"] for found in left.evaluations}


def check_begun(folder: Path, run: Run) -> None:
    """UserError if a run was started, by this study or an array, with settings that affect its
    result and differ from the study's now. Layout and checkpoint intervals do not matter, nor where
    files are.
    """
    path = folder / "runs" / run.name / CONFIG
    if not path.exists():
        return
    for place, setting, asked, had in differences(run.settings(), load(path)):
        decides = not setting.rule.changes or place in DECISIVE
        decides |= place in FILES and not _is_same_file(asked, had)
        was_resolved = place == "model.vocab_size" and not asked
        if decides and not was_resolved:
            fix = "give it here too, remove that folder, or choose another with --out"
            now = f"the study now has {shown(asked)}"
            raise UserError(f"{path.parent} was begun with {place} = {shown(had)}; {now}: {fix}")


def _is_same_file(asked: str, had: str) -> bool:
    """Whether two paths lead to the same content. A file that is gone has been moved."""
    if not (asked and had):
        return False
    return not Path(had).exists() or sha256(Path(asked)) == sha256(Path(had))


def fingerprint(run: Run) -> str:
    """A hash of the settings that differ from their defaults, and of the data, wherever they are.

    So results stay valid when a new setting is added whose default is off.
    """
    config, usual = run.settings(), Config()
    data = [read() for _, read in contents(config)]
    if config.data.task != "text":
        data.append(make_task(config, config.sleep.window).fingerprint)
    config.run = replace(config.run, name=usual.run.name, dir=usual.run.dir, wandb=usual.run.wandb)
    texts = [replace(corpus, path="") for corpus in config.data.train]
    sets = [replace(each, path="") for each in config.data.heldout_sets]
    config.questions = replace(config.questions, path="", heldout="")
    config.data = replace(config.data, tokenizer="", train=texts, heldout="", heldout_sets=sets)
    chosen = [f"{place}={to_toml(mine)}" for place, _, mine, _ in differences(config, usual)]
    return hashlib.sha256("\n".join([*chosen, *data]).encode()).hexdigest()


def _path(folder: Path, run: Run) -> Path:
    return folder / "done" / f"{run.name}.json"
