"""Loads a model from a run, one of its checkpoints, or an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from parallel import mesh
from parallel.slices import all_finite
from pretrain.checkpoint import load_model
from pretrain.config.run_folder import configuration_of
from pretrain.config.schema import Config
from pretrain.convert import qwen3_5
from pretrain.convert.folder import DTYPE_OF, TensorFolder
from pretrain.convert.names import packed_tensors
from pretrain.errors import UserError
from pretrain.model.sleep import SleepLM


def open_model(
    folder: Path, overrides: Sequence[str] = (), precision: str = "fp32"
) -> tuple[SleepLM, Config]:
    """The model of a run's newest checkpoint, of the checkpoint `folder`, or of an export, on the
    CPU. An export's configuration has its sizes, its sleep settings and its tokenizer.

    Runs in a single process, even if a launcher's variables are set.

    Args:
        overrides: see `pretrain.config.run_folder.configuration_of`.
        precision: of the weights, fp32 or bf16, whichever was trained.
    """
    dtype = DTYPE_OF[precision]
    if not (folder / qwen3_5.CONFIG).exists():
        return load_model(folder, overrides, dtype)
    mesh.initialize(alone=True)
    config = configuration_of(folder, qwen3_5.from_json(folder), overrides)
    model = SleepLM(config.model, config.sleep).to(dtype)
    load_weights(folder, model)
    return model, config


@torch.no_grad()
def load_weights(folder: Path, model: SleepLM) -> None:
    """Fills a model that is whole on this rank from an export's safetensors, one by one."""
    parameters = dict(model.named_parameters())
    with TensorFolder(folder) as tensors:
        for packed in packed_tensors(model.config):
            whole = tensors.get(packed.name, packed.shape)
            if not all_finite(whole):
                raise UserError(f"{folder}: tensor {packed.name} is not finite")
            for part, value in zip(packed.parts, packed.unpack(whole), strict=True):
                parameters.pop(part.name).copy_(value)
    assert not parameters, parameters.keys()
