"""The index of a checkpoint: what is in it, where every piece lies, and what every byte must be."""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from parallel.slices import Slice
from pretrain.errors import UserError, shortened
from pretrain.files import read_whole, sha256
from pretrain.json_text import MAX, counted, is_sealed, parse_json, sealed

FORMAT = 2
INDEX = "index.json"
STATE, CONFIG = "state.json", "config.toml"
MAX_BYTES = 1 << 29  # of a JSON file
DAMAGE = (
    errno.EIO,
    errno.EINVAL,
    errno.EFBIG,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
)
# of tensors; a rank has a file of each that it has pieces of
KINDS = ("model", "optimizer", "state")
READERS = 8  # files that are hashed at once
MAX_DIMS = 8
TENSOR = re.compile(r"[A-Za-z0-9_.]{1,200}")  # its name

Entry = dict[str, Any]  # of a file, see `describe`
# kind -> tensor -> file -> what of the tensor is in it
Slices = dict[str, dict[str, dict[str, Slice]]]


class Unreadable(UserError):
    """A checkpoint that cannot be read here and now, and may be whole: never passed over or
    replaced.
    """


def other_format(where: Path, written: int) -> Unreadable:
    """Another version of Hypnos can read it."""
    who = "a newer" if written > FORMAT else "an older"
    return Unreadable(
        f"{where}: format {shortened(str(written))} was written by {who} Hypnos, this one reads format {FORMAT}; "
        "go on with that version, or begin another run with another run.name"
    )


def unreadable(path: Path, error: OSError) -> UserError:
    """What became of a file: it is damaged, or the system does not give it."""
    told = f"{path}: cannot be read: {error.strerror}"
    return (
        UserError(told)
        if error.errno in DAMAGE
        else Unreadable(f"{told}; try again when the system gives it")
    )


def tensor_file(kind: str, rank: int) -> str:
    """The file of a rank's pieces of one kind."""
    return f"{kind}.{rank}.safetensors"


def describe(path: Path) -> Entry:
    """A file's entry in the index: bytes, sha256, and of tensors crc32 by name."""
    entry: Entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            entry["tensors"] = {name: _crc32(file, *place) for name, place in _places(file).items()}
    return entry


def write(folder: Path, files: Mapping[str, Entry], slices: Slices) -> None:
    """Writes the index, with a hash of its own."""
    tensors: dict[str, dict[str, Any]] = {}
    for kind, named in slices.items():
        tensors[kind] = {}
        for name, parts in sorted(named.items()):
            shape = next(iter(parts.values())).shape
            pieces = [
                {"file": file, "box": where.box, "run": where.run} for file, where in parts.items()
            ]
            tensors[kind][name] = {"shape": shape, "slices": pieces}
    content = sealed({"format": FORMAT, "files": files, "tensors": tensors})
    if len(content) > MAX_BYTES:
        raise OSError(
            errno.EFBIG,
            f"more than {MAX_BYTES >> 20} MiB, which nobody would read",
            str(folder / INDEX),
        )
    (folder / INDEX).write_bytes(content)


def _places(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes begin and end in a safetensors file; ValueError if its header is
    damaged.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > 100_000_000:
        raise ValueError("header too long")
    header = parse_json(file.read(length))
    places = {
        name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"
    }
    return {
        name: (8 + length + counted(begin), 8 + length + counted(end))
        for name, (begin, end) in places.items()
    }


def _crc32(file: BinaryIO, begin: int, end: int) -> int:
    file.seek(begin)
    crc, left = 0, end - begin
    while left > 0 and (block := file.read(min(left, 1 << 24))):
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc if left == 0 else -1


# ---- reading


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or UserError."""
    return _parsed(path, _content(path))


def _content(path: Path) -> bytes:
    try:
        return read_whole(path, MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {path.parent} is no whole checkpoint") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        value = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path}: damaged, {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged, not a JSON object")
    return value


def read(folder: Path) -> tuple[dict[str, Entry], Slices]:
    """The entries of all files, and the slices. UserError if the index is damaged, or of another
    format.
    """
    path = folder / INDEX
    if not path.exists() and (folder / "manifest.json").exists():
        raise other_format(folder, 1)
    content = _content(path)
    body = _parsed(path, content)
    version = body.get("format")
    if type(version) is not int or version < 1:
        raise UserError(f"{path}: damaged, no format version")
    if version != FORMAT:
        raise other_format(path, version)
    if not is_sealed(content):
        raise UserError(f"{path}: damaged, it does not match its own sha256")
    try:
        return _checked_files(body["files"]), _slices(body["tensors"], body["files"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: damaged, it is sealed but not as Hypnos writes it") from None


def _checked_files(files: dict[str, Entry]) -> dict[str, Entry]:
    """Only names that a checkpoint can have, so that none lies outside its folder, or spoils a
    message.
    """
    tensors = re.compile(rf"({'|'.join(KINDS)})\.[0-9]{{1,9}}\.safetensors")
    if not {STATE, CONFIG} <= files.keys() or not all(
        tensors.fullmatch(n) for n in files.keys() - {STATE, CONFIG}
    ):
        raise ValueError
    if not all(
        TENSOR.fullmatch(name) for entry in files.values() for name in entry.get("tensors", {})
    ):
        raise ValueError
    return files


def _slices(tensors: dict[str, Any], files: dict[str, Entry]) -> Slices:
    found: Slices = {}
    for kind in KINDS:
        found[kind] = {}
        for name, entry in tensors[kind].items():
            shape = tuple(map(counted, entry["shape"]))
            if not TENSOR.fullmatch(name) or len(shape) > MAX_DIMS or prod(shape) > MAX:
                raise ValueError
            parts = found[kind][name] = {}
            for piece in entry["slices"]:
                if (
                    piece["file"] not in files
                    or not piece["file"].startswith(f"{kind}.")
                    or piece["file"] in parts
                ):
                    raise ValueError
                box = tuple((counted(begin), counted(end)) for begin, end in piece["box"])
                begin, end = map(counted, piece["run"])
                parts[piece["file"]] = Slice(shape, box, (begin, end))
    return found


# ---- checking


def verify(folder: Path) -> Slices:
    """Checks every byte of a checkpoint; gives its slices.

    Raises:
        UserError: a file is damaged; names it, and the tensor, if there is one.
    """
    files, slices = read(folder)
    foreign = {path.name for path in folder.iterdir()} - {*files, INDEX}
    if foreign:
        raise UserError(
            f"{folder}/{shortened(min(foreign))}: does not belong in a checkpoint; remove it"
        )
    with ThreadPoolExecutor(READERS) as pool:
        # raises the first error
        list(pool.map(lambda name: _check(folder / name, files[name]), sorted(files)))
    return slices


def _check(path: Path, entry: Entry) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing from the checkpoint, or not a regular file")
    try:
        intact = path.stat().st_size == entry.get("bytes") and sha256(path) == entry.get("sha256")
        damage = "" if intact else _damaged_tensor(path, entry)
    except OSError as error:
        raise unreadable(path, error) from None
    if not intact:
        raise UserError(f"{path}: damaged{damage}")


def _damaged_tensor(path: Path, entry: Entry) -> str:
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
