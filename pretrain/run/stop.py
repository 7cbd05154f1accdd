"""Stops a run early: on a signal (`SIGNALS`), all ranks save the last complete step and exit.

    running --> asked --> agreed(step) --> saved --> exit (status: pretrain/exit_status.py)
       |          |
       |          '- another Ctrl-C -----------------> exit at once
       '- the run is done: signals are no longer handled

running        the main thread trains; a thread receives signals as they arrive (signals.py), even
               while the main thread waits in a collective; another (`_stop`) waits to be asked
asked          some rank got a signal and told all. Each keeps its main thread from beginning
               another update, and announces which update it has begun last
agreed(step)   the last update that any rank has begun. Until an update begins, the weights are
               those of the last complete step, so a thread can save that step while a long sleep
               or an evaluation is running, whose work is then discarded. If some rank has begun
               an update, the others go on to its end
saved          by all ranks together, from the threads; rank 0, which may host the store, exits last

    deadline: the time to write a checkpoint
              + the rest of the step, if a rank has begun its update already
              + STORE_TIMEOUT_S seconds if a rank is dead; then the others exit without saving
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
# SIGINTs within so many seconds count as one: the terminal and the launcher both send it
ONE_PRESS_S = 1.0


class Stop:
    """Watches for signals while a run trains. Every rank has one."""

    def __init__(
        self, step: int, save: Callable[[], None], say: Callable[[str], None], timeout: float
    ) -> None:
        """
        Args:
            step: where the run starts.
            save: saves the last complete step together with the other ranks; called in a thread.
            say: prints one line for the user.
            timeout: seconds that an update in progress may take.
        """
        self._save, self._say, self._timeout = save, say, timeout
        self._changed = threading.Condition()
        self._begun = self._done = step  # the last update begun, and the last one completed
        self._limit: int | None = None  # no later update may begin
        self._closed = False
        self._store = talk.store("stop")
        self._rank, self._world = dist.get_rank(), dist.get_world_size()

    # ---- the main thread: running

    @contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Inside, the weights are updated; blocks for ever if the update must not begin."""
        with self._changed:
            self._changed.wait_for(lambda: self._limit is None or step <= self._limit)
            self._begun = step
        yield
        with self._changed:
            self._done = step
            self._changed.notify_all()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, signals stop the run. Only in a process's main thread, as Python handles signals
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
                    for key in ("begun", "gone"):  # for ranks that are asked to stop only now
                        self._store.set(f"{key}/{self._rank}", str(self._done))
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            with suppress(dist.DistError):
                self._store.set(f"reason/{self._rank}", "")
            # if the run is being stopped, the thread ends the process
            thread.join(talk.STORE_TIMEOUT_S)

    # ---- the thread that stops the run: asked -> agreed -> saved -> exit

    def _stop(self) -> None:
        """Waits until some rank asks, and ends the process."""
        store = self._connect()
        try:
            store.wait([f"reason/{self._rank}"], talk.NO_TIMEOUT)
            reason = store.get(f"reason/{self._rank}").decode()
            number = int(store.get("number")) if reason else 0
        except dist.DistError:  # rank 0 has left: a common stop is no longer possible
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
        # the main thread may be blocked for ever, so this thread must end the process in any case
        except Exception as error:
            self._say(f"stopped by {reason}; nothing new is saved: {error!r}")
        talk.leave_together(store, self._rank, range(self._world))
        _exit(status)

    def _agree(self, store: dist.Store) -> int:
        """Lets the step that will be saved be completed, and none after it; returns that step."""
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
        """A connection to the store for one thread: a wait blocks its connection."""
        return self._store.clone()  # type: ignore[attr-defined]


class _Messenger:
    """In the thread that receives signals: running -> asked."""

    def __init__(self, store: Any, world: int) -> None:
        self._store, self._world = store, world
        self._pressed: float | None = None  # when Ctrl-C was pressed

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
    """Ends the process, whatever its main thread is doing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader may have gone
            stream.flush()
    os._exit(status)
