"""Saving beside training: a thread on each rank writes what the rank holds, while the next steps
run.

The ranks talk through the launcher's key-value store, so that no collective of the threads can meet
one of training:

    rank 0          makes the draft folder          says so
    every rank      writes and flushes its files    says what it wrote, or why it could not
    rank 0          adds what they have in common, renames the folder, moves the pointer, deletes what is not kept
                                                    says that it is done, or why not
    if not, every rank      waits until all have heard why: then none that leaves is a riddle to the others

A rank waits for another's word for parallel.timeout at most, and then takes it for dead.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist
from safetensors import SafetensorError

from parallel import mesh, watchdog
from parallel.slices import Piece
from pretrain.checkpoint import folder
from pretrain.checkpoint.write import Part, write_common, write_part
from pretrain.config.schema import Config
from pretrain.errors import UserError


@dataclass
class Snapshot:
    """What a rank gives to a checkpoint."""

    step: int
    # on the CPU, by kind and name; nobody writes to them any more
    tensors: Mapping[str, Mapping[str, Piece]]
    state: Mapping[str, Any]  # JSON-able; the same on every rank


class Saver:
    """Saves a run's checkpoints; every rank has one and saves the same steps.

    As a context it ends a save that goes on. If training breaks there after a save has failed, as
    it does where other ranks have left because of that, UserError says why the save has failed.
    """

    def __init__(self, run: Path, config: Config, step: int | None) -> None:
        """
        Args:
            step: of the checkpoint that the run goes on from; None: from none.
        """
        self._run, self._config = run, config
        self._store, self._rank, self._world = (
            mesh.store("saver"),
            dist.get_rank(),
            dist.get_world_size(),
        )
        self._store.set_timeout(timedelta(seconds=config.parallel.timeout))
        self._lock = threading.Lock()
        self._last = step  # the step that was saved last, or is being saved
        self._thread: threading.Thread | None = None
        self._error: str | None = None  # of a save that has failed
        self._all_know = threading.Event()  # the error

    def save(self, step: int, take: Callable[[], Snapshot]) -> None:
        """Begins to save a step, unless that has been done; waits while the one before is still
        being written.

        Args:
            take: gives the snapshot.
        """
        with self._lock:
            if step != self._last:
                self._finish()
                self._last = step
                self._thread = threading.Thread(
                    target=self._write, args=(take(),), name="saver", daemon=True
                )
                self._thread.start()

    def wait(self) -> None:
        """Until everything is on disk. Raises UserError if it cannot be written."""
        with self._lock:
            self._finish()

    def check(self) -> None:
        """Raises UserError if a save that is over has failed; does not wait for one that goes on."""
        if self._all_know.is_set():
            raise UserError(self._error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # no other rank is needed for that: one may be dead
        if self._thread is not None and self._world == 1:
            self._thread.join()
        if self._error and isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(self._error) from error

    def _finish(self) -> None:
        while self._thread is not None and self._thread.is_alive():
            watchdog.doing("waits until step", self._last, "is on disk")  # as long as that takes
            self._thread.join(1.0)
        self._thread = None
        self.check()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._write_together(snapshot)
            return
        except UserError as error:
            self._error = str(error)
        except dist.DistError as error:
            self._error = (
                f"step {snapshot.step} was not saved, a rank has gone: {str(error).splitlines()[0]}"
            )
        with suppress(dist.DistError):  # one has gone, or has left because it knows that all know
            self._store.set(f"{snapshot.step}/known/{self._rank}", "")
            known = [f"{snapshot.step}/known/{rank}" for rank in range(self._world)]
            self._store.wait(known, timedelta(seconds=mesh.STORE_TIMEOUT_S))
        self._all_know.set()

    def _write_together(self, snapshot: Snapshot) -> None:
        """This rank's part in what the ranks do in turn. A failure anywhere is raised on all as
        UserError.
        """
        step, run = snapshot.step, self._run

        def write_mine() -> Part:
            self._hear(f"{step}/begun")
            return write_part(folder.draft(run, step), self._rank, snapshot.tensors)

        def publish() -> None:
            written = [f"{step}/part/{rank}" for rank in range(self._world)]
            try:
                # before any is heard: a draft in which one still writes could not be removed
                self._store.wait(written)
            except dist.DistStoreError:
                silent = [
                    str(rank) for rank, key in enumerate(written) if not self._store.check([key])
                ]
                raise UserError(
                    f"step {step} was not saved: no word from rank {', '.join(silent)}"
                ) from None
            parts = [Part(*self._hear(key)) for key in written]
            for key in written:  # nobody else hears it, and a launcher's memory is no archive
                self._store.delete_key(key)
            write_common(folder.draft(run, step), step, parts, snapshot.state, self._config)
            folder.publish(run, step, self._config.train.keep, self._config.train.keep_every)

        if self._rank == 0:
            self._tell(f"{step}/begun", step, lambda: folder.begin(run, step))
        self._tell(f"{step}/part/{self._rank}", step, write_mine)
        if self._rank == 0:
            self._tell(f"{step}/done", step, publish)
        try:
            self._hear(f"{step}/done")
        except UserError:
            if self._rank == 0:
                folder.give_up(run, step)  # what is half written takes room
            raise

    def _tell(self, key: str, step: int, act: Callable[[], Any]) -> None:
        """Does something and tells the other ranks what came of it."""
        try:
            told = {"value": act()}
        except UserError as error:  # another rank's
            told = {"error": str(error)}
        except Exception as error:  # whatever it is, the others must hear of it
            known = isinstance(error, OSError | SafetensorError)
            reason = (getattr(error, "strerror", None) or str(error)) if known else repr(error)
            where = f"{self._run / 'checkpoints'}: step {step} cannot be saved by {mesh.place()}: {reason}"
            told = {
                "error": f"{where}; the checkpoints before it are intact: make room there, or set run.dir"
            }
        self._store.set(key, json.dumps(told))

    def _hear(self, key: str) -> Any:
        """What a rank has told; UserError if it has failed."""
        told = json.loads(self._store.get(key))
        if "error" in told:
            raise UserError(told["error"])
        return told["value"]
