"""One run of a study: its settings, and what it has left when it is done.

DIR/runs/NAME/evaluation.json    its evaluations, a hash of the settings behind them, and where,
                                 when and of which commit
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.config.fields import values
from pretrain.config.load import load, to_toml
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.files import parse_json, write_atomically
from pretrain.origin import origin


@dataclass(frozen=True)
class Run:
    """One run of a study."""

    name: str
    config: Path
    overrides: tuple[str, ...] = ()
    passes: tuple[int, ...] = (1,)  # N that it is evaluated at, when it is trained
    ranks: int = 1  # by `hypnos launch local`, if more than one
    trunk: str = ""  # the run that it branches off, if it does
    branch: int = 0  # after so many of that run's steps

    def settings(self) -> Config:
        """Its configuration. UserError names the file or the override that is wrong."""
        return load(self.config, self.overrides)


def finish(folder: Path, run: Run, found: Sequence[dict[str, Any]]) -> None:
    """Writes its evaluations, one dict for each N: it is done."""
    done = {"settings": fingerprint(run), "evaluations": found, "origin": origin()}
    write_atomically(_path(folder, run), json.dumps(done) + "\n")


def evaluations(folder: Path, run: Run) -> list[dict[str, Any]]:
    """What a finished run's evaluation gave, one dict for each N (`pretrain.evaluate`)."""
    text = _path(folder, run).read_text(encoding="utf-8")
    found: list[dict[str, Any]] = parse_json(text)["evaluations"]
    return found


def origin_of(folder: Path, run: Run) -> dict[str, str]:
    """Where a finished run was evaluated: "machine", "commit", "date"."""
    found: dict[str, str] = parse_json(_path(folder, run).read_text(encoding="utf-8"))["origin"]
    return found


def is_done(folder: Path, run: Run) -> bool:
    """Whether a run is trained, and evaluated at each N. UserError: it was under other settings."""
    path = _path(folder, run)
    if not path.exists():
        return False
    if parse_json(path.read_text(encoding="utf-8")).get("settings") != fingerprint(run):
        raise UserError(
            f"{path} comes from other settings than the study has now: remove {path.parent}, or "
            "choose another folder with --out"
        )
    return set(run.passes) <= {found["passes"] for found in evaluations(folder, run)}


def fingerprint(run: Run) -> str:
    """Of the settings that differ from their defaults, wherever the run is.

    So results outlive a setting that is new, and off.
    """
    config, usual = run.settings(), Config()
    config.run = replace(config.run, name=usual.run.name, dir=usual.run.dir)
    texts = [replace(corpus, path="") for corpus in config.data.train]
    config.data = replace(config.data, tokenizer="", train=texts, heldout="")
    pairs = zip(values(config), values(usual), strict=True)
    chosen = [f"{place}={to_toml(mine)}" for (place, _, mine), (_, _, its) in pairs if mine != its]
    return hashlib.sha256("\n".join(chosen).encode()).hexdigest()


def _path(folder: Path, run: Run) -> Path:
    return folder / "runs" / run.name / "evaluation.json"
