"""No damage to a checkpoint, and no lie in one that is sealed, is used or taken for something else:
it is named.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from parallel.engine import Engine
from parallel.slices import Piece, Slice
from pretrain import files
from pretrain.checkpoint import (
    Checkpoint,
    Unreadable,
    folder,
    index,
    load_model,
    newest,
    steps,
    verify,
)
from pretrain.checkpoint.index import CONFIG, INDEX, KINDS, STATE
from pretrain.checkpoint.write import write_common, write_part
from pretrain.config.schema import (
    Config,
    CorpusConfig,
    DataConfig,
    DepoConfig,
    RunConfig,
    TrainConfig,
)
from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.json_text import seal
from pretrain.model.hybrid import HybridLM
from pretrain.run.optimizer import MuonAdamW
from pretrain.run.state import TrainState, give_back
from pretrain.trainer import make_source, make_stage, train
from tests.checkpoint import written
from tests.fuzz.harness import TIMES, bounded, fuzz, hypnos, refusal, tree
from tests.run import reference

FILES = [f"{kind}.{rank}.safetensors" for kind in KINDS for rank in range(2)] + [
    STATE,
    CONFIG,
    INDEX,
]
SMALL = [INDEX, STATE, CONFIG]


def in_halves(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, Piece]:
    """As two ranks hold them that ZeRO has cut them for."""
    pieces = {}
    for name, tensor in tensors.items():
        run = (0, tensor.numel() // 2) if rank == 0 else (tensor.numel() // 2, tensor.numel())
        where = Slice.share(tuple(tensor.shape), {}, run)
        pieces[name] = Piece(where, tensor.flatten()[slice(*run)])
    return pieces


def write(run: Path, step: int, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of two ranks."""
    tensors = {
        "model": weights,
        "optimizer": {f"momentum.{name}": 2 * value for name, value in weights.items()},
        "state": {"guard.sums": torch.full((2,), step, dtype=torch.float64)},
    }
    folder.begin(run, step)
    draft = folder.draft(run, step)
    parts = [
        write_part(draft, rank, {k: in_halves(t, rank) for k, t in tensors.items()})
        for rank in range(2)
    ]
    write_common(draft, step, parts, written.STATE, written.CONFIG)
    folder.publish(run, step, keep=9, keep_every=0)
    return folder.checkpoint_dir(run, step)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of checkpoints with two tensors."""
    run = tmp_path_factory.mktemp("tiny")
    for step in (1, 2):
        write(
            run,
            step,
            {
                "embed.weight": torch.arange(6.0).view(2, 3) * step,
                "norm.weight": torch.ones(3) * step,
            },
        )
    return run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a whole model."""
    weights = {name: p.detach() for name, p in reference.model().named_parameters()}
    return write(tmp_path_factory.mktemp("whole"), 1, weights)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "run"))


# Damage: something has happened to the files.


@pytest.mark.parametrize("name", FILES)
def test_every_byte_and_every_length(copy: Path, name: str) -> None:
    """Of tensors only the header and some of the rest; of what is large only every few of them,
    another each time.
    """
    at = folder.checkpoint_dir(copy, 2)
    path = at / name
    content = path.read_bytes()
    stride = max(1, len(content) // (250 * TIMES))
    begin = random.randrange(stride)
    damaged = [content[:length] for length in range(begin, len(content), stride)]
    for place in range(begin, len(content), stride):
        damaged.append(
            content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        )
    damaged += [
        content + b"\0",
        content * 2,
        b" " + content,
        b"\xff" * len(content),
        content.replace(b"\n", b"\r\n"),
    ]
    for number, damage in enumerate(damaged):
        if damage == content:  # no line ends there
            continue
        path.write_bytes(damage)
        with pytest.raises(UserError) as error:
            verify(at)
        assert str(error.value).startswith(f"{path}: "), (number, begin)
        assert len(str(error.value).splitlines()) == 1
    path.write_bytes(content)
    verify(at)


def test_a_damaged_tensor_is_named(copy: Path) -> None:
    path = folder.checkpoint_dir(copy, 2) / "model.1.safetensors"
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    for name in ("embed.weight", "norm.weight"):
        for at in range(*header[name]["data_offsets"]):
            path.write_bytes(
                content[: begin + at] + bytes([content[begin + at] ^ 4]) + content[begin + at + 1 :]
            )
            with pytest.raises(
                UserError, match=rf"model\.1\.safetensors: damaged in tensor {name}$"
            ):
                verify(path.parent)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "empty": Path.touch,
    "the other step's": lambda path: shutil.copy(path.parent.parent / "step-1" / path.name, path),
    "the other rank's": lambda path: shutil.copy(
        path.with_name(path.name.replace(".0.", ".1.")), path
    ),
}


@pytest.mark.parametrize("kind", INSTEAD)
@pytest.mark.parametrize("name", FILES)
def test_something_else_in_a_files_place(copy: Path, name: str, kind: str) -> None:
    at = folder.checkpoint_dir(copy, 2)
    path = at / name
    if kind == "the other rank's" and ".0." not in name:
        return
    content = path.read_bytes()
    path.unlink()
    INSTEAD[kind](path)
    if path.is_file() and path.read_bytes() == content:  # the two steps have the same configuration
        return
    told = refusal(lambda: Checkpoint.open(at))
    assert told and told.startswith(f"{at}/")
    assert name == INDEX or told.startswith(f"{path}: ")  # an index of another step is whole
    said: list[str] = []
    found = newest(copy, said.append)
    assert found and found.step == 1 and said == [f"{told}; trying the checkpoint before it"]
    outcome = hypnos("doctor", copy)
    lines = [line for line in outcome.out.splitlines() if not line.strip().startswith("fix: ")]
    assert (outcome.status, outcome.err) == (1, "")
    assert [line.split()[:3] for line in lines] == [["ok", "step", "1"], ["fail", "step", "2"]]
    assert told in lines[1]


def test_a_link_to_the_same_bytes_is_read(copy: Path, tmp_path: Path) -> None:
    for name in FILES:
        path = folder.checkpoint_dir(copy, 2) / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
    assert torch.equal(Checkpoint.of(copy, 2).tensor("model", "norm.weight"), torch.full((3,), 2.0))


@pytest.mark.parametrize(
    "name", ["x", "model.2.safetensors", "two\nlines", "bytes\udcff", "y" * 250, ".hidden"]
)
def test_what_does_not_belong_is_named(copy: Path, name: str) -> None:
    (folder.checkpoint_dir(copy, 2) / name).touch()
    told = refusal(lambda: verify(folder.checkpoint_dir(copy, 2)))
    assert told and "does not belong in a checkpoint" in told and told.isprintable()


def test_checkpoints_that_changed_places(copy: Path) -> None:
    """Each is whole; a run would go on from one that was not asked for."""
    at = [folder.checkpoint_dir(copy, step) for step in (1, 2)]
    at[0].rename(copy / "aside")
    at[1].rename(at[0])
    (copy / "aside").rename(at[1])
    said: list[str] = []
    told = refusal(lambda: newest(copy, said.append))
    assert told and "every checkpoint is damaged" in told
    assert (
        f"{at[1]}/{STATE}: is of step 1" in said[0] and f"{at[0]}/{STATE}: is of step 2" in said[1]
    )
    assert hypnos("doctor", copy).out.count("fail") == 2


NAMES = [
    "step-00", "step-01", "step-99999999999999999999", "step--1", "step-+1", "step-1e3", "step-", "step-2 ", "step-٣",
    "step-2.old", "step-a\nb", "Step-3", "step-0x3", "step-1_0",
]  # fmt: skip


INSTEAD_OF_IT = "taking the newest that there is"


def newest_said(run: Path) -> str:
    """The one line that is said where step 2 is found."""
    said: list[str] = []
    found = newest(run, said.append)
    assert found and found.step == 2
    (line,) = said
    return line


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "file", "loop", "copy"])
def test_names_that_no_checkpoint_has(copy: Path, name: str, kind: str) -> None:
    """They are no checkpoints, neither to be read nor to be deleted."""
    path = copy / "checkpoints" / name
    (
        INSTEAD
        | {
            "file": Path.touch,
            "copy": lambda path: shutil.copytree(folder.checkpoint_dir(copy, 1), path),
        }
    )[kind](path)
    assert steps(copy) == [1, 2]
    found = newest(copy, pytest.fail)
    assert found and found.step == 2
    (copy / "checkpoints" / "latest").write_text(name)
    assert (
        newest_said(copy)
        == f"{copy}/checkpoints/latest: damaged, it names no checkpoint; {INSTEAD_OF_IT}"
    )
    folder.begin(copy, 3)
    folder.publish(copy, 3, keep=1, keep_every=0)
    assert steps(copy) == [3] and os.path.lexists(path)


@pytest.mark.parametrize("kind", ["file", "loop", "link", "dangling"])
def test_a_checkpoint_that_is_no_folder(copy: Path, tmp_path: Path, kind: str) -> None:
    """It is passed over, and swept away when its time comes; what a link leads to stays."""
    at = folder.checkpoint_dir(copy, 2)
    at.rename(tmp_path / "elsewhere")
    {**INSTEAD, "file": Path.touch, "link": lambda path: path.symlink_to(tmp_path / "elsewhere")}[
        kind
    ](at)
    said: list[str] = []
    found = newest(copy, said.append)
    assert found and found.step == (2 if kind == "link" else 1) and len(said) == (kind != "link")
    folder.begin(copy, 3)
    folder.publish(copy, 3, keep=1, keep_every=0)
    at.with_name(".step-9.old").symlink_to(tmp_path / "elsewhere")
    folder.remove_incomplete(copy)
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"step-3", "latest"}
    assert (tmp_path / "elsewhere" / INDEX).is_file()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 50, b"\xff", b"step-7", b"step-" + b"9" * 5000, b"../step-1", b"1"]
)
def test_garbage_in_latest(copy: Path, content: bytes) -> None:
    (copy / "checkpoints" / "latest").write_bytes(content)
    assert INSTEAD_OF_IT in newest_said(copy)


def test_every_bit_and_every_length_of_latest(copy: Path) -> None:
    path = copy / "checkpoints" / "latest"
    content = path.read_bytes()
    damages = [content[:length] for length in range(len(content))]
    for at in range(len(content)):
        damages += [
            content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :] for bit in range(8)
        ]
    for damage in damages:
        path.write_bytes(damage)
        assert INSTEAD_OF_IT in newest_said(copy)
    path.write_text("step-1\n")  # by hand
    found = newest(copy, pytest.fail)
    assert found and found.step == 1


def test_latest_names_what_is_not_there(copy: Path) -> None:
    write(copy, 3, {"embed.weight": torch.ones(2, 3), "norm.weight": torch.ones(3)})
    shutil.rmtree(folder.checkpoint_dir(copy, 3))
    assert newest_said(copy).startswith(
        f"{folder.checkpoint_dir(copy, 3)}: missing, and `latest` names it; "
    )


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "pipe", "device", "dangling", "loop", "large"]
)
def test_something_else_in_the_place_of_latest(copy: Path, kind: str) -> None:
    path = copy / "checkpoints" / "latest"
    path.unlink()
    (INSTEAD | {"large": lambda path: (path.touch(), os.truncate(path, 1 << 40))})[kind](path)
    with bounded():
        if kind == "missing":  # killed before it was moved for the first time
            found = newest(copy, pytest.fail)
            assert found and found.step == 2
        else:
            assert INSTEAD_OF_IT in newest_said(copy)


def test_an_index_larger_than_any(copy: Path) -> None:
    at = folder.checkpoint_dir(copy, 2)
    os.truncate(at / INDEX, 3 << 29)
    with (
        bounded(),
        pytest.raises(UserError, match=r"index\.json: cannot be read: more than 512 MiB"),
    ):
        verify(at)


@pytest.mark.parametrize(
    ("number", "passed_over"), [(errno.EIO, True), (errno.ESTALE, False), (errno.EACCES, False)]
)
def test_what_the_system_does_not_give_is_not_damaged(
    copy: Path, number: int, passed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is passed over will be replaced."""

    def fails(path: Path) -> str:
        if path.parent.name == "step-2":
            raise OSError(number, os.strerror(number), str(path))
        return files.sha256(path)

    monkeypatch.setattr(index, "sha256", fails)
    if passed_over:
        found = newest(copy, lambda _: None)
        assert found and found.step == 1
    else:
        with pytest.raises(
            Unreadable, match=f"step-2/.*: cannot be read: {os.strerror(number)}; try again"
        ):
            newest(copy, pytest.fail)


# Lies: files made on purpose; every hash in them is right.

Node = tuple[Any, Any]  # a list or dictionary, and a key of it


def nodes(value: Any) -> Iterator[Node]:
    """Every place in a JSON value."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    for key in keys:
        yield value, key
        yield from nodes(value[key])


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


WILD = [
    None, True, False, "", "1", "../model.0.safetensors", "a\nb", "\ud800", "x" * 5000, "model.1.safetensors", STATE,
    0, 1, -1, 2, 3, 5, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**30, 10**4000, 1.0, 1.5, float("nan"), float("inf"),
    [], {}, [[]], [0], [0, 3], [3, 0], [[0, 1]], [[0, 2**62]], [2**40, 2**40], [0, 2**52], [1] * 20, nested(300),
]  # fmt: skip
CHANGE = st.tuples(
    st.integers(0, 10**6), st.sampled_from(["set", "set", "delete", "add", "as another"])
)
CHANGES = st.lists(
    st.tuples(CHANGE, st.sampled_from(WILD), st.integers(0, 10**6)), min_size=1, max_size=3
)
Changes = list[tuple[tuple[int, str], Any, int]]


def change(value: Any, changes: Changes) -> None:
    """Changes a JSON value at a few places."""
    for (which, how), wild, other in changes:
        places = list(nodes(value))
        if not places:
            return
        inside, key = places[which % len(places)]
        if how == "delete":
            del inside[key]
        elif how == "add" and isinstance(inside, dict):
            inside[wild if isinstance(wild, str) else "added"] = deepcopy(inside[key])
        elif how == "as another":
            source, name = places[other % len(places)]
            inside[key] = deepcopy(source[name])
        else:
            inside[key] = deepcopy(wild)


def body_of(at: Path) -> dict[str, Any]:
    body = json.loads((at / INDEX).read_text())
    del body["sha256"]
    return dict(body)


def write_index(at: Path, body: dict[str, Any]) -> None:
    """As the saver does, though it does not nest it so deeply that only some of Python's JSON
    writers can.
    """
    (at / INDEX).write_bytes(seal(json.dumps(body).removesuffix("}").encode()))


def put(at: Path, name: str, content: bytes) -> None:
    """Changes a file, and what the index says of it."""
    (at / name).write_bytes(content)
    body = body_of(at)
    body["files"][name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_index(at, body)


def changed_json(at: Path, name: str, changes: Changes) -> None:
    value = json.loads((at / name).read_text())
    change(value, changes)
    put(at, name, json.dumps(value).encode())


def changed_index(at: Path, changes: Changes) -> None:
    body = body_of(at)
    change(body, changes)
    write_index(at, body)


def changed_header(at: Path, name: str, changes: Changes, length: int | None = None) -> None:
    content = (at / name).read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    change(header, changes)
    text = json.dumps(header).encode()
    put(
        at,
        name,
        (len(text) if length is None else length).to_bytes(8, "little") + text + content[begin:],
    )


def changed_config(at: Path, line: int, value: str) -> None:
    lines = (at / CONFIG).read_text().splitlines()
    line %= len(lines)
    lines[line] = f"{lines[line].partition(' = ')[0]} = {value}"
    put(at, CONFIG, "\n".join(lines).encode())


def read_all(at: Path) -> None:
    checkpoint = Checkpoint.open(at)
    for kind in KINDS:
        for name in checkpoint.names(kind):
            checkpoint.tensor(kind, name)


def hold(original: Path, root: Path, lie: Callable[[Path], None]) -> None:
    """A lie is told by its folder, or is none; nothing is written."""
    run = root / "run"
    at = Path(shutil.copytree(original, folder.checkpoint_dir(run, 1)))
    (root / "beside").write_text("not to be touched")
    lie(at)
    before = tree(root)
    for call in (
        partial(read_all, at),
        partial(load_model, at),
        partial(newest, run, lambda line: None),
    ):
        told = refusal(call)
        assert told is None or str(run) in told, told
    assert hypnos("doctor", run).status in (0, 1)
    assert tree(root) == before
    shutil.rmtree(root)


def tell(at: Path, *path: Any, value: Any) -> None:
    """Sets one place of the index."""
    body = body_of(at)
    inside = body
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    write_index(at, body)


@fuzz(60)
@given(changes=CHANGES)
def test_an_index_that_lies(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, changes: Changes
) -> None:
    hold(
        folder.checkpoint_dir(tiny, 1),
        tmp_path_factory.mktemp("lie"),
        lambda at: changed_index(at, changes),
    )


WEIGHT = ("tensors", "model", "embed.weight")
INDEX_LIES: list[tuple[tuple[Any, ...], Any, str]] = [
    (("format",), True, "no format version"),
    (("format",), 1, "written by an older Hypnos"),
    (("format",), 10**4000, "newer"),
    (("files", "model.0.safetensors"), 3, "sealed"),
    (("files", "model.٠.safetensors"), {}, "sealed"),
    (("files", "../x"), {}, "sealed"),
    (("files", "model.0.safetensors", "tensors", "a\nb"), 0, "sealed"),
    ((*WEIGHT, "shape"), [2.0, 3], "sealed"),
    ((*WEIGHT, "shape"), ["2", 3], "sealed"),
    ((*WEIGHT, "shape"), [True, 6], "sealed"),
    ((*WEIGHT, "shape"), [float("inf"), 6], "sealed"),
    ((*WEIGHT, "shape"), [0, 10**30], "sealed"),
    ((*WEIGHT, "shape"), [1] * 5000, "sealed"),
    ((*WEIGHT, "shape"), [2**40, 2**40], "sealed"),
    ((*WEIGHT, "shape"), [2**20, 2**20], "elements|outside"),
    ((*WEIGHT, "shape"), [6], "shorter|longer"),
    # [3, 6) is the other's: 3 and 4 twice, 0 and 1 never
    ((*WEIGHT, "slices", 0, "run"), [2, 5], "overlap"),
    ((*WEIGHT, "slices", 0, "run"), [-3, 0], "sealed"),
    ((*WEIGHT, "slices", 0, "run"), [3, 0], "outside"),
    ((*WEIGHT, "slices", 0, "box"), [[0, 1], [0, 3]], "overlap"),
    ((*WEIGHT, "slices", 0, "box"), [[0, 2**52], [0, 3]], "outside"),
    ((*WEIGHT, "slices", 0, "file"), "model.1.safetensors", "sealed"),
    ((*WEIGHT, "slices", 0, "file"), "optimizer.0.safetensors", "sealed"),
    ((*WEIGHT, "slices"), [], "missing from model"),
    (("tensors", "model", "a\nb"), {"shape": [], "slices": []}, "sealed"),
    (("tensors", "state"), nested(400), "seal"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), INDEX_LIES, ids=range(len(INDEX_LIES)))
def test_this_lie_of_an_index_is_told(
    copy: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    at = folder.checkpoint_dir(copy, 1)
    tell(at, *path, value=value)
    with bounded(), pytest.raises(UserError, match=message) as error:
        read_all(at)
    assert (
        str(at) in str(error.value)
        and len(str(error.value).splitlines()) == 1
        and len(str(error.value)) < 2000
    )


def test_pieces_of_two_dtypes(copy: Path) -> None:
    at = folder.checkpoint_dir(copy, 1)
    name = "model.0.safetensors"
    content = (at / name).read_bytes()
    put(at, name, content.replace(b'"F32"', b'"I32"'))
    assert "embed.weight of model: its pieces are of different dtypes" in str(
        refusal(lambda: read_all(at))
    )


@fuzz(40)
@given(changes=CHANGES)
def test_a_state_that_lies(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, changes: Changes
) -> None:
    hold(
        folder.checkpoint_dir(tiny, 1),
        tmp_path_factory.mktemp("lie"),
        lambda at: changed_json(at, STATE, changes),
    )


@fuzz(60)
@given(
    name=st.sampled_from(FILES[:6]),
    changes=CHANGES,
    length=st.none() | st.sampled_from([0, 1, 2**20, 10**8, 2**40, 2**64 - 1]),
)
@example(name=FILES[0], changes=[((2, "set"), float("inf"), 0)], length=None)
def test_a_header_that_lies(
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    changes: Changes,
    length: int | None,
) -> None:
    root = tmp_path_factory.mktemp("lie")
    hold(folder.checkpoint_dir(tiny, 1), root, lambda at: changed_header(at, name, changes, length))


@fuzz(60)
@given(name=st.sampled_from(FILES[:6]), changes=CHANGES)
@example(name=FILES[0], changes=[((2, "set"), [float("inf"), 10**30], 0)])
def test_a_damaged_header_that_leads_anywhere(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, name: str, changes: Changes
) -> None:
    """The index is right, and looks for the tensor that was hurt where the header says that it is."""

    def damage(at: Path) -> None:
        index = (at / INDEX).read_bytes()
        changed_header(at, name, changes)
        (at / INDEX).write_bytes(index)

    hold(folder.checkpoint_dir(tiny, 1), tmp_path_factory.mktemp("damage"), damage)


TOML = st.sampled_from(
    [
        "1048576",
        "-1",
        "0",
        "9" * 4000,
        "1e300",
        "nan",
        "true",
        '""',
        '"x"',
        "[]",
        "[1, 2]",
        '["delta"]',
        "{a = 1}",
    ]
    + [
        "[" * 5000,
        '"\\u0000"',
        '"../../x"',
        "[" + '"delta", ' * 4000 + "]",
        "9223372036854775808",
        "1\nx = 1",
    ]
)


@fuzz(40)
@given(line=st.integers(0, 200), value=TOML)
def test_a_configuration_that_lies(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, line: int, value: str
) -> None:
    hold(whole, tmp_path_factory.mktemp("lie"), lambda at: changed_config(at, line, value))


@pytest.mark.parametrize(
    "setting", ["d_model", "mlp_width", "vocab_size", "attention_heads", "delta_chunk"]
)
def test_a_model_of_terabytes_is_not_tried(whole: Path, tmp_path: Path, setting: str) -> None:
    at = Path(shutil.copytree(whole, tmp_path / "step-1"))
    lines = (at / CONFIG).read_text().splitlines()
    changed_config(at, [line.startswith(f"{setting} = ") for line in lines].index(True), "1048576")
    told = refusal(lambda: load_model(at))
    assert setting == "delta_chunk" or (
        told and "[model] has more parameters than there are" in told
    )


@pytest.mark.parametrize(
    "content", [b"\xff", b"x", b"", b"a = 1", b"[" * 60_000, b"#" * (1 << 20)], ids=range(6)
)
def test_a_configuration_that_is_none(copy: Path, content: bytes) -> None:
    at = folder.checkpoint_dir(copy, 1)
    put(at, CONFIG, content)
    told = refusal(lambda: Checkpoint.open(at))
    assert told is not None and told.startswith(f"{at / CONFIG}: ")


# Going on from a checkpoint that lies.


def text_config(run_dir: Path, sound: Path, model: Path) -> Config:
    """A run of text whose documents go on in the next batch, with keys of the past."""
    return Config(
        run=RunConfig(name="run", dir=str(run_dir)),
        model=replace(reference.MODEL, vocab_size=0),
        sleep=replace(reference.SLEEP, window=4, eviction="sliding"),
        data=DataConfig(
            tokenizer=str(model),
            train=[CorpusConfig(path=str(sound))],
            heldout=str(sound),
            windows=1,
            carry=True,
        ),
        optimizer=replace(reference.OPTIMIZER),
        train=TrainConfig(
            steps=2,
            batch=2,
            log_every=1,
            eval_every=100,
            eval_batches=1,
            checkpoint_every=1,
            keep=3,
        ),
    )


def depo_config(run_dir: Path, sound: Path, model: Path) -> Config:
    return replace(
        text_config(run_dir, sound, model),
        sleep=replace(reference.SLEEP, when="context"),
        data=DataConfig(task="depo"),
        depo=DepoConfig(
            nodes=4, max_hops=2, context=8, queries=4, vocabulary=12, name_tokens=(1, 1)
        ),
    )


class Trainee:
    """A run's first step, and what goes on from it."""

    def __init__(
        self, make: Callable[[Path, Path, Path], Config], root: Path, sound: Path, model: Path
    ) -> None:
        self.make = partial(make, sound=sound, model=model)
        config = self.make(root)
        config.train.steps = 1
        self.run = train(config, progress=False)
        self.config = Checkpoint.of(self.run, 1).config
        self.source = make_source(self.config)
        self.model = HybridLM(
            self.config.model, self.config.sleep, make_stage(self.config)
        ).initialize(0)
        self.optimizer = MuonAdamW(
            self.model.named_parameters(), self.config.optimizer, self.config.guard.spike
        )
        self.engine = Engine(
            self.model, self.optimizer, zero=1, precision="fp32", tied=self.model.tied
        )

    def go_on(self, at: Path) -> TrainState:
        """Takes everything from a checkpoint, and the next batch."""
        checkpoint = Checkpoint.open(at)
        checkpoint.load_weights(HybridLM(self.config.model, self.config.sleep))
        now = give_back(checkpoint, self.model, self.optimizer, self.source, self.config)
        self.source.next()
        return now


@pytest.fixture(scope="session", params=[text_config, depo_config], ids=["text", "depo"])
def trainee(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sound: Path,
    model: Path,
) -> Iterator[Trainee]:
    made = Trainee(request.param, tmp_path_factory.mktemp("trainee"), sound, model)
    yield made
    made.engine.close()
    made.source.close()


@st.composite
def lies(draw: st.DrawFn) -> Callable[[Path], None]:
    """Changes what a run goes on from: its state, its index, or the header of some tensors."""
    changes = draw(CHANGES)
    return draw(
        st.sampled_from(
            [partial(changed_json, name=STATE, changes=changes)] * 2
            + [partial(changed_index, changes=changes)]
            + [
                partial(changed_header, name=f"{kind}.0.safetensors", changes=changes)
                for kind in KINDS
            ]
        )
    )


@fuzz(50)
@given(lie=lies())
def test_what_a_run_is_given_back(
    trainee: Trainee, tmp_path_factory: pytest.TempPathFactory, lie: Callable[[Path], None]
) -> None:
    root = tmp_path_factory.mktemp("lie")
    at = Path(shutil.copytree(folder.checkpoint_dir(trainee.run, 1), root / "step-1"))
    lie(at)
    told = refusal(lambda: trainee.go_on(at))
    assert told is None or str(root) in told or "another run with another run.name" in told, told
    shutil.rmtree(root)


@fuzz(4)
@given(lie=lies())
def test_a_run_that_is_resumed(
    trainee: Trainee, tmp_path_factory: pytest.TempPathFactory, lie: Callable[[Path], None]
) -> None:
    root = tmp_path_factory.mktemp("resumed")
    shutil.copytree(trainee.run, root / "runs" / "run")
    (root / "beside").write_text("not to be touched")
    lie(folder.checkpoint_dir(root / "runs" / "run", 1))
    refusal(lambda: train(trainee.make(root / "runs"), progress=False))
    assert {path.name for path in root.iterdir()} == {"runs", "beside"} and os.listdir(
        root / "runs"
    ) == ["run"]
    shutil.rmtree(root)


def saved_as(at: Path, kind: str, tensors: dict[str, torch.Tensor]) -> None:
    """Puts other tensors into a checkpoint, each whole."""
    part = write_part(at, 0, {kind: written.whole(tensors)})
    body = body_of(at)
    body["files"] |= part.files
    name = f"{kind}.0.safetensors"
    for tensor, where in part.slices[kind].items():
        piece = {"file": name, "box": where[name].box, "run": where[name].run}
        body["tensors"][kind][tensor] = {"shape": where[name].shape, "slices": [piece]}
    body["tensors"][kind] = {
        tensor: entry for tensor, entry in body["tensors"][kind].items() if tensor in tensors
    }
    write_index(at, body)


Tensors = dict[str, torch.Tensor]
TENSOR_LIES: list[tuple[str, str, Callable[[torch.Tensor], torch.Tensor], str]] = [
    ("state", "guard.sums", lambda t: t[:1], "guard.sums"),
    ("state", "rng.cpu", lambda t: t[:-8], "not as Hypnos writes it"),
    ("state", "rng.cpu", lambda t: t.float(), "not as Hypnos writes it"),
    ("state", "rng.cpu", lambda t: torch.full_like(t, 255), "not as Hypnos writes it"),
    ("state", "lanes.carries", lambda t: t[:1], "lanes.carries"),
    ("state", "lanes.carries", lambda t: t.float(), "lanes.carries"),
    ("state", "lanes.attendable", lambda t: t[0, 0], "not as Hypnos writes it"),
    ("state", "lanes.attendable", lambda t: t.repeat(1, 40), "keys of the past"),
    ("state", "lanes.position", lambda t: t.float(), "lanes.position"),
    ("state", "lanes.blocks.0.k", lambda t: t[:, :, :1], "lanes.blocks.0.k"),
    ("state", "lanes.blocks.1.S", lambda t: t[..., :-1], "lanes.blocks.1.S"),
    ("state", "lanes.blocks.1.S", lambda t: t.to(torch.complex64), "lanes.blocks.1.S"),
    ("model", "norm.weight", lambda t: t[:1], "norm.weight"),
    ("model", "norm.weight", lambda t: t.to(torch.complex64), "norm.weight"),
    ("optimizer", "exp_avg.norm.weight", lambda t: t[:1], "exp_avg.norm.weight"),
    ("optimizer", "exp_avg.norm.weight", lambda t: t.view(-1, 1), "exp_avg.norm.weight"),
]


@pytest.mark.parametrize("trainee", [text_config], indirect=True)
@pytest.mark.parametrize(("kind", "name", "lie", "message"), TENSOR_LIES)
def test_a_tensor_that_lies(
    trainee: Trainee,
    tmp_path: Path,
    kind: str,
    name: str,
    lie: Callable[[torch.Tensor], torch.Tensor],
    message: str,
) -> None:
    at = Path(shutil.copytree(folder.checkpoint_dir(trainee.run, 1), tmp_path / "step-1"))
    checkpoint = Checkpoint.open(at)
    tensors = {n: checkpoint.tensor(kind, n, partial=True) for n in checkpoint.names(kind)}
    saved_as(at, kind, tensors)
    trainee.go_on(at)
    saved_as(at, kind, tensors | {name: lie(tensors[name]).contiguous()})
    told = refusal(lambda: trainee.go_on(at))
    assert told and message in told and str(at) in told


def test_lanes_of_gigabytes_are_not_made(tmp_path: Path, trainee: Trainee) -> None:
    """Of what no rank has written there may be any amount."""
    at = Path(shutil.copytree(folder.checkpoint_dir(trainee.run, 1), tmp_path / "step-1"))
    body = body_of(at)
    lane = next((name for name in body["tensors"]["state"] if name.endswith(".S")), None)
    if lane is None:  # tasks have no documents that go on
        return
    body["tensors"]["state"][lane]["shape"][0] = 2**40
    write_index(at, body)
    told = refusal(lambda: trainee.go_on(at))
    assert told and f"tensor {lane} of state is " in told


@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_no_run_goes_on_from_numbers_that_are_none(
    trainee: Trainee, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(trainee.run, tmp_path / "run")
    at = folder.checkpoint_dir(tmp_path / "run", 1)
    checkpoint = Checkpoint.open(at)
    tensors = {n: checkpoint.tensor(kind, n) for n in checkpoint.names(kind)}
    saved_as(at, kind, {n: torch.full_like(t, float("nan")) for n, t in tensors.items()})
    told = refusal(lambda: train(trainee.make(tmp_path), progress=False))
    assert told and str(at) in told and f" of {kind} is not finite" in told


@pytest.mark.parametrize("trainee", [text_config], indirect=True)
@pytest.mark.parametrize(
    "lanes",
    [
        [],
        [[0, 0]],
        [[0, 0]] * 3,
        [[0, 0], [0, 10**9]],
        [[0, 0], [-1, 0]],
        [[0, 0], [0, -1]],
        [[0, 0], [0.0, 0]],
    ]
    + [[[0, 0], [2**60, 0]], [[0, 0], [True, 0]], [[0, 0], [0]], [0, 0], "ab", None, {"a": 1}],
    ids=range(14),
)
def test_lanes_that_stand_nowhere(trainee: Trainee, tmp_path: Path, lanes: Any) -> None:
    assert_nowhere(trainee, tmp_path, {"lanes": lanes})


@pytest.mark.parametrize("trainee", [depo_config], indirect=True)
@pytest.mark.parametrize("rows", [-1, 2**63, 1.0, True, "1", None, [], 10**4000], ids=range(8))
def test_rows_that_are_none(trainee: Trainee, tmp_path: Path, rows: Any) -> None:
    assert_nowhere(trainee, tmp_path, {"rows": rows})


def assert_nowhere(trainee: Trainee, tmp_path: Path, place: dict[str, Any]) -> None:
    """A position in the data that is none is refused."""
    at = Path(shutil.copytree(folder.checkpoint_dir(trainee.run, 1), tmp_path / "step-1"))
    state = json.loads((at / STATE).read_text())
    state["data"] |= place
    put(at, STATE, json.dumps(state).encode())
    told = refusal(lambda: trainee.go_on(at))
    assert told and f"{at}: whole, but not as Hypnos writes it" in told


def test_links_are_not_followed_out_of_the_run(tmp_path: Path) -> None:
    """Where a run writes, whoever made its folder may have laid a link to something else."""
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    run.mkdir()
    elsewhere.write_text("precious")
    (run / ".config.toml.draft").symlink_to(elsewhere)
    write_atomically(run / "config.toml", "new")
    (run / "lock").symlink_to(elsewhere)
    with pytest.raises(UserError, match="lock: is a link"), folder.locked(run):
        pass
    assert elsewhere.read_text() == "precious" and (run / "config.toml").read_text() == "new"
