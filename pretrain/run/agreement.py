"""Ranks compare what they are started with, and what rank 0 does for all is done on all or on none.

Ranks that differ in a setting, in their code or in their data would train on something that nobody
asked for, or wait for each other for ever. So before anything is built, all of them compare

    the code        version of Hypnos's own sources and of the packages that compute
    the device      of which kind it is: one without its driver would take the processor
    the settings    all of them, as configured
    the content     of tokenizer, shards, held-out shards and stories; of shards, by their indexes

through the launcher's store: rank 0 shows a digest of its facts and the facts themselves; each rank
compares the digest, and looks at the facts only if that is another; each then says what it found,
and rank 0 tells all which rank, of those that differ, is the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from parallel import mesh, watchdog
from pretrain.config.schema import Config
from pretrain.data.index import find_split, read_index
from pretrain.errors import UserError, shortened
from pretrain.files import sha256
from tokenizer import TokenizerError
from tokenizer.encode import Tokenizer

SOURCES = ("parallel", "pretrain", "tokenizer")  # packages of ours that decide what is computed
PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy")
Facts = dict[str, str]  # what is compared -> what it is here
T = TypeVar("T")


def agree(config: Config) -> None:
    """Compares the ranks' code, settings and data; all come back, or all raise the same UserError.

    Called by every rank after `mesh.join`, before there is a grid: ranks may want different ones.
    """
    rank, world, store = dist.get_rank(), dist.get_world_size(), mesh.store("agreement")
    if world > 1:
        watchdog.doing("compares its code, settings and data with those of the other ranks")
        compare(facts(config), store, rank=rank, world=world, timeout=config.parallel.timeout)


def facts(config: Config) -> Facts:
    """All that must be the same on every rank of a run, in the order in which it is compared."""
    return {
        "the version of Hypnos (a hash of its sources)": code_version()[:12],
        **{f"the version of {name}": importlib.metadata.version(name) for name in PACKAGES},
        "the kind of device": mesh.device().type,
        **{name: repr(value) for name, value in leaves("", dataclasses.asdict(config))},
        **{name: _content(read) for name, read in contents(config)},
    }


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
    """What a run reads, and what gives a hash that stands for all of it."""
    data = config.data
    if data.tokenizer:
        yield f"the tokenizer {data.tokenizer}", lambda: Tokenizer.load(data.tokenizer).fingerprint
    if data.task == "text":
        folders = [(corpus.path, "train") for corpus in data.train]
        for path, split in [*folders, (data.heldout, "heldout")]:
            yield f"the {split} shards {path}", partial(_fingerprint, path, split)
    if data.task == "stories" and config.stories.path:
        yield f"the stories {config.stories.path}", partial(sha256, Path(config.stories.path))


def _fingerprint(path: str, split: str) -> str:
    return read_index(find_split(path, split)).fingerprint


def _content(read: Callable[[], str]) -> str:
    """A hash; or why it cannot be had, which is refused later, if that is the same on all ranks."""
    try:
        return read()[:12]
    except (UserError, TokenizerError, OSError) as error:
        return f"unreadable ({' '.join(str(error).split())})"


def compare(mine: Facts, store: dist.Store, *, rank: int, world: int, timeout: float) -> None:
    """Compares this rank's facts with rank 0's, in a few small messages a rank.

    Args:
        timeout: seconds in which every rank must have found its facts.
    Raises:
        UserError: on every rank, about the first one that differs or says nothing.
    """
    here, digest, found = f"rank {rank} on {os.uname().nodename}", _digest(mine), ""
    store.set_timeout(timedelta(seconds=timeout))
    if rank == 0:
        store.set("facts", json.dumps([here, mine]))
        store.set("digest", digest)
    try:
        if store.get("digest").decode() != digest:
            there, theirs = json.loads(store.get("facts"))
            found = difference(there, theirs, here, mine)
        store.set(f"found/{rank}", found)
        if rank == 0:
            store.set("outcome", _first_found(store, world, timeout))
        store.set_timeout(timedelta(seconds=timeout + mesh.STORE_TIMEOUT_S))
        outcome = store.get("outcome").decode()
    except dist.DistError:
        raise UserError(f"{here}: no word from rank 0 in {timeout:g} s; see there") from None
    if outcome:
        mesh.leave_together(store, rank, world)
        raise UserError(outcome)


def _digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def difference(there: str, theirs: Facts, here: str, mine: Facts) -> str:
    """The first fact that is not the same on two ranks, in one line."""
    for name in {**theirs, **mine}:
        a, b = theirs.get(name, "not known"), mine.get(name, "not known")
        if a != b:
            fix = "start all ranks with the same code, settings and data"
            return f"{name} is {shortened(a)} on {there}, but {shortened(b)} on {here}; {fix}"
    return ""


def _first_found(store: dist.Store, world: int, timeout: float) -> str:
    """What the first rank has found that is not like rank 0; empty if all are."""
    keys = [f"found/{rank}" for rank in range(world)]
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except dist.DistStoreError:
        silent = next(rank for rank, key in enumerate(keys) if not store.check([key]))
        return f"rank {silent} has not compared its settings in parallel.timeout = {timeout:g} s"
    return next((found for key in keys if (found := store.get(key).decode())), "")


def on_rank_0(what: str, act: Callable[[], T]) -> T | None:
    """What it gives, there, and None on the other ranks; a UserError is raised on all, as none can
    go on alone.

    It may take as long as it does: the others wait at the store, where there is no limit as for a
    collective.
    """
    value, error, store = None, None, mesh.store("rank 0")
    with watchdog.no_timeout(what):
        if dist.get_rank() == 0:
            try:
                value = act()
            except UserError as caught:
                error = str(caught)
            store.set("done", "")
        else:
            store.wait(["done"], mesh.NO_TIMEOUT)
    error = mesh.from_rank_0(error)
    if error is not None:
        raise UserError(error)
    return value
