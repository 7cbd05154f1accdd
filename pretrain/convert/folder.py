"""Folders of safetensors, written and read one tensor at a time, so that memory holds only one.

The safetensors library writes only what is completely in memory. The format is simple enough to
stream: the length of a header, the header (JSON: dtype, shape and offsets of each tensor), the
tensors' bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretrain.errors import UserError, shortened
from pretrain.files import parse_json, sync
from pretrain.whole import appearing_whole, draft_of, writes_output

MAX_SHARD = 5_000_000_000  # bytes per file, as in transformers
MAX_JSON = 1 << 26  # bytes of a config.json or an index
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPE_OF = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

# The dtypes that are read. Others are quantised: not weights without their scales.
PRECISIONS = (torch.float64, *DTYPES)
UNQUANTIZED = "quantised models are not supported: give the one that it was made from"


class Spec(NamedTuple):
    """What is known of a tensor before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A draft folder that is renamed to `out` at the end, or removed if anything fails.

    Raises:
        UserError: `out` exists and is not an empty folder, or cannot be written.
    """
    _check_new(out, may_be_empty=True)
    with appearing_whole(out) as draft:
        yield draft
        for path in draft.rglob("*"):
            sync(path)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """The same for a file."""
    place = _check_new(out)
    with writes_output(out), draft_of(place) as draft:
        draft.touch()  # without a draft, the lock of a killed process would stay
        yield draft
        sync(draft)
        draft.replace(place)
        sync(place.parent)


def _check_new(out: Path, may_be_empty: bool = False) -> Path:
    """The real path of `out`. UserError: it exists, or cannot be created."""
    place = Path(os.path.realpath(out))
    if place == Path.cwd():
        raise UserError(f"{out}: is the current folder; give the name of a new one")
    if file := next((above for above in place.parents if above.is_file()), None):
        raise UserError(f"{out}: cannot be written below {file}, a file; give another name")
    with writes_output(out):
        is_empty = may_be_empty and place.is_dir() and not any(place.iterdir())
    if place.exists() and not is_empty:
        raise UserError(f"{out}: already exists; give another name, or remove it")
    return place


def write_tensors(path: Path, specs: Sequence[Spec], tensors: Iterator[Tensor]) -> None:
    """Writes a safetensors file of the next len(specs) of `tensors`, taken one by one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.nbytes
        place = {"dtype": DTYPES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
        header[spec.name] = place
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors' bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            tensor = next(tensors)
            assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype), spec
            file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
            del tensor  # before the next is made


def write_shards(folder: Path, specs: Sequence[Spec], tensors: Iterator[Tensor]) -> None:
    """Writes model.safetensors, or numbered files if it is large, like transformers."""
    shards = list(_cut(specs))
    if len(shards) == 1:
        write_tensors(folder / SINGLE, shards[0], tensors)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / name, shard, tensors)
        weight_map |= {spec.name: name for spec in shard}
    total = {"total_size": sum(spec.nbytes for spec in specs)}
    write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})


def _cut(specs: Sequence[Spec]) -> Iterator[list[Spec]]:
    shard: list[Spec] = []
    for spec in specs:
        if shard and sum(s.nbytes for s in shard) + spec.nbytes > MAX_SHARD:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def write_json(path: Path, value: Any) -> None:
    """A JSON file, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. UserError names it otherwise."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path}: {path.stat().st_size} bytes, too large for such a file")
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


class TensorFolder:
    """The tensors of a folder of safetensors, by name; a context manager that closes the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened, self._files = ExitStack(), dict[str, Any]()
        # transformers prefers the single file if there are both: the index may be a leftover of an
        # earlier save
        if (folder / SINGLE).exists():
            self._file_of = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        elif (folder / INDEX).exists():
            self._file_of = self._weight_map()
        else:
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}; only safetensors are read")

    def _weight_map(self) -> dict[str, str]:
        named = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(named, dict):
            raise UserError(f"{self.folder / INDEX}: no weight_map")
        for file in named.values():
            if not isinstance(file, str) or os.path.basename(file) != file:
                raise UserError(
                    f"{self.folder / INDEX}: {shortened(repr(file))} is not a file in its folder"
                )
        return named

    def _open(self, name: str) -> Any:
        if name not in self._files:
            try:
                opened = safe_open(self.folder / name, framework="pt")
                self._files[name] = self._opened.enter_context(opened)
            except (SafetensorError, OSError) as error:
                why = shortened(str(error))
                raise UserError(f"{self.folder / name}: cannot be read: {why}") from None
        return self._files[name]

    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._file_of.keys()

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, in its dtype in the file.

        Raises:
            UserError: it is missing, of another shape, quantised, or cannot be read; names file and
                tensor.
        """
        tensor = self._read(name)
        if tuple(tensor.shape) != shape:
            shapes = f"{list(tensor.shape)} instead of {list(shape)}"
            raise UserError(f"{self._where(name)} is {shapes}")
        return tensor

    def _read(self, name: str) -> Tensor:
        file = self._file_of.get(name)
        if file is None:
            raise UserError(f"{self.folder}: tensor {shortened(name)} is missing")
        try:
            tensor: Tensor = self._open(file).get_tensor(name)
        except SafetensorError as error:
            why = shortened(str(error))
            raise UserError(f"{self._where(name)} cannot be read: {why}") from None
        if tensor.dtype not in PRECISIONS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{self._where(name)} is {kind}; {UNQUANTIZED}")
        return tensor

    def _where(self, name: str) -> str:
        return f"{self.folder / self._file_of[name]}: tensor {shortened(name)}"

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two tensors have the same dtype, shape and elements."""
        one, two = self._read(name), self._read(other)
        return one.dtype == two.dtype and torch.equal(one, two)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
