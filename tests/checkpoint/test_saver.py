"""Saving during training, on one rank: what `save` promises to a loop that continues at once.

How long a write takes is not left to chance. The draft of `latest`, which is written last, is a
pipe: until somebody reads from it, a save cannot end.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parallel import mesh, talk
from parallel.engine import Engine
from pretrain.checkpoint import Saver, Snapshot, steps, verify
from pretrain.checkpoint.folder import checkpoint_dir, pointed_at
from pretrain.checkpoint.write import write_part
from pretrain.errors import UserError, write_fix
from pretrain.exit_status import PEER_GONE
from pretrain.run.guard import Rollbacks
from pretrain.run.optimizer import MuonAdamW
from pretrain.run.state import CarriedState, TrainState
from tests.checkpoint.written import CONFIG, whole
from tests.run import reference

HUNG = 60.0  # seconds after which a save that waits for its own end is released


class Weights:
    """Weights in training."""

    def __init__(self, run: Path) -> None:
        self.run, self.value = run, torch.zeros(1000)
        # the step of each snapshot, and of the newest checkpoint at that time
        self.taken: list[tuple[int, int | None]] = []

    def of(self, step: int) -> Callable[[], Snapshot]:
        """Returns a function that takes the snapshot of a step."""

        def take() -> Snapshot:
            self.taken.append((step, pointed_at(self.run)))
            return Snapshot(step, {"model": whole({"w": self.value.clone()})}, {})

        return take


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return Weights(tmp_path)


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    mesh.initialize()
    with Saver(tmp_path, CONFIG, None) as saver:
        yield saver


@contextmanager
def held_back(run: Path, step: int) -> Iterator[None]:
    """In this context, the save of a step cannot end."""
    draft, pipe, plain = run / "checkpoints/.latest.draft", run / "pipe", run / "plain"
    draft.parent.mkdir(exist_ok=True)
    os.mkfifo(draft)
    os.link(draft, pipe)
    plain.write_text(f"step-{step}\n")
    with ExitStack() as opened:

        def let_go() -> None:
            plain.rename(draft)  # a writer that has not opened the pipe yet finds a file
            opened.callback(os.close, os.open(pipe, os.O_RDWR))

        timer = threading.Timer(HUNG, let_go)
        timer.start()
        yield
        timer.cancel()
        let_go()
        for thread in threading.enumerate():
            if thread.name == "saver":
                thread.join()


def saved(run: Path, step: int) -> float:
    """The value of all weights in a checkpoint, which must be whole."""
    verify(checkpoint_dir(run, step))
    (value,) = load_file(checkpoint_dir(run, step) / "model.0.safetensors")["w"].unique().tolist()
    return float(value)


def test_training_goes_on_while_a_save_does(saver: Saver, weights: Weights, tmp_path: Path) -> None:
    with held_back(tmp_path, 1):
        saver.save(1, weights.of(1))
        weights.value += 1
        assert pointed_at(tmp_path) is None
        saver.raise_if_failed()
    saver.wait()
    assert pointed_at(tmp_path) == 1 and saved(tmp_path, 1) == 0


def test_a_save_waits_for_the_one_before(saver: Saver, weights: Weights, tmp_path: Path) -> None:
    with held_back(tmp_path, 1):
        saver.save(1, weights.of(1))
        weights.value += 1
        second = threading.Thread(target=saver.save, args=(2, weights.of(2)))
        second.start()
    second.join()
    saver.wait()
    assert weights.taken == [(1, None), (2, 1)]
    assert [saved(tmp_path, 1), saved(tmp_path, 2)] == [0, 1]


def test_a_step_is_saved_once(saver: Saver, weights: Weights, tmp_path: Path) -> None:
    for step in (1, 1, 2, 2):
        saver.save(step, weights.of(step))
        saver.wait()
    assert [step for step, _ in weights.taken] == steps(tmp_path) == [1, 2]


def test_a_resumed_run_does_not_save_where_it_begins(weights: Weights, tmp_path: Path) -> None:
    mesh.initialize()
    with Saver(tmp_path, CONFIG, 3) as saver:
        saver.save(3, weights.of(3))
        saver.wait()
    assert not weights.taken and not steps(tmp_path)


def test_a_snapshot_that_cannot_be_taken_is_not_taken_for_saved(
    saver: Saver, weights: Weights, tmp_path: Path
) -> None:
    def no_memory() -> Snapshot:
        raise MemoryError

    with pytest.raises(MemoryError):
        saver.save(1, no_memory)
    saver.save(1, weights.of(1))
    saver.wait()
    assert saved(tmp_path, 1) == 0


def test_whatever_ends_a_save_is_told(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh.initialize()

    def breaks(*_: object) -> None:
        raise TypeError("ours")

    for step in ("write_common", "remove_draft"):
        monkeypatch.setattr(f"pretrain.checkpoint.saver.{step}", breaks)
    with Saver(tmp_path, CONFIG, None) as saver:
        saver.save(1, weights.of(1))
        with pytest.raises(UserError, match=r"step 1 was not saved: TypeError\('ours'\)"):
            saver.wait()
    assert not steps(tmp_path)


def test_an_error_is_told_by_whatever_comes_next(weights: Weights, tmp_path: Path) -> None:
    mesh.initialize()
    (tmp_path / "checkpoints").write_text("no folder")
    told = r"step 1 cannot be saved by rank 0 on .*; the checkpoints before it are intact"
    with Saver(tmp_path, CONFIG, None) as saver:
        saver.save(1, weights.of(1))
        for method in (
            saver.wait,
            saver.wait,
            saver.raise_if_failed,
            lambda: saver.save(2, weights.of(2)),
        ):
            with pytest.raises(UserError, match=told):
                method()
    assert [step for step, _ in weights.taken] == [1]


def test_an_error_explains_what_breaks_after_it(weights: Weights, tmp_path: Path) -> None:
    """But it does not replace another explanation."""
    mesh.initialize()
    (tmp_path / "checkpoints").write_text("no folder")
    for broken, told in (
        (RuntimeError("connection closed"), "cannot be saved"),
        (UserError("no tokens"), "no tokens"),
    ):
        with pytest.raises(UserError, match=told), Saver(tmp_path, CONFIG, None) as saver:
            saver.save(1, weights.of(1))
            raise broken


def test_a_rank_that_dies_in_a_save_is_waited_for_no_longer_than_any(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second rank never sends a message."""
    mesh.initialize()
    monkeypatch.setattr(talk, "STORE_TIMEOUT_S", 0.1)
    config = replace(CONFIG, parallel=replace(CONFIG.parallel, timeout=0.2))
    with Saver(tmp_path, config, None) as saver:
        saver._world = 2
        saver.save(1, weights.of(1))
        thread = saver._thread
        assert thread is not None
        thread.join(HUNG)
        assert not thread.is_alive()
        told = "step 1 was not saved: no word from rank 1"
        with pytest.raises(UserError, match=told) as raised:
            saver.wait()
        assert raised.value.status == PEER_GONE
    assert not steps(tmp_path)


def test_the_store_does_not_keep_what_the_ranks_have_told(saver: Saver, weights: Weights) -> None:
    before = saver._store.num_keys()
    for step in (1, 2, 3):
        saver.save(step, weights.of(step))
        saver.wait()
        assert not saver._store.check([f"{step}/part/0"])
    assert saver._store.num_keys() - before <= 2 * 3  # only that it has begun and is done


def test_a_snapshot_is_a_copy() -> None:
    """Of the weights and the optimiser's moments, which the next step changes in place."""
    mesh.initialize()
    model = reference.model()
    optimizer = MuonAdamW(model.named_parameters(), reference.OPTIMIZER)
    engine = Engine(model, optimizer, zero=0, precision="fp32")
    tokens = torch.zeros((), dtype=torch.int64)
    snapshot = TrainState(0, CarriedState.empty(1), {}, tokens, Rollbacks(), {}, True).snapshot(
        engine, optimizer, model
    )
    kinds = {"model": engine.weights(), "optimizer": optimizer.pieces()}
    before = {
        kind: {name: piece.values.clone() for name, piece in named.items()}
        for kind, named in kinds.items()
    }
    for named in kinds.values():
        for piece in named.values():
            piece.values.add_(1)
    optimizer.filter.sums.add_(1)
    for kind, named in before.items():
        assert named and all(
            torch.equal(snapshot.tensors[kind][name].values, value) for name, value in named.items()
        )
    assert not torch.equal(snapshot.tensors["state"]["guard.sums"].values, optimizer.filter.sums)
    engine.close()


def test_what_the_system_refuses_safetensors_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        write_part(tmp_path / "gone", 0, {"model": whole({"a": torch.ones(3)})})
    assert refused.value.filename == str(tmp_path / "gone/model.0.safetensors")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EACCES, "fix its permissions"),
        (errno.ENOSPC, "make room there"),
        (errno.EROFS, "check the file system there"),
    ],
)
def test_the_fix_of_a_failed_write(number: int, fix: str) -> None:
    assert write_fix(OSError(number, os.strerror(number))) == fix
