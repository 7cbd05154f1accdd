"""The index of a checkpoint: where every piece of a tensor belongs, and the hash of every file."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from parallel.slices import Slice
from pretrain.errors import UserError, shortened, storage_error
from pretrain.files import has_checksum, parse_json, read_whole, sha256, with_checksum

FORMAT = 4  # raised with every change to what a checkpoint holds, state.json included
INDEX, STATE, CONFIG = "index.json", "state.json", "config.toml"
KINDS = ("model", "optimizer", "state")  # of tensors; a rank has one file of each, unless empty
READERS = 8  # files hashed in parallel
# Errors of the operating system that mean a damaged file, or something else in its place.
DAMAGE = (errno.EIO, errno.EINVAL, errno.ELOOP, errno.ENOTDIR)

Entry = dict[str, Any]  # of a file: "bytes" and "sha256"
Slices = dict[str, dict[str, dict[str, Slice]]]  # kind -> tensor -> file -> the slice in it


class Unreadable(UserError):
    """A checkpoint that cannot be read here and now but may be intact: never skipped, never
    replaced.
    """


class Deleted(UserError):
    """A checkpoint that was deleted while it was read: a running run deletes its old ones."""

    def __init__(self, folder: Path) -> None:
        why = "deleted while it was read, by the run that is training"
        super().__init__(f"{folder}: {why}; try again, or raise train.keep")


def tensor_file(kind: str, rank: int) -> str:
    """The name of the file with a rank's pieces of one kind."""
    return f"{kind}.{rank}.safetensors"


def describe(path: Path) -> Entry:
    """A file's entry in the index."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def write_index(folder: Path, files: Mapping[str, Entry], slices: Slices) -> None:
    """Writes the index, with a hash of itself."""
    tensors: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for kind, named in slices.items():
        for name, by_file in sorted(named.items()):
            tensors[kind][name] = {
                "shape": next(iter(by_file.values())).shape,
                "slices": [{"file": f, "box": s.box, "run": s.run} for f, s in by_file.items()],
            }
    content = with_checksum({"format": FORMAT, "files": files, "tensors": tensors})
    (folder / INDEX).write_bytes(content)


def read_file(path: Path) -> bytes:
    """The content of a checkpoint's file. UserError: damaged or missing. Unreadable: I/O failed."""
    try:
        return read_whole(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {path.parent} is not a complete checkpoint") from None
    except OSError as error:
        raise _cannot_read(path, error) from None


def read_index(folder: Path) -> tuple[dict[str, Entry], Slices]:
    """The entries of all files, and the slices.

    Raises:
        UserError: it is damaged. Unreadable: it has another format version, or I/O failed.
    """
    path = folder / INDEX
    content = read_file(path)
    try:
        body = parse_json(content)
        written = body["format"]
    except (KeyError, TypeError):
        raise UserError(f"{path}: damaged, no format version") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, {error}") from None
    if written != FORMAT:  # before the hash, which another version may compute differently
        raise Unreadable(
            f"{path}: format {shortened(str(written))}, but this Hypnos reads format {FORMAT}; "
            "use the version that wrote it, or begin another run with another run.name"
        )
    if not has_checksum(content):
        raise UserError(f"{path}: damaged, it does not match its own sha256")
    # From here on the content is what `write_index` wrote.
    slices = {
        kind: {name: _by_file(**entry) for name, entry in named.items()}
        for kind, named in body["tensors"].items()
    }
    return body["files"], slices


def _by_file(shape: list[int], slices: list[dict[str, Any]]) -> dict[str, Slice]:
    return {
        piece["file"]: Slice(
            tuple(shape),
            tuple((begin, end) for begin, end in piece["box"]),
            (piece["run"][0], piece["run"][1]),
        )
        for piece in slices
    }


def verify(folder: Path) -> Slices:
    """Verifies every file in a checkpoint's index, and returns its slices.

    Raises:
        UserError: a file is damaged; names it. Unreadable: like `read_index`, for any file.
    """
    files, slices = read_index(folder)
    with ThreadPoolExecutor(READERS) as pool:  # the first error is raised
        list(pool.map(lambda name: _check(folder / name, files[name]), sorted(files)))
    return slices


def _check(path: Path, entry: Entry) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing from the checkpoint, or not a regular file")
    try:
        whole = path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]
    except OSError as error:
        raise _cannot_read(path, error) from None
    if not whole:
        raise UserError(f"{path}: damaged, it does not match its sha256 in {INDEX}")


def _cannot_read(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be read: it is damaged, or I/O failed for now."""
    told = f"{path}: cannot be read: {error.strerror}"
    if error.errno in DAMAGE:
        return UserError(told)
    again = f"{told}; check the file system there, and try again"
    return Unreadable(again, storage_error(error).status)
