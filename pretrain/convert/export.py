"""Exports a checkpoint as a Hugging Face folder that AutoModelForCausalLM loads without our code.

model.safetensors     or numbered files and their index      config.json  sizes; key "hypnos"
generation_config.json                                       README.md    model card
tokenizer.json, tokenizer_config.json                        the fast tokenizer
tokenizer.model                                              sentencepiece's, which ours reads
                                                             (another model's: its own files)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallel.slices import all_finite
from pretrain.checkpoint import Checkpoint, open_checkpoint
from pretrain.config.checks import uses_tokenizer
from pretrain.config.run_folder import TOKENIZER, check_tokenizer
from pretrain.config.schema import Config
from pretrain.convert import card, engines, qwen3_5
from pretrain.convert.folder import DTYPE_OF, Spec, new_folder, write_json, write_shards
from pretrain.convert.names import OurTensor, packed_tensors
from pretrain.errors import UserError
from tokenizer import foreign
from tokenizer.encode import Tokenizer
from tokenizer.export import export as export_tokenizer


class Exported(NamedTuple):
    """What has been exported."""

    step: int  # of the checkpoint, since the newest may be damaged
    writes: bool  # `hypnos generate` accepts it: a model of text, or of a task in text
    lines: list[str]  # on the tokenizers' comparison, and on engines that cannot read the shape


def export(run: Path, out: Path, precision: str = "fp32") -> Exported:
    """Writes a run's newest checkpoint, or the checkpoint `run`, as a Hugging Face folder.

    Memory holds about one tensor at a time. The folder appears atomically.

    Args:
        precision: of all weights, one of `DTYPE_OF`.
    Raises:
        UserError: the model cannot be exported, or `out` exists.
    """
    checkpoint, config = open_checkpoint(run)
    check_tokenizer(config)
    engines.check_hf(config)
    with new_folder(out) as folder:
        said = write(checkpoint, config, folder, precision)
        (folder / "README.md").write_text(card.text(checkpoint, config, out.name), encoding="utf-8")
    not_read = {name: why for name, why in engines.reasons(config).items() if why}
    lines = [said, *(f"{name} cannot read it: {why}" for name, why in not_read.items())]
    return Exported(checkpoint.step, uses_tokenizer(config), lines)


def write(checkpoint: Checkpoint, config: Config, folder: Path, precision: str) -> str:
    """Writes everything but the model card to a folder; returns a line about the tokenizer."""
    dtype = DTYPE_OF[precision]
    specs = [Spec(packed.name, packed.shape, dtype) for packed in packed_tensors(config.model)]
    write_shards(folder, specs, _tensors(checkpoint, config, dtype))
    special, said = _write_tokenizer(config, folder)
    named = {"dtype": str(dtype).removeprefix("torch.")} | special
    write_json(folder / qwen3_5.CONFIG, qwen3_5.to_json(config, checkpoint.step) | named)
    write_json(folder / "generation_config.json", special | {"use_cache": True})
    return said


def _tensors(checkpoint: Checkpoint, config: Config, dtype: torch.dtype) -> Iterator[Tensor]:
    """The export's tensors, one by one; each is released before the next is read."""

    def read(part: OurTensor, into: Tensor | None) -> Tensor:
        return checkpoint.tensor("model", part.name, shape=part.shape, into=into)

    for packed in packed_tensors(config.model):
        whole = packed.pack(read, dtype)
        if not all_finite(whole):
            where = f"{checkpoint.folder}: {packed.name}"
            raise UserError(f"{where} is not finite in {dtype}; export an earlier checkpoint")
        yield whole
        del whole


def _write_tokenizer(config: Config, folder: Path) -> tuple[dict[str, Any], str]:
    """Writes the run's tokenizer: ours in both formats, which are compared, another model's
    unchanged. Returns the special ids, and a line about the tokenizer.
    """
    special: dict[str, Any] = {"bos_token_id": None}
    if not uses_tokenizer(config):
        return special, f"no tokenizer: the task {config.data.task!r} has none"
    own = Path(config.data.tokenizer)
    tokenizer = Tokenizer.load(own)
    special |= {"eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    if foreign.is_foreign(own):
        return special, f"tokenizer: copied unchanged, {', '.join(foreign.copy(own, folder))}"
    shutil.copyfile(own, folder / TOKENIZER)
    report = export_tokenizer(tokenizer, folder)
    if not report.identical:
        raise UserError(f"{own}: the fast tokenizer encodes differently: {report}")
    return special, f"tokenizer: {report}"
