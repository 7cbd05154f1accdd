"""Reads a checkpoint into any layout of ranks, whichever layout wrote it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parallel import watchdog
from parallel.layers import share, split_dim
from parallel.slices import Piece, Slice, all_finite, assemble
from pretrain.checkpoint.folder import checkpoint_dir, pointed_at, steps
from pretrain.checkpoint.index import (
    CONFIG,
    INDEX,
    STATE,
    Deleted,
    Slices,
    Unreadable,
    read_file,
    read_index,
    verify,
)
from pretrain.config.load import load
from pretrain.config.run_folder import configuration_of
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened
from pretrain.files import strays
from pretrain.model.sleep import SleepLM

TRIES = 3  # attempts to read a checkpoint before a running run deletes it


@dataclass
class Checkpoint:
    """An open checkpoint; its tensors are loaded on demand."""

    folder: Path
    step: int
    state: dict[str, Any]
    config: Config
    slices: Slices

    @staticmethod
    def open(folder: Path, checked: bool = False) -> Checkpoint:
        """Verifies a checkpoint, unless that has just been done (`checked`), and reads all but the
        tensors.
        """
        try:
            slices = read_index(folder)[1] if checked else verify(folder)
            state = json.loads(read_file(folder / STATE))
        except UserError:
            if not os.path.lexists(folder):
                raise Deleted(folder) from None
            raise
        try:
            config = load(folder / CONFIG)
        except UserError as error:  # the file is intact, but cannot be parsed
            raise Unreadable(
                f"{error}; another version of Hypnos wrote it: use that version, "
                "or begin another run with another run.name"
            ) from None
        return Checkpoint(folder, state["step"], state, config, slices)

    @staticmethod
    def of(run: Path, step: int) -> Checkpoint:
        """Opens one of a run's checkpoints."""
        checkpoint = Checkpoint.open(checkpoint_dir(run, step))
        if checkpoint.step != step:
            raise Unreadable(
                f"{checkpoint.folder}: holds the checkpoint of step {checkpoint.step}; "
                "rename the folder to match"
            )
        return checkpoint

    @property
    def begins_run(self) -> bool:
        """Whether a run starts from it: its weights were imported, or are another run's."""
        return not self.slices["state"]

    def beginning(self, moments: bool) -> Checkpoint:
        """Its weights, and its moments if asked for, as the start of another run."""
        steps = self.state["optimizer"]["adam_steps"]
        counters = {"adam_steps": steps, "skipped": 0, "in_a_row": 0}
        kept = {"model", "optimizer"} if moments else {"model"}
        slices = {kind: named if kind in kept else {} for kind, named in self.slices.items()}
        return replace(self, step=0, state={"optimizer": counters}, slices=slices)

    @property
    def run(self) -> Path:
        """The folder of the run that it belongs to."""
        return Path(os.path.abspath(self.folder)).parents[1]

    def strays(self) -> list[str]:
        """A line about each file in the folder that does not belong to the checkpoint."""
        named = [by_file for kind in self.slices.values() for by_file in kind.values()]
        files = {file for by_file in named for file in by_file}
        return strays(self.folder, {INDEX, STATE, CONFIG, *files})

    def names(self, kind: str) -> list[str]:
        """The names of the tensors of one of `index.KINDS`."""
        return list(self.slices[kind])

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor. UserError if it is missing."""
        return next(iter(self._by_file(kind, name).values())).shape

    def tensor(
        self,
        kind: str,
        name: str,
        partial: bool = False,
        shape: tuple[int, ...] | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        """One tensor, whole, on the CPU.

        Args:
            partial: elements that no rank has written are 0; otherwise all must have been written.
            shape: the expected shape.
            into: of that shape and of any dtype; is filled and returned.
        Raises:
            UserError: it is missing, incomplete or of another shape; names file and tensor.
        """
        by_file, found = self._by_file(kind, name), self.shape(kind, name)
        where = f"{self.folder / INDEX}: tensor {name} of {kind}"
        if shape not in (None, found):
            raise UserError(f"{where} is {list(found)} instead of {list(shape or ())}")
        with ExitStack() as opened:
            pieces = []
            for file, part in by_file.items():
                path = self.folder / file
                try:
                    tensors = opened.enter_context(safe_open(path, framework="pt"))
                    pieces.append(Piece(part, tensors.get_tensor(name)))
                except (SafetensorError, OSError) as error:
                    if not os.path.lexists(self.folder):
                        raise Deleted(self.folder) from None
                    why = shortened(str(error))
                    raise UserError(f"{path}: tensor {name} cannot be read: {why}") from None
            try:
                return assemble(found, pieces, partial, into)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from None

    def _by_file(self, kind: str, name: str) -> dict[str, Slice]:
        by_file = self.slices[kind].get(name)
        if not by_file:
            raise UserError(f"{self.folder / INDEX}: tensor {name} is missing from {kind}")
        return by_file

    @torch.no_grad()
    def load_weights(self, model: SleepLM) -> None:
        """Fills this rank's part of a model of the same shape."""
        parameters, file = dict(model.named_parameters()), self.folder / INDEX
        for name in self.names("model"):
            if name not in parameters and not model.is_elsewhere(name):
                raise UserError(f"{file}: tensor {name} does not belong to the model")
        for name, parameter in parameters.items():
            watchdog.part("reading", name)
            value = share(self.tensor("model", name), split_dim(parameter))
            if value.shape != parameter.shape:
                shapes = f"{list(value.shape)}, but the model's is {list(parameter.shape)}"
                raise UserError(f"{file}: tensor {name} is {shapes}")
            if not all_finite(value):
                what = f"tensor {name} of model is not finite; no run can resume from it"
                raise UserError(f"{file}: {what}")
            parameter.copy_(value)


def resume_candidates(run: Path, say: Callable[[str], None]) -> list[int]:
    """The steps that a run may resume from, newest first: those up to the one that `latest` names.

    Args:
        say: receives one line if something is wrong with `latest`.
    """
    found = steps(run)[::-1]
    try:
        named = pointed_at(run)
    except UserError as error:
        say(f"{error}; using the newest that exists")
        return found
    if named is None:
        return found
    before = [step for step in found if step <= named]
    if named not in found:
        missing = f"{checkpoint_dir(run, named)}: missing, but `latest` names it"
        instead = "trying the checkpoint before it" if before else "using the newest that exists"
        say(f"{missing}; {instead}")
    return before or found


def latest_valid(
    run: Path,
    say: Callable[[str], None],
    fits: Callable[[Checkpoint], bool] = lambda checkpoint: True,
) -> Checkpoint | None:
    """The checkpoint that `latest` names, or the newest intact one before it; None: there is none.

    Args:
        say: receives a line for each damaged checkpoint that is skipped, and for each file in the
            chosen one's folder that does not belong to it.
        fits: which intact ones are acceptable; None is returned if none is.
    Raises:
        UserError: there are checkpoints, but all are damaged. Unreadable: one cannot be read, but
            may be intact. Deleted: one was deleted meanwhile, so there may be newer ones.
    """
    candidates = resume_candidates(run, say)
    intact = False
    for step in candidates:
        try:
            checkpoint = Checkpoint.of(run, step)
        except (Unreadable, Deleted):
            raise
        except UserError as error:
            say(f"{error}; trying the checkpoint before it")
            continue
        intact = True
        if fits(checkpoint):
            for line in checkpoint.strays():
                say(line)
            return checkpoint
    if candidates and not intact:
        raise UserError(
            f"{run / 'checkpoints'}: every checkpoint is damaged; restore one from an intact "
            "copy, or begin another run with another run.name"
        )
    return None


def open_checkpoint(folder: str | Path, overrides: Sequence[str] = ()) -> tuple[Checkpoint, Config]:
    """A run's newest checkpoint, or the checkpoint `folder`, with its configuration adapted to
    where the run is now.

    Args:
        overrides: see `pretrain.config.run_folder.configuration_of`.
    """
    folder = Path(folder)
    if (folder / INDEX).exists():
        checkpoint: Checkpoint | None = Checkpoint.open(folder)
    else:
        checkpoint = _newest(folder)
    if checkpoint is None:
        found = (
            "neither a checkpoint nor a run that has one" if folder.exists() else "does not exist"
        )
        raise UserError(f"{folder}: {found}; `hypnos train` prints where it writes its run")
    return checkpoint, configuration_of(checkpoint.run, checkpoint.config, overrides)


def _newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that may be running: if it deletes one, there is a newer
    one.
    """

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    for _ in range(TRIES - 1):
        with suppress(Deleted):
            return latest_valid(run, say)
    return latest_valid(run, say)
