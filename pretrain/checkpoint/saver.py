"""Asynchronous checkpointing: a thread on each rank writes the rank's part while training goes on.

    prepare    rank 0 makes the draft folder
    write      every rank writes its files, syncs them to disk, and announces what it wrote
    publish    rank 0 adds the common files, renames the folder, updates `latest`, and deletes old
               checkpoints

The threads communicate through the launcher's key-value store, so that none of their collectives
can be matched with one of training. If a rank fails, it says so there, and the save fails on all
ranks. They wait until all have read that, so no rank exits before all know why. A rank waits for
another at most parallel.timeout, and then takes it for dead.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist
from safetensors import SafetensorError

from parallel import mesh, talk, watchdog
from parallel.slices import Piece
from pretrain.checkpoint.folder import draft_dir, make_draft, publish, remove_draft
from pretrain.checkpoint.write import Part, write_common, write_part
from pretrain.config.schema import Config
from pretrain.errors import PeerGone, UserError, storage_error, write_fix


@dataclass
class Snapshot:
    """A rank's part of a checkpoint."""

    step: int
    # on the CPU, by kind and name; no longer modified by anyone
    tensors: Mapping[str, Mapping[str, Piece]]
    state: Mapping[str, Any]  # JSON-serialisable; the same on every rank
    in_skip_streak: bool = False  # the step was skipped: no run goes back to this checkpoint


class Saver:
    """Saves a run's checkpoints; every rank has one and saves the same steps.

    Leaving it as a context manager waits for a save in progress, in a world of one. If training
    fails inside after a save has failed (because other ranks have left for that reason), the
    UserError of the save is raised.
    """

    def __init__(self, run: Path, config: Config, step: int | None) -> None:
        """
        Args:
            step: of the checkpoint that the run resumes from; None: there is none.
        """
        self._run, self._config = run, config
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._store = talk.store("saver")
        self._store.set_timeout(timedelta(seconds=config.parallel.timeout))
        self._lock = threading.Lock()
        self._last = step  # the step that was last saved, or is being saved
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None  # of a save that has failed
        self._all_know = threading.Event()  # set once all ranks know of the error

    # ---- the training loop's side

    def save(self, step: int, capture: Callable[[], Snapshot]) -> None:
        """Starts to save a step, unless it is saved already; first waits for the previous save.

        Args:
            capture: makes the snapshot.
        """
        with self._lock:
            if step != self._last:
                self._finish()
                snapshot = capture()
                self._last = step
                self._thread = threading.Thread(
                    target=self._save, args=(snapshot,), name="saver", daemon=True
                )
                self._thread.start()

    def wait(self) -> None:
        """Waits until everything is on disk. UserError if it could not be written."""
        with self._lock:
            self._finish()

    def raise_if_failed(self) -> None:
        """UserError if a finished save has failed; does not wait for one in progress."""
        if self._all_know.is_set():
            assert self._error is not None
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # only in a world of one: otherwise another rank may be dead, and this would wait for it
        if self._thread is not None and self._world == 1:
            self._thread.join()
        if self._error and isinstance(error, Exception) and not isinstance(error, UserError):
            raise self._error from error

    def _finish(self) -> None:
        while self._thread is not None and self._thread.is_alive():
            watchdog.doing("waiting until step", self._last, "is on disk")  # however long
            self._thread.join(1.0)
        self._thread = None
        self.raise_if_failed()

    # ---- the thread's side

    def _save(self, snapshot: Snapshot) -> None:
        step = snapshot.step
        try:
            self._prepare(step)
            self._write(snapshot)
            self._publish(snapshot)
            return
        except UserError as error:
            self._error = error
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            self._error = PeerGone(f"step {step} was not saved, a rank is gone: {reason}")
        except Exception as error:  # a bug of ours: training must not go on as if this were saved
            traceback.print_exc()
            self._error = UserError(f"step {step} was not saved: {error!r}")
        with suppress(dist.DistError):  # a rank is dead, or has left once it saw that all know
            self._store.set(f"{step}/known/{self._rank}", "")
            known = [f"{step}/known/{rank}" for rank in range(self._world)]
            self._store.wait(known, timedelta(seconds=talk.STORE_TIMEOUT_S))
        self._all_know.set()

    def _prepare(self, step: int) -> None:
        """Rank 0 makes the draft folder; every rank waits for it."""
        if self._rank == 0:
            self._announce(step, "prepared", partial(make_draft, self._run, step))
        self._outcome(step, "prepared")

    def _write(self, snapshot: Snapshot) -> None:
        """Every rank writes its files. If one cannot, all learn of it in the next phase."""
        act = partial(write_part, self._draft(snapshot), self._rank, snapshot.tensors)
        self._announce(snapshot.step, f"written/{self._rank}", act)

    def _publish(self, snapshot: Snapshot) -> None:
        """Rank 0 publishes the draft once all have written; every rank waits for it."""
        if self._rank == 0:
            self._announce(snapshot.step, "published", partial(self._complete, snapshot))
        try:
            self._outcome(snapshot.step, "published")
        except UserError:
            if self._rank == 0:
                remove_draft(self._run, snapshot.step)
            raise

    def _complete(self, snapshot: Snapshot) -> None:
        """Rank 0's part of publishing. UserError: a rank could not write, or did not answer."""
        step, train = snapshot.step, self._config.train
        written = [f"written/{rank}" for rank in range(self._world)]
        keys = [f"{step}/{event}" for event in written]
        try:
            # wait for all before reading any: on an error the draft is removed, and no rank may
            # still be writing into it
            self._store.wait(keys)
        except dist.DistStoreError:
            silent = [str(rank) for rank, key in enumerate(keys) if not self._store.check([key])]
            told = f"step {step} was not saved: no word from rank {', '.join(silent)}"
            raise PeerGone(told) from None
        parts = [Part(*self._outcome(step, event)) for event in written]
        for key in keys:  # no one else reads them, and they would stay in the launcher's memory
            self._store.delete_key(key)
        write_common(self._draft(snapshot), step, parts, snapshot.state, self._config)
        publish(self._run, step, train.keep, train.keep_every, keep_all=snapshot.in_skip_streak)

    def _draft(self, snapshot: Snapshot) -> Path:
        return draft_dir(self._run, snapshot.step)

    # ---- communication between ranks

    def _announce(self, step: int, event: str, act: Callable[[], Any]) -> None:
        """Calls `act`, and tells all ranks its value, or why it failed."""
        try:
            told = {"value": act()}
        except UserError as error:  # another rank's
            told = {"error": str(error), "status": error.status}
        except Exception as error:  # whatever it is, the others must learn of it
            known = isinstance(error, OSError | SafetensorError)
            reason = (getattr(error, "strerror", None) or str(error)) if known else repr(error)
            who = mesh.describe_rank()
            where = f"{self._run / 'checkpoints'}: step {step} cannot be saved by {who}"
            kind, fix = UserError, "check the file system there"
            if isinstance(error, OSError):
                kind, fix = storage_error(error), write_fix(error)
            fix = f"the checkpoints before it are intact: {fix}, or set run.dir"
            told = {"error": f"{where}: {reason}; {fix}", "status": kind.status}
        self._store.set(f"{step}/{event}", json.dumps(told))

    def _outcome(self, step: int, event: str) -> Any:
        """Waits for the result of an event, and returns its value. UserError if it failed."""
        told = json.loads(self._store.get(f"{step}/{event}"))
        if "error" in told:
            raise UserError(told["error"], told["status"])
        return told["value"]
