"""Accidental damage to checkpoints is reported by name, and the run resumes from an older one;
other files are left alone; contradictory numbers are never used.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from parallel.slices import Piece, Slice
from pretrain import files
from pretrain.checkpoint import Checkpoint, Unreadable, folder, index, latest_valid, steps, verify
from pretrain.checkpoint.index import (
    CONFIG,
    INDEX,
    KINDS,
    STATE,
    describe,
    read_index,
    tensor_file,
    write_index,
)
from pretrain.checkpoint.write import write_common, write_part
from pretrain.config.schema import Config, DataConfig, DepoConfig, RunConfig, TrainConfig
from pretrain.errors import UserError
from pretrain.exit_status import STORAGE, USER_ERROR
from pretrain.trainer import train
from tests.checkpoint import written
from tests.fuzz.harness import bounded, hypnos, places, refusal, tree
from tests.run import reference

TENSORS = [f"{kind}.{rank}.safetensors" for kind in KINDS for rank in range(2)]
FILES = [*TENSORS, STATE, CONFIG, INDEX]
NEWEST = "using the newest that exists"


def in_halves(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, Piece]:
    """A rank's half of the tensors, as ZeRO shards them over two ranks."""
    pieces = {}
    for name, tensor in tensors.items():
        run = (0, tensor.numel() // 2) if rank == 0 else (tensor.numel() // 2, tensor.numel())
        where = Slice.share(tuple(tensor.shape), {}, run)
        pieces[name] = Piece(where, tensor.flatten()[slice(*run)])
    return pieces


def write(run: Path, step: int) -> Path:
    """Writes a checkpoint of two ranks, with two weights."""
    weights = {"embed.weight": torch.arange(6.0).view(2, 3), "norm.weight": torch.ones(3)}
    tensors = {
        "model": {name: step * value for name, value in weights.items()},
        "optimizer": {f"momentum.{name}": step * value for name, value in weights.items()},
        "state": {"guard.sums": step * torch.arange(1.0, 3.0, dtype=torch.float64)},
    }
    folder.make_draft(run, step)
    draft = folder.draft_dir(run, step)
    parts = [
        write_part(draft, rank, {k: in_halves(t, rank) for k, t in tensors.items()})
        for rank in range(2)
    ]
    write_common(draft, step, parts, written.STATE | {"tokens": step}, written.CONFIG)
    folder.publish(run, step, keep=9, keep_every=0)
    return folder.checkpoint_dir(run, step)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("tiny")
    for step in (1, 2):
        write(run, step)
    return run


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    return Path(shutil.copytree(tiny, tmp_path / "run"))


@pytest.fixture
def at(run: Path) -> Path:
    """The folder of its newest checkpoint."""
    return folder.checkpoint_dir(run, 2)


def found(run: Path) -> tuple[int, list[str]]:
    """The step that a run resumes from, and the messages about it."""
    said: list[str] = []
    checkpoint = latest_valid(run, said.append)
    assert checkpoint
    return checkpoint.step, said


# Damage: something has happened to the files.


@pytest.mark.parametrize("name", FILES)
def test_every_byte_and_every_length(at: Path, name: str) -> None:
    """A sample of them, different each time."""
    path = at / name
    content = path.read_bytes()
    some = places(len(content), 250)
    damaged = [content[:length] for length in some]
    for place in some:
        flipped = bytes([content[place] ^ 1 << place % 8])
        damaged.append(content[:place] + flipped + content[place + 1 :])
    damaged += [content + b"\0", content * 2, b" " + content, b"\xff" * len(content), b"{}", b"[]"]
    for number, damage in enumerate(damaged):
        path.write_bytes(damage)
        with pytest.raises(UserError) as error:
            verify(at)
        assert str(error.value).startswith(f"{path}: "), (number, some)
        assert len(str(error.value).splitlines()) == 1
    path.write_bytes(content)
    verify(at)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": Path.touch,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "the other step's": lambda path: shutil.copy(path.parent.parent / "step-1" / path.name, path),
    "the other rank's": lambda path: shutil.copy(
        path.with_name(path.name.replace(".0.", ".1.")), path
    ),
}
CASES = [(name, kind) for kind in list(INSTEAD)[:-2] for name in FILES]
CASES += [(name, "the other step's") for name in FILES if name != CONFIG]  # which is the same
CASES += [(name, "the other rank's") for name in TENSORS if ".0." in name]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_something_else_in_a_files_place(run: Path, at: Path, name: str, kind: str) -> None:
    (at / name).unlink()
    INSTEAD[kind](at / name)
    told = refusal(lambda: Checkpoint.open(at))
    # another step's index is intact in itself
    assert told and told.startswith(f"{at}/" if name == INDEX else f"{at / name}: ")
    assert found(run) == (1, [f"{told}; trying the checkpoint before it"])


def test_the_doctor_tells_the_same(run: Path, at: Path) -> None:
    (at / "model.1.safetensors").unlink()
    outcome = hypnos("doctor", run)
    whole, damaged, fix = outcome.out.splitlines()
    assert (outcome.status, outcome.err, whole.split()[:3]) == (1, "", ["ok", "step", "1"])
    assert (
        damaged.split()[:3] == ["fail", "step", "2"] and "model.1.safetensors: missing" in damaged
    )
    assert "remove" not in fix and "delete" not in fix


def test_all_damaged(run: Path) -> None:
    for step in (1, 2):
        (folder.checkpoint_dir(run, step) / STATE).unlink()
    told = refusal(lambda: latest_valid(run, lambda line: None))
    assert told and "every checkpoint is damaged; restore one" in told


@pytest.mark.parametrize(
    ("number", "passed_over"), [(errno.EIO, True), (errno.ESTALE, False), (errno.EACCES, False)]
)
def test_what_the_system_does_not_give_is_not_damaged(
    run: Path, number: int, passed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is skipped will be replaced."""

    def fails(path: Path) -> str:
        if path.parent.name == "step-2":
            raise OSError(number, os.strerror(number), str(path))
        return files.sha256(path)

    monkeypatch.setattr(index, "sha256", fails)
    if passed_over:
        assert found(run)[0] == 1
    else:
        told = f"step-2/.*: cannot be read: {os.strerror(number)}; check the file system"
        with pytest.raises(Unreadable, match=told) as raised:
            latest_valid(run, pytest.fail)
        assert raised.value.status == (STORAGE if number == errno.ESTALE else USER_ERROR)


def another_format(at: Path) -> None:
    (at / INDEX).write_text('{"format": 99, "chunks": []}')


def another_setting(at: Path) -> None:
    by_name, slices = read_index(at)
    (at / CONFIG).write_text((at / CONFIG).read_text().replace("steps", "stairs"))
    write_index(at, by_name | {CONFIG: describe(at / CONFIG)}, slices)


@pytest.mark.parametrize("convert", [another_format, another_setting])
def test_another_versions_checkpoint_is_not_passed_over(
    run: Path, at: Path, convert: Callable[[Path], None]
) -> None:
    convert(at)
    with pytest.raises(Unreadable, match=rf"{at}/.*use the version|use that version"):
        latest_valid(run, pytest.fail)


def test_checkpoints_that_changed_places(run: Path) -> None:
    """Each is whole: it would be wrong to resume from it, and wrong to replace it."""
    first, second = (folder.checkpoint_dir(run, step) for step in (1, 2))
    first.rename(run / "aside")
    second.rename(first)
    (run / "aside").rename(second)
    with pytest.raises(Unreadable, match=f"{second}: holds the checkpoint of step 1; rename"):
        latest_valid(run, pytest.fail)
    assert hypnos("doctor", run).out.count("fail") == 2


# What is not in the index proves nothing.

HIDDEN = [".DS_Store", ".nfs000000012", "._model.0.safetensors", ".ipynb_checkpoints"]


@pytest.mark.parametrize("name", [*HIDDEN, "notes", "model.2.safetensors", "two\nlines", "y" * 250])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_lies_beside_proves_nothing(
    run: Path, name: str, make: Callable[[Path], None]
) -> None:
    """In a checkpoint and beside it; hidden files are ignored silently, others with a note."""
    places = [folder.checkpoint_dir(run, 2), run / "checkpoints", run]
    for place in places:
        make(place / name)
    step, said = found(run)
    assert step == 2 and len(said) == (name not in HIDDEN)
    assert all(line.isprintable() and "is ignored" in line for line in said)
    outcome = hypnos("doctor", run)
    assert outcome.status == 0 and outcome.out.count("whole") == 2
    notes = [line for line in outcome.out.splitlines() if line.startswith("note")]
    assert len(notes) == (0 if name in HIDDEN else 2)
    folder.remove_incomplete(run)
    write(run, 3)
    assert all((place / name).exists() for place in places)


@pytest.mark.parametrize("name", ["step-00", "step-01", "step--1", "step-", "step-2.old", "Step-3"])
def test_names_that_no_checkpoint_has(run: Path, name: str) -> None:
    """They are not checkpoints, to be neither read nor deleted."""
    path = Path(shutil.copytree(folder.checkpoint_dir(run, 1), run / "checkpoints" / name))
    assert steps(run) == [1, 2] and found(run) == (2, [])
    (run / "checkpoints" / "latest").write_text(name)
    pointer = f"{run}/checkpoints/latest"
    assert found(run) == (2, [f"{pointer}: damaged, it names no checkpoint; {NEWEST}"])
    folder.make_draft(run, 3)
    folder.publish(run, 3, keep=1, keep_every=0)
    assert steps(run) == [3] and path.exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_checkpoint_that_is_no_folder(run: Path, at: Path, tmp_path: Path, kind: str) -> None:
    """It is deleted when its turn comes; what a link leads to is read, and stays."""
    aside = at.rename(tmp_path / "aside")
    {**INSTEAD, "file": Path.touch, "link": lambda path: path.symlink_to(aside)}[kind](at)
    step, said = found(run)
    assert (step, len(said)) == ((2, 0) if kind == "link" else (1, 1))
    folder.make_draft(run, 3)
    folder.publish(run, 3, keep=1, keep_every=0)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-3", "latest"}
    assert (aside / INDEX).is_file()


@pytest.mark.parametrize(
    "content", [b"", b"s", b"step-", b"\0" * 7, b"\xff", b"step-2\nstep-1\n", b"../step-1", b"1"]
)
def test_garbage_in_latest(run: Path, content: bytes) -> None:
    (run / "checkpoints" / "latest").write_bytes(content)
    step, (told,) = found(run)
    assert step == 2 and told.endswith(NEWEST)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "dangling"])
def test_something_else_in_the_place_of_latest(run: Path, kind: str) -> None:
    path = run / "checkpoints" / "latest"
    path.unlink()
    INSTEAD[kind](path)
    with bounded():
        step, said = found(run)
    assert step == 2 and all(line.endswith(NEWEST) for line in said)


def test_latest_names_what_is_not_there(run: Path) -> None:
    (run / "checkpoints" / "latest").write_text("step-3\n")
    missing = f"{folder.checkpoint_dir(run, 3)}: missing, but `latest` names it"
    assert found(run) == (2, [f"{missing}; trying the checkpoint before it"])


# Contradictions: every hash is correct.

WEIGHT = ("model", "embed.weight")


def tell(at: Path, **lie: Any) -> None:
    """Changes the place that the index gives for rank 0's piece of a weight."""
    by_name, slices = read_index(at)
    pieces = slices["model"]["embed.weight"]
    pieces["model.0.safetensors"] = pieces["model.0.safetensors"]._replace(**lie)
    write_index(at, by_name, slices)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"run": (2, 5)}, "overlap"),  # rank 1 has [3, 6): 3 and 4 twice, 0 and 1 never
        ({"run": (0, 2)}, "3 elements instead of 2"),
        ({"run": (3, 0)}, "outside"),
        ({"run": (5, 8)}, "outside"),
        ({"box": ((0, 1), (0, 3))}, "overlap"),
        ({"box": ((0, 2**52), (0, 3))}, "outside"),
        ({"shape": (2**20, 2**20)}, f"6 of {2**40} elements"),
    ],
    ids=range(7),
)
def test_pieces_that_make_no_whole(at: Path, lie: dict[str, Any], message: str) -> None:
    """Nothing is allocated for them."""
    tell(at, **lie)
    told = refusal(lambda: Checkpoint.open(at).tensor(*WEIGHT))
    assert told and told.startswith(f"{at / INDEX}: tensor embed.weight of model: ")
    assert message in told


def with_tensors(at: Path, kind: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Changes the tensors in rank 0's file of one kind."""
    by_name, slices = read_index(at)
    path = at / tensor_file(kind, 0)
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)
    write_index(at, by_name | {path.name: describe(path)}, slices)


def test_pieces_of_two_dtypes(at: Path) -> None:
    with_tensors(at, "model", torch.Tensor.int)
    told = refusal(lambda: Checkpoint.open(at).tensor(*WEIGHT))
    assert told and "embed.weight of model: its pieces are of different dtypes" in told


def test_a_piece_that_is_missing(at: Path) -> None:
    by_name, slices = read_index(at)
    del slices["model"]["embed.weight"]["model.1.safetensors"]
    write_index(at, by_name, slices)
    told = refusal(lambda: Checkpoint.open(at).tensor(*WEIGHT))
    assert told and "embed.weight of model: its pieces have 3 of 6 elements" in told


class Payload:
    """Executes a function when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("name", TENSORS[:1] + [STATE, CONFIG, INDEX])
def test_nothing_in_a_checkpoint_is_executed(run: Path, at: Path, name: str) -> None:
    proof = run / "executed"
    content = pickle.dumps(Payload(proof))
    by_name, slices = read_index(at)
    (at / name).write_bytes(content)
    if name != INDEX:
        write_index(at, by_name | {name: describe(at / name)}, slices)
    before = tree(run)
    with pytest.raises(ValueError):  # our UserError, or the parser's
        Checkpoint.open(at).tensor(*WEIGHT)
    assert tree(run) == before and not proof.exists()
    pickle.loads(content)
    assert proof.exists()


@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_no_run_goes_on_from_numbers_that_are_none(tmp_path: Path, kind: str) -> None:
    config = Config(
        run=RunConfig(name="run", dir=str(tmp_path)),
        model=replace(reference.MODEL, vocab_size=0),
        sleep=replace(reference.SLEEP, when="context"),
        data=DataConfig(task="depo"),
        depo=DepoConfig(
            nodes=4, max_hops=2, context=8, queries=4, vocabulary=12, name_tokens=(1, 1)
        ),
        train=TrainConfig(steps=1, batch=2, eval_batches=1),
        optimizer=reference.OPTIMIZER,
    )
    at = folder.checkpoint_dir(train(config, progress=False), 1)
    with_tensors(at, kind, lambda t: t.fill_(torch.nan))
    config.train.steps = 2
    told = refusal(lambda: train(config, progress=False))
    assert told and str(at) in told and f" of {kind} is not finite" in told
