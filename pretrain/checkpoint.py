"""Checkpoints on disk: folders of safetensors, JSON and TOML that nothing has to execute to be read.

    RUN/checkpoints/
      latest                    the name of the newest one, moved last
      step-200/
        model.safetensors       every parameter, fp32, whole, by name
        optimizer.safetensors   momentum.NAME; exp_avg.NAME and exp_avg_sq.NAME
        state.safetensors       rng.*; lanes.* (the fast weights of documents that go on); guard.sums
        state.json              format version, step, position in the data, counters
        config.toml             the resolved configuration
        manifest.json           size and sha256 of each file, crc32 of each tensor, and a hash of itself

A checkpoint is written under another name, flushed to disk and renamed: it is there whole, or not at
all. Reading checks every byte against the manifest first.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from parallel import mesh
from parallel.layers import share, split_dim
from pretrain.config import Config
from pretrain.errors import UserError
from pretrain.files import sha256, sync, write_atomically
from pretrain.model import HybridLM
from pretrain.settings import dump, parse

FORMAT = 1
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors", "state.safetensors")
FILES = (*TENSOR_FILES, "state.json", "config.toml")
MANIFEST = "manifest.json"


# ---- writing


def save(
    run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], config: Config, keep: int
) -> Path:
    """Writes RUN/checkpoints/step-N, points `latest` at it and deletes all but the newest `keep`.

    Args:
        tensors: for each of TENSOR_FILES, CPU tensors by name. state: JSON-able.
    """
    folder = run / "checkpoints"
    final, draft = folder / f"step-{step}", folder / f".step-{step}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name in TENSOR_FILES:
        save_file({n: t.contiguous() for n, t in tensors[name].items()}, draft / name)
    (draft / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
    (draft / "config.toml").write_text(dump(config), encoding="utf-8")
    (draft / MANIFEST).write_text(_sealed({name: _describe(draft / name) for name in FILES}))
    for path in (*draft.iterdir(), draft):
        sync(path)

    if final.exists():  # a damaged one, or one of a future that was given up: a resumed run has come here again
        old = folder / f".step-{step}.old"
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    draft.rename(final)
    shutil.rmtree(folder / f".step-{step}.old", ignore_errors=True)
    write_atomically(folder / "latest", final.name + "\n")
    for number in [n for n in steps(run) if n <= step][:-keep]:
        doomed = folder / f".step-{number}.old"  # renamed first: half a folder must not look like a checkpoint
        (folder / f"step-{number}").rename(doomed)
        shutil.rmtree(doomed)
    return final


def _sealed(files: Any) -> str:
    """The text of a manifest, with a hash of its own."""
    body = {"format": FORMAT, "files": files}
    return json.dumps(body | {"seal": hashlib.sha256(json.dumps(body).encode()).hexdigest()}, indent=1)


def _describe(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest."""
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            entry["tensors"] = {name: _crc32(file, *place) for name, place in _places(file).items()}
    return entry


def _places(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes begin and end in a safetensors file; ValueError if its header is damaged."""
    length = int.from_bytes(file.read(8), "little")
    if length > 100_000_000:
        raise ValueError("header too long")
    header = json.loads(file.read(length))
    places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (8 + length + int(begin), 8 + length + int(end)) for name, (begin, end) in places.items()}


def _crc32(file: BinaryIO, begin: int, end: int) -> int:
    file.seek(begin)
    crc, left = 0, end - begin
    while left > 0 and (block := file.read(min(left, 1 << 24))):
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc if left == 0 else -1


# ---- checking


def verify(folder: Path) -> None:
    """Checks every byte of a checkpoint. Raises UserError naming the first damaged file, and tensor, there is."""
    manifest = _json(folder / MANIFEST)
    _check_format(folder / MANIFEST, manifest)
    files = manifest.get("files", {})
    if (folder / MANIFEST).read_text(encoding="utf-8") != _sealed(files) or set(files) != set(FILES):
        raise UserError(f"{folder / MANIFEST}: damaged, it does not match its own seal")
    foreign = {path.name for path in folder.iterdir()} - {*FILES, MANIFEST}
    if foreign:
        raise UserError(f"{folder / min(foreign)}: does not belong in a checkpoint; remove it")
    for name in FILES:
        path, entry = folder / name, files[name]
        if not path.is_file():
            raise UserError(f"{path}: missing from the checkpoint")
        if path.stat().st_size != entry.get("bytes") or sha256(path) != entry.get("sha256"):
            raise UserError(f"{path}: damaged{_damaged_tensor(path, entry)}")


def _damaged_tensor(path: Path, entry: dict[str, Any]) -> str:
    """Says which tensor of a damaged file is hurt (the first, if several are)."""
    if path.suffix != ".safetensors":
        return ""
    with path.open("rb") as file:
        try:
            places = _places(file)
            for name, crc in entry["tensors"].items():
                if name not in places or _crc32(file, *places[name]) != crc:
                    return f" in tensor {name}"
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
    return " in its header"


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {path.parent} is no whole checkpoint") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: damaged, not JSON") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, not a JSON object")
    return value


def _check_format(path: Path, value: dict[str, Any]) -> None:
    version = value.get("format")
    if not isinstance(version, int):
        raise UserError(f"{path}: damaged, no format version")
    if version > FORMAT:
        raise UserError(f"{path}: format {version} was written by a newer Hypnos; this one reads up to {FORMAT}")


# ---- reading


@dataclass
class Checkpoint:
    """A checkpoint that can be read: its tensors are loaded when asked for."""

    folder: Path
    step: int
    state: dict[str, Any]
    config: Config

    @staticmethod
    def open(folder: Path, checked: bool = False) -> Checkpoint:
        """Verifies a checkpoint (unless that has just been done) and reads what is small of it."""
        if not checked:
            verify(folder)
        state = _json(folder / "state.json")
        _check_format(folder / "state.json", state)
        config = parse((folder / "config.toml").read_text(encoding="utf-8"), str(folder / "config.toml"))
        return Checkpoint(folder, state["step"], state, config)

    def names(self, file: str) -> list[str]:
        """The tensors of one of TENSOR_FILES."""
        with safe_open(self.folder / file, framework="pt") as tensors:
            return list(tensors.keys())

    def tensor(self, file: str, name: str) -> Tensor:
        """One tensor, on the CPU. UserError naming file and tensor if it is not there."""
        with safe_open(self.folder / file, framework="pt") as tensors:
            try:
                return tensors.get_tensor(name)
            except SafetensorError:
                raise UserError(f"{self.folder / file}: tensor {name} is missing") from None

    @torch.no_grad()
    def load_weights(self, model: HybridLM) -> None:
        """Fills this rank's part of a model of the same shape."""
        file = "model.safetensors"
        parameters = dict(model.named_parameters())
        unknown = [name for name in self.names(file) if name not in parameters and not model.is_elsewhere(name)]
        if unknown:
            raise UserError(f"{self.folder / file}: tensor {min(unknown)} is none of the model's")
        for name, parameter in parameters.items():
            value = share(self.tensor(file, name), split_dim(parameter))
            if value.shape != parameter.shape:
                shapes = f"{list(value.shape)}, but the model's is {list(parameter.shape)}"
                raise UserError(f"{self.folder / file}: tensor {name} is {shapes}")
            parameter.copy_(value)


def steps(run: Path) -> list[int]:
    """The steps that a run has checkpoints of, oldest first."""
    found = [re.fullmatch(r"step-(\d+)", path.name) for path in (run / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def newest(
    run: Path, say: Callable[[str], None], fits: Callable[[Checkpoint], bool] = lambda checkpoint: True
) -> Checkpoint | None:
    """The checkpoint that `latest` names, or the newest intact one before it; None where there is none at all.

    Args:
        say: told, in one line each, about damaged checkpoints that are passed over.
        fits: which intact ones will do; None is returned where none does.
    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    candidates = steps(run)
    pointer = run / "checkpoints" / "latest"
    named = re.fullmatch(r"step-(\d+)\n?", pointer.read_text(errors="replace")) if pointer.is_file() else None
    if named:
        candidates = [step for step in candidates if step <= int(named[1])] or candidates
    intact = False
    for step in reversed(candidates):
        try:
            checkpoint = Checkpoint.open(run / "checkpoints" / f"step-{step}")
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
    if (folder / MANIFEST).exists():
        checkpoint: Checkpoint | None = Checkpoint.open(folder)
    else:
        checkpoint = newest(folder, lambda line: print(line, file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{folder}: neither a checkpoint nor a run that has one")
    model = HybridLM(checkpoint.config.model, checkpoint.config.sleep)
    checkpoint.load_weights(model)
    return model, checkpoint.config
