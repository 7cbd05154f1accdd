"""Ending a run before its time: on SIGTERM or SIGUSR1 all ranks save the last whole step, and exit.

A signal reaches a thread of its own at once, even while the main thread waits inside a collective.
That thread tells all ranks; each then holds its main thread back from updating weights. Until an
update begins, the weights are those of the last whole step, so that step can be saved from beside
while a long sleep, or an evaluation, goes on, and what goes on is given up. If some rank has begun
an update, the others go on to its end, and that step is saved.

    deadline: the time that a checkpoint takes to be written
              + what is left of the step, if a rank has begun its update already
              + STORE_TIMEOUT_S seconds if a rank is dead, after which the others end without saving
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from parallel import mesh
from parallel.mesh import STORE_TIMEOUT_S
from pretrain.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Watches for signals while a run trains. Every rank has one."""

    def __init__(
        self, step: int, save: Callable[[], None], say: Callable[[str], None], timeout: float
    ) -> None:
        """
        Args:
            step: where the run begins.
            save: saves the last whole step together with the other ranks; called in a thread.
            say: tells the user one line.
            timeout: seconds that an update which has begun may take.
        """
        self._save, self._say, self._patience = save, say, timeout
        self._changed = threading.Condition()
        self._begun = self._done = step  # the last update that has begun, and the last that is over
        self._limit: int | None = None  # no later one may begin
        self._store, self._rank, self._world = (
            mesh.store("stop"),
            dist.get_rank(),
            dist.get_world_size(),
        )
        self._closed = False

    @contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Inside, the run goes from one whole step to the next; waits for ever if it is not to."""
        with self._changed:
            self._changed.wait_for(lambda: self._limit is None or step <= self._limit)
            self._begun = step
        yield
        with self._changed:
            self._done = step
            self._changed.notify_all()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, signals stop the run. Only in a process's main thread: elsewhere Python takes
        none.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ear, mouth = socket.socketpair()
        threads = [
            threading.Thread(target=self._listen, args=(ear,), name="signals", daemon=True),
            threading.Thread(target=self._stop, name="stop", daemon=True),
        ]
        mouth.setblocking(False)
        wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        for thread in threads:
            thread.start()
        try:
            yield
            with suppress(dist.DistError):  # rank 0 may have left already
                for word in ("begun", "gone"):  # what those hear who are told to stop only now
                    self._store.set(f"{word}/{self._rank}", str(self._done))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            mouth.close()
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            with suppress(dist.DistError):
                self._store.set(f"wake/{self._rank}", "")
            for thread in threads:
                thread.join(
                    STORE_TIMEOUT_S
                )  # if the run is being stopped, that thread ends the process

    def _connect(self) -> Any:
        """The store for one thread: a wait keeps its connection to itself."""
        return self._store.clone()  # type: ignore[attr-defined]

    def _listen(self, ear: socket.socket) -> None:
        """Tells all ranks of a signal. ear: where the numbers of signals arrive; shut when the run
        is over.
        """
        store = self._connect()
        while numbers := ear.recv(1):
            if numbers[0] in SIGNALS:
                with suppress(dist.DistError):
                    store.set("number", str(numbers[0]))
                    for rank in range(self._world):
                        store.set(
                            f"wake/{rank}", f"{signal.Signals(numbers[0]).name} on {mesh.place()}"
                        )
        ear.close()

    def _stop(self) -> None:
        """Waits for a rank's word, and ends the process."""
        store = self._connect()
        try:
            store.wait([f"wake/{self._rank}"], mesh.NO_TIMEOUT)
            reason = store.get(f"wake/{self._rank}").decode()
            status = 128 + int(store.get("number")) if reason else 0
        except dist.DistError:  # rank 0 has left: nobody can stop together any more
            return
        if not reason:
            return
        try:
            step = self._agree(store)
            self._save()
            self._say(
                f"stopped by {reason} after step {step}, which is saved; the same command goes on from there"
            )
        except UserError as error:
            self._say(f"stopped by {reason}; {error}")
        except dist.DistError:
            self._say(f"stopped by {reason}; not all ranks answer, so nothing new is saved")
            self._leave(status)
        # the main thread may be held back for ever: this thread must not end before it
        except Exception as error:
            self._say(f"stopped by {reason}; nothing new is saved: {error!r}")
        with suppress(dist.DistError):
            store.set(f"gone/{self._rank}", "")
            if self._rank == 0:  # the store may live here: it goes last
                store.wait(
                    [f"gone/{rank}" for rank in range(self._world)],
                    timedelta(seconds=STORE_TIMEOUT_S),
                )
        self._leave(status)

    def _agree(self, store: dist.Store) -> int:
        """Lets the step that is to be saved come to its end, and nothing beyond. Returns it."""
        with self._changed:
            self._limit = self._begun
        store.set(f"begun/{self._rank}", str(self._begun))
        everyone = [f"begun/{rank}" for rank in range(self._world)]
        store.wait(everyone, timedelta(seconds=STORE_TIMEOUT_S))
        with self._changed:
            self._limit = step = max(int(store.get(key)) for key in everyone)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._done == step, self._patience)
            if self._done != step:
                raise UserError(f"step {step} did not come to its end, so nothing new is saved")
        return step

    @staticmethod
    def _leave(status: int) -> None:
        """Ends the process, of which the main thread may be anywhere."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
