"""Ending a run before its time: on a signal (`SIGNALS`) all ranks save the last whole step.

    running --> asked --> agreed(step) --> saved --> exit (status: pretrain/exit_status.py)
       |          |
       |          '- another Ctrl-C -----------------> exit at once
       '- the run is done: nothing more is heard

running        the main thread trains; a thread hears signals as they arrive (signals.py), even
               while the main thread waits in a collective; another (`_stop`) waits to be asked
asked          some rank had a signal and told all. Each holds its main thread back from beginning
               another update, and says which update it has begun last
agreed(step)   the last one that any rank has begun. Until an update begins, the weights are those
               of the last whole step, so that step can be saved from beside while a long sleep, or
               an evaluation, goes on, and what goes on is given up. If some rank has begun an
               update, the others go on to its end
saved          by all ranks together, from the threads; rank 0, where the store may live, exits last

    deadline: the time that a checkpoint takes to be written
              + what is left of the step, if a rank has begun its update already
              + STORE_TIMEOUT_S seconds if a rank is dead, after which the others end without saving
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from parallel import mesh, talk
from pretrain.errors import UserError
from pretrain.exit_status import after_signal
from pretrain.run.signals import hearing, not_ignored

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # and SIGHUP, if nohup does not hide it
# seconds in which a second SIGINT is the first one still: terminal and launcher both send it
ONE_PRESS_S = 1.0


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
        self._save, self._say, self._timeout = save, say, timeout
        self._changed = threading.Condition()
        self._begun = self._done = step  # the last update that has begun, and the last that is over
        self._limit: int | None = None  # no later one may begin
        self._closed = False
        self._store = talk.store("stop")
        self._rank, self._world = dist.get_rank(), dist.get_world_size()

    # ---- the main thread: running

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
        """Inside, signals stop the run. Only in a process's main thread, as Python takes signals
        nowhere else.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        thread = threading.Thread(target=self._stop, name="stop", daemon=True)
        thread.start()
        try:
            heard = (*SIGNALS, *not_ignored(signal.SIGHUP))
            tell = _Messenger(self._connect(), self._world).tell
            with hearing(heard, tell, talk.STORE_TIMEOUT_S):
                yield
                with suppress(dist.DistError):  # rank 0 may have left already
                    for key in ("begun", "gone"):  # for those that are asked to stop only now
                        self._store.set(f"{key}/{self._rank}", str(self._done))
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            with suppress(dist.DistError):
                self._store.set(f"reason/{self._rank}", "")
            # if the run is being stopped, that thread ends the process
            thread.join(talk.STORE_TIMEOUT_S)

    # ---- the thread that stops the run: asked -> agreed -> saved -> exit

    def _stop(self) -> None:
        """Waits until some rank asks, and ends the process."""
        store = self._connect()
        try:
            store.wait([f"reason/{self._rank}"], talk.NO_TIMEOUT)
            reason = store.get(f"reason/{self._rank}").decode()
            number = int(store.get("number")) if reason else 0
        except dist.DistError:  # rank 0 has left: nobody can stop together any more
            return
        if not reason:
            return
        status = after_signal(number)
        try:
            if number == signal.SIGINT:
                again = "press Ctrl-C again to end at once without saving"
                self._say(f"saving the last whole step; {again}")
            step = self._agree(store)
            self._save()
            done = f"stopped by {reason} after step {step}, which is saved"
            self._say(f"{done}; run the same command to resume")
        except UserError as error:
            self._say(f"stopped by {reason}; {error}")
        except dist.DistError:
            self._say(f"stopped by {reason}; not all ranks answer, so nothing new is saved")
            _exit(status)
        # the main thread may be held back for ever: this thread must not end before it
        except Exception as error:
            self._say(f"stopped by {reason}; nothing new is saved: {error!r}")
        talk.leave_together(store, self._rank, range(self._world))
        _exit(status)

    def _agree(self, store: dist.Store) -> int:
        """Lets the step that is to be saved come to its end, and nothing beyond. Returns it."""
        with self._changed:
            self._limit = self._begun
        store.set(f"begun/{self._rank}", str(self._begun))
        everyone = [f"begun/{rank}" for rank in range(self._world)]
        store.wait(everyone, timedelta(seconds=talk.STORE_TIMEOUT_S))
        with self._changed:
            self._limit = step = max(int(store.get(key)) for key in everyone)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._done == step, self._timeout)
            if self._done != step:
                raise UserError(f"step {step} did not finish, so nothing new is saved")
        return step

    def _connect(self) -> Any:
        """The store for one thread: a wait keeps its connection to itself."""
        return self._store.clone()  # type: ignore[attr-defined]


class _Messenger:
    """In the thread that hears signals: running -> asked."""

    def __init__(self, store: Any, world: int) -> None:
        self._store, self._world = store, world
        self._pressed: float | None = None  # when Ctrl-C was

    def tell(self, number: signal.Signals) -> None:
        """Tells all ranks of a signal."""
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._pressed is not None:
                if now - self._pressed < ONE_PRESS_S:
                    return
                _exit(after_signal(number))
            self._pressed = now
        with suppress(dist.DistError):
            self._store.set("number", str(int(number)))
            for rank in range(self._world):
                self._store.set(f"reason/{rank}", f"{number.name} on {mesh.describe_rank()}")


def _exit(status: int) -> None:
    """Ends the process, of which the main thread may be anywhere."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # whoever read it may have gone
            stream.flush()
    os._exit(status)
