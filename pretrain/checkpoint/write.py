"""Writes a checkpoint: every rank its own tensors, then rank 0 the common files and the index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file

from parallel.slices import Piece, Slice
from pretrain.checkpoint.index import (
    CONFIG,
    INDEX,
    KINDS,
    STATE,
    Entry,
    Slices,
    describe,
    tensor_file,
    write_index,
)
from pretrain.config.load import dump
from pretrain.config.schema import Config
from pretrain.files import sync


class Part(NamedTuple):
    """What a rank has written; JSON-serialisable."""

    files: dict[str, Entry]
    slices: Slices


def write_part(draft: Path, rank: int, tensors: Mapping[str, Mapping[str, Piece]]) -> Part:
    """Writes a rank's pieces, by kind and name, and syncs them to disk. OSError or SafetensorError
    if it fails.
    """
    part = Part({}, {})
    for kind, named in tensors.items():
        if not named:
            continue
        path = draft / tensor_file(kind, rank)
        contents = {}
        for name, (where, values) in named.items():
            is_box = where.run == (0, prod(where.box_shape))  # a whole box keeps its shape
            shaped = values.view(where.box_shape) if is_box else values.flatten()
            contents[name] = shaped.contiguous()
        try:
            save_file(contents, path)
        except SafetensorError as error:  # as which it also reports errors of the system
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        sync(path)
        part.files[path.name] = describe(path)
        part.slices[kind] = {name: {path.name: piece.where} for name, piece in named.items()}
    return part


def write_common(
    draft: Path, step: int, parts: Sequence[Part], state: Mapping[str, Any], config: Config
) -> None:
    """Writes the common files and the index of all parts, and syncs them to disk.

    Args:
        state: JSON-serialisable.
    """
    (draft / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
    (draft / CONFIG).write_text(dump(config), encoding="utf-8")
    files = {name: describe(draft / name) for name in (STATE, CONFIG)}
    slices: Slices = {kind: {} for kind in KINDS}
    for part in parts:
        files |= part.files
        for kind, named in part.slices.items():
            for name, by_file in named.items():
                slices[kind].setdefault(name, {}).update(
                    {file: Slice(*where) for file, where in by_file.items()}
                )
    write_index(draft, files, slices)
    for path in (draft / STATE, draft / CONFIG, draft / INDEX, draft):
        sync(path)
