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
from parallel.slices import Piece, assemble
from pretrain.checkpoint import index
from pretrain.checkpoint.folder import place, pointed_at, steps
from pretrain.checkpoint.index import CONFIG, INDEX, STATE, OtherFormat, Slices, verify
from pretrain.config import Config
from pretrain.errors import UserError
from pretrain.model import HybridLM
from pretrain.settings import parse


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
        if not checked:
            verify(folder)
        _, slices = index.read(folder)
        state = index.read_json(folder / STATE)
        if not isinstance(state.get("step"), int):
            raise UserError(f"{folder / STATE}: damaged, no step")
        config = parse((folder / CONFIG).read_text(encoding="utf-8"), str(folder / CONFIG))
        return Checkpoint(folder, state["step"], state, config, slices)

    def names(self, kind: str) -> list[str]:
        """The tensors of one of `index.KINDS`."""
        return list(self.slices[kind])

    def tensor(self, kind: str, name: str, blank: float | None = None) -> Tensor:
        """One tensor, whole, on the CPU.

        Args:
            blank: the value of elements that no rank has written; None: there are none.
        Raises:
            UserError: it is not there, or not whole; names file and tensor.
        """
        parts = self.slices[kind].get(name)
        if not parts:
            raise UserError(f"{self.folder / INDEX}: tensor {name} is missing from {kind}")
        with ExitStack() as opened:
            pieces = []
            for file, where in parts.items():
                try:
                    values = opened.enter_context(safe_open(self.folder / file, framework="pt")).get_tensor(name)
                except (SafetensorError, OSError) as error:
                    raise UserError(f"{self.folder / file}: tensor {name} cannot be read: {error}") from None
                pieces.append(Piece(where, values))
            try:
                return assemble(pieces[0].where.shape, pieces, blank)
            except (ValueError, RuntimeError) as error:
                raise UserError(f"{self.folder / INDEX}: tensor {name} of {kind}: {error}") from None

    @torch.no_grad()
    def load_weights(self, model: HybridLM) -> None:
        """Fills this rank's part of a model of the same shape."""
        parameters, file = dict(model.named_parameters()), self.folder / INDEX
        unknown = [name for name in self.names("model") if name not in parameters and not model.is_elsewhere(name)]
        if unknown:
            raise UserError(f"{file}: tensor {min(unknown)} is none of the model's")
        for name, parameter in parameters.items():
            value = share(self.tensor("model", name), split_dim(parameter))
            if value.shape != parameter.shape:
                shapes = f"{list(value.shape)}, but the model's is {list(parameter.shape)}"
                raise UserError(f"{file}: tensor {name} is {shapes}")
            parameter.copy_(value)


def newest(
    run: Path, say: Callable[[str], None], fits: Callable[[Checkpoint], bool] = lambda checkpoint: True
) -> Checkpoint | None:
    """The checkpoint that `latest` names, or the newest intact one before it; None where there is none at all.

    Args:
        say: told, in one line each, about damaged checkpoints that are passed over.
        fits: which intact ones will do; None is returned where none does.
    Raises:
        UserError: there are checkpoints, and all are damaged; or one that would do is of another version's format.
    """
    candidates, named = steps(run), pointed_at(run)
    if named is not None:
        candidates = [step for step in candidates if step <= named] or candidates
    intact = False
    for step in reversed(candidates):
        try:
            checkpoint = Checkpoint.open(place(run, step))
        except OtherFormat:
            raise
        except UserError as error:
            say(f"{error}; trying the checkpoint before it")
            continue
        intact = True
        if fits(checkpoint):
            return checkpoint
    if candidates and not intact:
        raise UserError(f"{run / 'checkpoints'}: every checkpoint is damaged; delete them to train from the beginning")
    return None


def load_model(folder: str | Path) -> tuple[HybridLM, Config]:
    """The model of a run's newest checkpoint, or of the checkpoint that `folder` is: fp32, on the CPU."""
    folder = Path(folder)
    mesh.initialize()
    if (folder / INDEX).exists():
        checkpoint: Checkpoint | None = Checkpoint.open(folder)
    else:
        checkpoint = newest(folder, lambda line: print(line, file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{folder}: neither a checkpoint nor a run that has one")
    model = HybridLM(checkpoint.config.model, checkpoint.config.sleep)
    checkpoint.load_weights(model)
    return model, checkpoint.config
