"""The pool of processes that tokenise a corpus: each writes units and reports its progress."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event

from pretrain.data.folder import Tally
from pretrain.data.units import Done, Unit
from pretrain.errors import UserError

POLL_S = 0.25
Written = tuple[Tally, Done]  # of a unit
Write = Callable[..., Written]  # `write_unit`


def in_processes(
    write: Write, units: Sequence[Unit], processes: int, tell: Callable[[int, Done], None]
) -> list[Written]:
    """The result of `write` for each unit. UserError of the first that fails."""
    context = multiprocessing.get_context("spawn")  # a fork server would be global to the process
    told: multiprocessing.Queue[tuple[int, Done]] = context.Queue()
    over = context.Event()  # set when one has failed: the others need not finish their files
    pool = ProcessPoolExecutor(processes, context, initializer=_listen, initargs=(told, over))
    try:
        with _without_interrupts():
            futures: list[Future[Written]] = [
                pool.submit(_write_and_tell, write, unit) for unit in units
            ]
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=POLL_S, return_when="FIRST_COMPLETED")
            _pass_on(told, tell)
            for future in done:
                future.result()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise UserError(
            "a tokenising process was killed, perhaps because the machine ran out of memory; "
            "lower --workers"
        ) from None
    finally:
        over.set()
        pool.shutdown(cancel_futures=True)
        _pass_on(told, tell)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Blocks Ctrl-C until the end; processes started inside never get it. A terminal sends it to
    all processes: this one reports it, while each of the others would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pass_on(
    told: multiprocessing.Queue[tuple[int, Done]], tell: Callable[[int, Done], None]
) -> None:
    while True:
        try:
            tell(*told.get_nowait())
        except queue.Empty:
            return


_told: multiprocessing.Queue[tuple[int, Done]]  # in a process of the pool
_over: Event


def _listen(told: multiprocessing.Queue[tuple[int, Done]], over: Event) -> None:
    global _told, _over
    _told, _over = told, over
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exits when the parent dies: a killed parent cannot tell its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a process of a pool"
    parent.join()
    os._exit(1)


def _write_and_tell(write: Write, unit: Unit) -> Written:
    def tell(done: Done) -> None:
        if _over.is_set():
            raise CancelledError
        _told.put((unit.number, done))

    return write(unit, tell=tell)
