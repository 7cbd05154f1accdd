"""Loads a model from a run, one of its checkpoints, or an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from parallel import mesh
from pretrain.checkpoint import open_checkpoint
from pretrain.config.run_folder import configuration_of
from pretrain.config.schema import Config
from pretrain.convert import qwen3_5
from pretrain.convert.folder import DTYPE_OF, TensorFolder
from pretrain.convert.names import packed_tensors
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
    mesh.initialize(alone=True)
    dtype = DTYPE_OF[precision]
    if not (folder / qwen3_5.CONFIG).exists():
        checkpoint, config = open_checkpoint(folder, overrides)
        model = SleepLM(config.model, config.sleep).to(dtype)
        checkpoint.load_weights(model)
        return model, config
    config = configuration_of(folder, qwen3_5.from_json(folder), overrides)
    model = SleepLM(config.model, config.sleep).to(dtype)
    parameters = dict(model.named_parameters())
    names = (part.name for packed in packed_tensors(config.model) for part in packed.parts)
    with TensorFolder(folder) as tensors, torch.no_grad():
        for name, value in zip(names, qwen3_5.weights(tensors, config), strict=True):
            parameters.pop(name).copy_(value)
    assert not parameters, parameters.keys()
    return model, config
