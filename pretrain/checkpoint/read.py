"""Reading a checkpoint: any layout of ranks from any other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parallel import mesh
from parallel.layers import share, split_dim
from parallel.slices import Piece, Slice, assemble
from pretrain.checkpoint import index
from pretrain.checkpoint.folder import checkpoint_dir, pointed_at, steps
from pretrain.checkpoint.index import CONFIG, INDEX, STATE, Slices, Unreadable, verify
from pretrain.config.load import load
from pretrain.config.schema import Config
from pretrain.errors import UserError, shortened
from pretrain.json_text import counted
from pretrain.model.flops import parameters
from pretrain.model.hybrid import HybridLM


@dataclass
class Checkpoint:
    """A checkpoint that can be read: its tensors are loaded when asked for."""

    folder: Path
    step: int
    state: dict[str, Any]
    config: Config
    slices: Slices

    @staticmethod
    def open(folder: Path, checked: bool = False) -> Checkpoint:
        """Verifies a checkpoint (unless that has just been done) and reads what is small of it."""
        slices = index.read(folder)[1] if checked else verify(folder)
        state = index.read_json(folder / STATE)
        try:
            _check_state(state)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{folder / STATE}: whole, but not as Hypnos writes it") from None
        return Checkpoint(folder, state["step"], state, load(folder / CONFIG), slices)

    @staticmethod
    def of(run: Path, step: int) -> Checkpoint:
        """Opens one of a run's checkpoints."""
        checkpoint = Checkpoint.open(checkpoint_dir(run, step))
        if checkpoint.step != step:
            raise UserError(
                f"{checkpoint.folder / STATE}: is of step {checkpoint.step}; give the folder its own name"
            )
        return checkpoint

    def names(self, kind: str) -> list[str]:
        """The tensors of one of `index.KINDS`."""
        return list(self.slices[kind])

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Of a whole tensor. UserError if it is not there."""
        return next(iter(self._parts(kind, name).values())).shape

    def tensor(
        self, kind: str, name: str, partial: bool = False, shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """One tensor, whole, on the CPU.

        Args:
            partial: elements that no rank has written are 0; otherwise there must not be any.
            shape: what it must have.
        Raises:
            UserError: it is not there, not whole or of another shape; names file and tensor.
        """
        parts, found = self._parts(kind, name), self.shape(kind, name)
        if shape not in (None, found):
            what = f"tensor {name} of {kind} is {list(found)} instead of {list(shape or ())}"
            raise UserError(f"{self.folder / INDEX}: {what}")
        with ExitStack() as opened:
            pieces = []
            for file, where in parts.items():
                try:
                    values = opened.enter_context(
                        safe_open(self.folder / file, framework="pt")
                    ).get_tensor(name)
                except (SafetensorError, OSError) as error:
                    why = shortened(str(error))
                    raise UserError(
                        f"{self.folder / file}: tensor {name} cannot be read: {why}"
                    ) from None
                pieces.append(Piece(where, values))
            try:
                return assemble(found, pieces, partial)
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"{self.folder / INDEX}: tensor {name} of {kind}: {error}"
                ) from None

    def _parts(self, kind: str, name: str) -> dict[str, Slice]:
        parts = self.slices[kind].get(name)
        if not parts:
            raise UserError(f"{self.folder / INDEX}: tensor {name} is missing from {kind}")
        return parts

    @torch.no_grad()
    def load_weights(self, model: HybridLM) -> None:
        """Fills this rank's part of a model of the same shape."""
        parameters, file = dict(model.named_parameters()), self.folder / INDEX
        unknown = [
            name
            for name in self.names("model")
            if name not in parameters and not model.is_elsewhere(name)
        ]
        if unknown:
            raise UserError(f"{file}: tensor {min(unknown)} is none of the model's")
        for name, parameter in parameters.items():
            value = share(self.tensor("model", name), split_dim(parameter))
            if value.shape != parameter.shape:
                shapes = f"{list(value.shape)}, but the model's is {list(parameter.shape)}"
                raise UserError(f"{file}: tensor {name} is {shapes}")
            if value.dtype != torch.float32:
                raise UserError(
                    f"{file}: tensor {name} is of {value.dtype} instead of torch.float32"
                )
            if not value.isfinite().all():
                raise UserError(
                    f"{file}: tensor {name} of model is not finite; no run can go on from it"
                )
            parameter.copy_(value)


def _check_state(state: dict[str, Any]) -> None:
    """KeyError, TypeError or ValueError if a counter is missing or is none; what is in "data" is
    the source's.
    """
    for number in (
        state["step"], state["tokens"], *(state["optimizer"][n] for n in ("adam_steps", "skipped", "in_a_row")),
        *(state["rollbacks"][n] for n in ("total", "here")),
    ):  # fmt: skip
        counted(number)
    if not isinstance(state["evaluated"], bool) or not isinstance(state["data"], dict):
        raise TypeError


def resume_candidates(run: Path, say: Callable[[str], None]) -> list[int]:
    """The steps that a run may go on from, the newest first: those up to the one that `latest`
    names.

    Args:
        say: told, in one line, what is wrong with `latest`.
    """
    found = steps(run)[::-1]
    try:
        named = pointed_at(run)
    except UserError as error:
        say(f"{error}; taking the newest that there is")
        return found
    if named is None:
        return found
    if named not in found:
        say(
            f"{checkpoint_dir(run, named)}: missing, and `latest` names it; trying the checkpoint before it"
        )
    return [step for step in found if step <= named] or found


def newest(
    run: Path,
    say: Callable[[str], None],
    fits: Callable[[Checkpoint], bool] = lambda checkpoint: True,
) -> Checkpoint | None:
    """The checkpoint that `latest` names, or the newest intact one before it; None where there is
    none at all.

    Args:
        say: told, in one line each, about damaged checkpoints that are passed over.
        fits: which intact ones will do; None is returned where none does.
    Raises:
        UserError: there are checkpoints, and all are damaged; or one that would do may be whole,
            but cannot be read: another version has written it, say.
    """
    candidates = resume_candidates(run, say)
    intact = False
    for step in candidates:
        try:
            checkpoint = Checkpoint.of(run, step)
        except Unreadable:
            raise
        except UserError as error:
            say(f"{error}; trying the checkpoint before it")
            continue
        intact = True
        if fits(checkpoint):
            return checkpoint
    if candidates and not intact:
        raise UserError(
            f"{run / 'checkpoints'}: every checkpoint is damaged; delete them to train from the beginning"
        )
    return None


def load_model(folder: str | Path) -> tuple[HybridLM, Config]:
    """The model of a run's newest checkpoint, or of the checkpoint `folder`: fp32, on the CPU.

    In one process, also where a launcher's variables are set.
    """
    folder = Path(folder)
    mesh.initialize(alone=True)
    if (folder / INDEX).exists():
        checkpoint: Checkpoint | None = Checkpoint.open(folder)
    else:
        checkpoint = newest(folder, lambda line: print(line, file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{folder}: neither a checkpoint nor a run that has one")
    weights = sum(path.stat().st_size for path in checkpoint.folder.glob("model.*"))
    if parameters(checkpoint.config.model) * torch.float32.itemsize > weights:
        what = f"[model] has more parameters than there are in {weights} bytes of weights"
        raise UserError(f"{checkpoint.folder / CONFIG}: {what}")
    model = HybridLM(checkpoint.config.model, checkpoint.config.sleep)
    checkpoint.load_weights(model)
    return model, checkpoint.config
