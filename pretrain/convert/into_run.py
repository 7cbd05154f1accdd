"""Imports a Hugging Face folder as a run at step 0, with its weights, that trains like any other.

Such a run has not computed anything yet, so everything in its configuration except the model's
shape may still be changed: by overrides here, and when training starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from parallel.slices import Slice
from pretrain.checkpoint.folder import draft_dir, make_draft, publish
from pretrain.checkpoint.index import describe, tensor_file
from pretrain.checkpoint.write import Part, write_common
from pretrain.config.checks import uses_tokenizer
from pretrain.config.load import dump, from_tables, override
from pretrain.config.run_folder import CONFIG, FOREIGN_TOKENIZER, TOKENIZER, copy_tokenizer
from pretrain.config.schema import Config
from pretrain.convert import qwen3_5, transformer
from pretrain.convert.folder import Spec, TensorFolder, new_folder, read_json, write_tensors
from pretrain.convert.names import packed_tensors
from pretrain.errors import UserError, shortened
from pretrain.files import sync
from tokenizer import TokenizerError, foreign
from tokenizer.encode import Tokenizer
from tokenizer.hub import download_first

MINE = qwen3_5.MODEL_TYPE
STATE: dict[str, Any] = {
    "optimizer": {"adam_steps": 0, "skipped": 0, "in_a_row": 0},
    "data": {},
    "tokens": 0,
    "rollbacks": {"total": 0, "here": 0},
    "evaluated": False,
}


def import_folder(
    folder: Path, out: Path, overrides: Sequence[str] = (), delta_every: int | None = None
) -> list[str]:
    """Makes a run from a Qwen3.5 dense hybrid, or from a Llama, Mistral, Qwen2 or Qwen3 transformer
    into which delta-rule blocks are inserted.

    Memory holds about one tensor at a time. The middle half of the blocks is looped, unless the
    folder is an export of ours or an override says otherwise.

    Args:
        out: the run's folder, which must not exist yet.
        overrides: settings such as "sleep.passes=4"; in [model] only what the folder leaves open.
        delta_every: insert a delta-rule block for every so many blocks of a transformer.
    Returns:
        Lines about what was left out, and what remains to be set.
    Raises:
        UserError: the folder cannot be read, or held by our model; names the file and why.
    """
    path = folder / qwen3_5.CONFIG
    _check_folder(folder)
    theirs = read_json(path)
    _check_kind(theirs, path)
    qwen3_5.check_unquantized(theirs, path)
    source: ModuleType = qwen3_5
    if theirs.get("model_type") in transformer.MODEL_TYPES:
        source = transformer
        tables, defaults = transformer.tables(theirs, path, delta_every or transformer.DELTA_EVERY)
    else:
        tables, defaults = qwen3_5.tables(theirs, path), []
        if delta_every is not None:
            raise UserError(f"{path}: a hybrid has delta-rule blocks: leave out --delta-every")
    with TensorFolder(folder) as tensors:
        said = list[str]()
        if qwen3_5.has_own_head(tables, tensors):
            tables["model"]["tie_embeddings"] = False
            said.append(f"{path} ties the head to the embedding, but lm_head.weight differs: kept")
        config, tokenizer = _configuration(tables, path, out, [*defaults, *overrides])
        said += source.left_out(tensors, config)
        with new_folder(out) as run:
            _write(run, config, source.weights(tensors, config))
            return [*said, *_take_tokenizer(tokenizer, folder, run, config)]


def _check_folder(folder: Path) -> None:
    """UserError, with a hint, if it is obviously not a folder of safetensors."""
    given = folder
    if folder.is_dir() and not (folder / qwen3_5.CONFIG).exists():
        given = next(folder.glob("*.gguf"), folder)
    if given.suffix.lower() == ".gguf":
        raise UserError(
            f"{given}: GGUF cannot be imported; give the safetensors folder it was made from"
        )
    if not folder.exists():
        raise UserError(f"{folder}: no such folder{download_first(folder)}")
    if not folder.is_dir():
        raise UserError(f"{folder}: a file; give the folder with {qwen3_5.CONFIG} and safetensors")


def _check_kind(theirs: dict[str, Any], path: Path) -> None:
    """UserError if the architecture is not supported."""
    kind = theirs.get("model_type")
    if kind in transformer.MODEL_TYPES or qwen3_5.text_config(theirs).get("model_type") == MINE:
        return
    others = " and ".join(transformer.MODEL_TYPES[-2:])
    taken = ", ".join([MINE, *transformer.MODEL_TYPES[:-2], others])
    this = f"this is {shortened(kind)}" if isinstance(kind, str) else "this names no model_type"
    raise UserError(f"{path}: import supports {taken}; {this}")


def _write(run: Path, config: Config, weights: Iterator[Tensor]) -> None:
    """A run's configuration and its checkpoint of step 0."""
    parts = [part for packed in packed_tensors(config.model) for part in packed.parts]
    make_draft(run, 0)
    file = draft_dir(run, 0) / tensor_file("model", 0)
    write_tensors(file, [Spec(*part) for part in parts], map(Tensor.float, weights))
    sync(file)
    slices = {part.name: {file.name: Slice.share(part.shape, {})} for part in parts}
    written = Part({file.name: describe(file)}, {"model": slices})
    write_common(file.parent, 0, [written], STATE, config)
    publish(run, 0, keep=1, keep_every=0)
    (run / CONFIG).write_text(dump(config), encoding="utf-8")


def _configuration(
    tables: dict[str, Any], path: Path, out: Path, overrides: Sequence[str]
) -> tuple[Config, Path]:
    """The run's configuration, and the source of its tokenizer. UserError: an override changes what
    the weights determine.
    """
    place = Path(os.path.abspath(out))
    run = {"dir": str(place.parent), "name": place.name}
    data = tables.get("data", {}) | qwen3_5.DATA | {"tokenizer": str(path.parent)}
    given = from_tables(tables | {"run": run, "data": data}, str(path))
    changed = override(given, overrides)
    for name in tables["model"]:
        if getattr(changed.model, name) != getattr(given.model, name):
            raise UserError(f"model.{name}: fixed by {path}; leave it out")
    tokenizer = Path(changed.data.tokenizer)
    name = FOREIGN_TOKENIZER if foreign.is_foreign(tokenizer) else TOKENIZER
    changed.data.tokenizer = str(place / name)
    return changed, tokenizer


def _take_tokenizer(source: Path, folder: Path, run: Path, config: Config) -> list[str]:
    """Copies the model's tokenizer, or a given one; returns a line if there is none.

    Raises:
        UserError: the given one does not fit. TokenizerError: it cannot be read.
    """
    try:
        tokenizer = Tokenizer.load(source)
        if tokenizer.vocab_size > config.model.vocab_size:
            ids = f"{tokenizer.vocab_size:,} ids, the model {config.model.vocab_size:,}"
            raise TokenizerError(f"{source}: the tokenizer has {ids}")
    except TokenizerError as error:
        if source != folder:
            raise
        if not uses_tokenizer(config):
            return []
        return [f"no tokenizer was imported: {error}; give one with data.tokenizer=PATH"]
    copy_tokenizer(source, run)
    return []
