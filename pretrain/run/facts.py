"""What must be the same on all ranks of a run, and is compared by the preflight.

Ranks that differ in a setting, in their code or in their data would train something that nobody
asked for, or deadlock. So before anything is built, the preflight (launch/preflight) compares

    the code        hash of Hypnos's own sources, versions of the packages that compute
    the device      its kind: a rank without a GPU driver would run on the CPU
    the settings    all of them, as configured
    the content     of tokenizer, shards, held-out shards, stories and questions; of shards,
                    their indexes
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parallel import mesh
from pretrain.config.schema import Config
from pretrain.data.index import find_split, read_index
from pretrain.data.store import Place, place
from pretrain.errors import UserError, shortened
from pretrain.files import sha256
from tokenizer import TokenizerError
from tokenizer.encode import Tokenizer

SOURCES = ("parallel", "pretrain", "tokenizer")  # our packages that decide what is computed
PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy")
KERNELS = ("triton", "fla-core")  # on GPUs; without fla's, a rank computes in plain torch
STORE_S = 60.0  # limit for reads from an object store: less than ranks wait for each other
Facts = dict[str, str]  # what is compared -> what it is here


def facts(config: Config | None) -> Facts:
    """All that must be the same on every rank of a run, in the order in which it is compared.

    Args:
        config: None: only code and device.
    """
    device = mesh.device().type
    packages = (*PACKAGES, *KERNELS) if device == "cuda" else PACKAGES
    machine = {
        "the version of Hypnos (a hash of its sources)": code_version()[:12],
        **{f"the version of {name}": _version(name) for name in packages},
        "the kind of device": device,
    }
    if config is None:
        return machine
    return {
        **machine,
        **{name: repr(value) for name, value in leaves("", dataclasses.asdict(config))},
        **{name: _content(read) for name, read in contents(config)},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none (not installed)"


def code_version() -> str:
    """A hash of the sources that decide what is computed."""
    digest = hashlib.sha256()
    for package in SOURCES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, "it has been imported"
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value in nested dicts and lists, under its dotted name: data.train[0].weight."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(f"{name}.{key}" if name else key, item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield f"the number of {name}", len(value)
        for i, item in enumerate(value):
            yield from leaves(f"{name}[{i}]", item)
    else:
        yield name, value


def contents(config: Config) -> Iterator[tuple[str, Callable[[], str]]]:
    """What a run reads, each with a function that returns a hash of its content."""
    data = config.data
    if data.tokenizer:
        yield f"the tokenizer {data.tokenizer}", lambda: Tokenizer.load(data.tokenizer).fingerprint
    if data.task == "text":
        folders = [(corpus.path, "train") for corpus in data.train]
        heldout = [(path, "heldout") for path in data.heldout_paths().values()]
        for path, split in [*folders, *heldout]:
            there = place(path, min(data.retry, STORE_S))
            yield f"the {split} shards {path}", partial(_fingerprint, there, split)
    if data.task == "stories" and config.stories.path:
        yield f"the stories {config.stories.path}", partial(sha256, Path(config.stories.path))
    if data.task == "questions":
        for path in filter(None, (config.questions.path, config.questions.heldout)):
            yield f"the questions {path}", partial(sha256, Path(path))


def _fingerprint(path: Place, split: str) -> str:
    return read_index(find_split(path, split)).fingerprint


def _content(read: Callable[[], str]) -> str:
    """A hash, or why there is none: if that is so on all ranks, it is reported later."""
    try:
        return read()[:12]
    except (UserError, TokenizerError, OSError) as error:
        return f"unreadable ({' '.join(str(error).split())})"


def difference(there: str, theirs: Facts, here: str, mine: Facts) -> str:
    """The first fact that differs between two ranks, in one line; "" if none does."""
    for name in {**theirs, **mine}:
        a, b = theirs.get(name, "not known"), mine.get(name, "not known")
        if a != b:
            fix = "start all ranks with the same code, settings and data"
            return f"{name} is {shortened(a)} on {there}, but {shortened(b)} on {here}; {fix}"
    return ""
