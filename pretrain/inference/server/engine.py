"""The one thread that has the model: sessions of many requests read, answer and sleep in turns.

A turn is one token of every session that answers, in one forward pass; then one piece of one input
that is still being read, at most a window; then one pass of one sleep. So a long input and a long
sleep cost the others' next token a window's time, and no more. Sessions of finished requests whose
window is full are slept over when nothing else waits.

Requests come from other threads and get their events back there, by `Job.emit`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from pretrain.inference.sampling import Choice, Sampler
from pretrain.inference.server.errors import ApiError, too_busy
from pretrain.inference.server.meters import Meters
from pretrain.inference.session import Session, read_together
from pretrain.inference.text import TextStream

log = logging.getLogger("hypnos.serve")


@dataclass(frozen=True)
class Facts:
    """What a session holds, for whoever watches it."""

    tokens: int  # read so far
    filled: int  # of them in the open window
    window: int
    slept: int  # windows slept over
    passes: int
    pending: int  # passes of sleep that are owed
    bytes: int  # of its memory, whatever it has read

    @staticmethod
    def of(session: Session) -> Facts:
        return Facts(
            session.position, session.filled, session.model.sleep.window, session.slept,
            session.passes, session.pending, session.memory.nbytes,
        )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """Some of the input has been read, or a pass of sleep made."""

    facts: Facts


@dataclass(frozen=True)
class Heard:
    """What the model says of tokens of the input, each after those before it."""

    choices: Sequence[Choice]


@dataclass(frozen=True)
class Said:
    """A token of the answer; its text may be held back until it is known to be no stop string."""

    text: str
    choice: Choice
    facts: Facts


@dataclass(frozen=True)
class Finished:
    """The answer's end.

    unread   tokens that the conversation has and the session has not read yet
    by       the token that ended it and is no part of it, if one did
    """

    text: str
    reason: str  # stop or length
    session: Session
    unread: tuple[int, ...]
    by: Choice | None = None


@dataclass(frozen=True)
class Failed:
    error: BaseException


Event = Reading | Heard | Said | Finished | Failed


@dataclass(eq=False)
class Job:
    """One answer to be given.

    session    what it goes on from; nobody else's
    tokens     to be read first, at least one
    marks      places in `tokens` where a copy of the session is handed on: (how many are read, to)
    stream     where the answer's tokens become text
    encode     text to tokens
    most       tokens of the answer
    end        a token that ends it, and is no part of it
    others     further answers to the same input
    hears      what the model says of the input is told, too
    """

    session: Session
    tokens: Sequence[int]
    sampler: Sampler
    stream: TextStream
    encode: Callable[[str], list[int]]
    most: int
    end: int
    emit: Callable[[Event], None]
    marks: deque[tuple[int, Callable[[Session], None]]] = field(default_factory=deque)
    others: Sequence[Job] = ()
    hears: bool = False
    cancelled: bool = False
    read: int = 0  # of tokens
    count: int = 0  # tokens of the answer
    next: int | None = None  # a token that is sampled and not read yet
    safe: Session | None = None  # as it was before the tokens whose text is held back
    tail: str = ""  # text that they have given
    arrived: float = field(default_factory=time.perf_counter)
    spoke: float = 0.0  # when its last token came


class Engine:
    """The thread and its queue.

    Args:
        batch: sessions that are at work at a time. queue: requests that may wait for that.
    """

    def __init__(self, batch: int, queue: int) -> None:
        self.batch, self.queue, self.meters = batch, queue, Meters()
        self._waiting: deque[Job] = deque()
        self._asleep: deque[tuple[Session, Callable[[], None]]] = deque()  # finished, owing passes
        self._active: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job. ApiError 429 if too many wait, 503 if the server stops."""
        with self._changed:
            if self._closed:
                raise _stopping()
            if len(self._waiting) >= self.queue:
                raise too_busy(f"{self.queue} requests wait already; try again in a moment.")
            self._waiting.append(job)
            self._changed.notify()

    def sleep_later(self, session: Session, done: Callable[[], None]) -> None:
        """Makes the passes that a session owes, when nothing else waits."""
        with self._changed:
            self._asleep.append((session, done))
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread; what is unfinished fails."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether what is submitted is answered."""
        return not self._closed

    @property
    def load(self) -> dict[str, int]:
        """How many are at work, wait, and sleep."""
        active, waiting, asleep = len(self._active), len(self._waiting), len(self._asleep)
        return {"active": active, "waiting": waiting, "sleeping": asleep}

    # ---- the thread

    def _run(self) -> None:
        try:
            while self._admit():
                answering = [job for job in self._active if job.next is not None]
                self._answer([job for job in answering if not job.session.pending])
                self._read_a_piece()
                self._sleep_a_pass()
        except Exception as error:  # ours: without this thread nothing is answered any more
            log.critical("the engine has stopped: start the server again", exc_info=error)
        with self._changed:
            self._closed = True
            left = [*self._active, *self._waiting]
        for job in left:
            job.emit(Failed(_stopping()))

    def _admit(self) -> bool:
        """Waits until there is something to do; False when the thread shall end."""
        with self._changed:
            self._active = [job for job in self._active if self._is_wanted(job)]
            while not (self._closed or self._waiting or self._active or self._asleep):
                self._changed.wait()
            while self._waiting and len(self._active) < self.batch:
                job = self._waiting.popleft()
                if self._is_wanted(job):
                    self._active.append(job)
            return not self._closed

    def _is_wanted(self, job: Job) -> bool:
        """Asked once of a job that is not: it is left out then, and counted."""
        if job.cancelled:
            self.meters.answers.labels("cancelled").inc()
        return not job.cancelled

    def _answer(self, jobs: Sequence[Job]) -> None:
        """One token of each, in one forward pass; and the choice of the next."""
        if not jobs:
            return
        try:
            tokens = [job.next for job in jobs if job.next is not None]
            logits = read_together([job.session for job in jobs], tokens)
        except Exception as error:
            for job in jobs:
                self._fail(job, error)
            return
        for job, row in zip(jobs, logits.cpu(), strict=True):
            self._guarded(job, partial(self._choose, job, row))

    def _choose(self, job: Job, logits: Tensor) -> None:
        """Samples a token after what was read, and ends the answer if it is its last."""
        choice = job.sampler.choose(logits, job.session.seen)
        if choice.token == job.end:
            self._finish(job, "stop", job.stream.finish(), (), choice)
            return
        self._time_token(job)
        text = job.stream.push(choice.token)
        job.count, job.next, job.tail = job.count + 1, choice.token, job.tail + text
        job.emit(Said(text, choice, Facts.of(job.session)))
        if job.stream.stopped is not None:  # the session goes on without the stop string
            job.session = job.safe or job.session
            self._finish(job, "stop", "", job.encode(job.tail))
        elif job.count == job.most:
            self._finish(job, "length", job.stream.finish(), (choice.token,))
        elif not job.stream.holds:
            job.safe, job.tail = None, ""
        elif job.safe is None:
            job.safe = job.session.fork()  # before it reads the token

    def _time_token(self, job: Job) -> None:
        now, meters = time.perf_counter(), self.meters
        meters.said.inc()
        if job.count:
            meters.between.observe(now - job.spoke)
        else:
            meters.first.observe(now - job.arrived)
        job.spoke = now

    def _finish(
        self, job: Job, reason: str, text: str, unread: Sequence[int], by: Choice | None = None
    ) -> None:
        self.meters.answers.labels(reason).inc()
        self.meters.whole.observe(time.perf_counter() - job.arrived)
        self._active.remove(job)
        job.emit(Finished(text, reason, job.session, tuple(unread), by))

    def _read_a_piece(self) -> None:
        """At most a window of one job's input; the next turn is another's."""
        job = self._first(lambda job: job.next is None and not job.session.pending)
        if job is not None:
            self._guarded(job, partial(self._read, job))

    def _read(self, job: Job) -> None:
        session = job.session
        stop = min(len(job.tokens), job.read + session.model.sleep.window - session.filled)
        if job.marks:
            stop = min(stop, job.marks[0][0])
        logits = session.read(job.tokens[job.read : stop], every=job.hears)
        assert logits is not None, "what is read is predicted, too"
        if job.hears:
            known = job.tokens[job.read + 1 : stop + 1]  # the next piece's first among them
            job.emit(Heard(job.sampler.told(known, logits[: len(known)])))
            logits = logits[-1]
        self.meters.read.inc(stop - job.read)
        job.read = stop
        job.emit(Reading(Facts.of(session)))
        if job.marks and job.marks[0][0] == stop:
            job.marks.popleft()[1](session.fork())
        if stop == len(job.tokens):
            self._begin_answers(job, logits.cpu())

    def _begin_answers(self, job: Job, logits: Tensor) -> None:
        for other in job.others:
            other.session, other.read = job.session.fork(), job.read
            self._active.append(other)
        for each in (job, *job.others):
            if each.most == 0:
                self._finish(each, "length", "", ())
            else:
                self._guarded(each, partial(self._choose, each, logits))

    def _sleep_a_pass(self) -> None:
        """Of a job that waits for it; or, if there is no such job, of a session that is idle."""
        job = self._first(lambda job: bool(job.session.pending))
        if job is not None:
            self._guarded(job, partial(self._sleep, job))
        elif self._asleep and all(job.next is not None for job in self._active):
            session, done = self._asleep[0]
            try:
                session.sleep_pass()
                self.meters.passes.inc()
                if session.pending:
                    return
                done()
            except Exception as error:
                log.exception("a session could not be slept over", exc_info=error)
            self._asleep.popleft()

    def _sleep(self, job: Job) -> None:
        job.session.sleep_pass()
        self.meters.passes.inc()
        job.emit(Reading(Facts.of(job.session)))

    def _first(self, condition: Callable[[Job], bool]) -> Job | None:
        """The first active job that meets a condition; it becomes the last."""
        for job in self._active:
            if condition(job):
                self._active.remove(job)
                self._active.append(job)
                return job
        return None

    def _guarded(self, job: Job, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """A request's failure is its own; the others go on."""
        self.meters.answers.labels("error").inc()
        if not isinstance(error, ApiError):
            log.exception("a request failed", exc_info=error)
        if job in self._active:
            self._active.remove(job)
        job.emit(Failed(error))


def _stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", type="server_error")
