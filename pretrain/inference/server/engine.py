"""The one thread that runs the model: sessions of many requests read, answer and sleep in turns.

A turn is one token of every session that is answering, in one forward pass; then one piece, at most
a window, of one input that is still being read; then one pass of one sleep. So a long input or a
long sleep delays the others' next token by at most a window's time, a window of a context by its N
passes. Sessions of finished requests whose window is full sleep when nothing else waits.

Requests come from other threads, and get their events back through `Job.emit`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from pretrain.inference.sampling import Choice
from pretrain.inference.server.errors import ApiError, bad_request, too_busy
from pretrain.inference.server.job import Facts, Failed, Finished, Heard, Job, Reading, Said
from pretrain.inference.server.meters import Meters
from pretrain.inference.session import Session, read_together

log = logging.getLogger("hypnos.serve")


class Engine:
    """The thread and its queue.

    Args:
        batch: maximum answers in progress. queue: maximum waiting requests.
    """

    def __init__(self, batch: int, queue: int) -> None:
        self.batch, self.queue, self.meters = batch, queue, Meters()
        self._waiting: deque[deque[Job]] = deque()  # the jobs of each request
        self._asleep: deque[tuple[Session, Callable[[], None]]] = deque()  # finished, owing passes
        self._active: list[Job] = []
        self._changed = threading.Condition()
        self._closed, self._end = False, 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def check_room(self, choices: int) -> None:
        """Call before a request's sessions take memory.

        Args:
            choices: answers to one input, which run together.
        Raises:
            ApiError: 400 if they can never fit, 429 if too many wait, 503 if the server stops.
        """
        with self._changed:
            if self._closed:
                raise _stopping()
            if choices > self.batch:
                raise bad_request(
                    f"n is at most {self.batch} here, the number of answers generated at a time "
                    "(--batch); ask for the rest in another request.",
                    "n", "invalid_value",
                )  # fmt: skip
            self._drop_gone()
            if len(self._waiting) >= self.queue:
                raise too_busy(f"{self.queue} requests are already waiting; try again in a moment.")

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues all jobs of a request, as one entry. ApiError as in `check_room`."""
        with self._changed:
            self.check_room(max(job.answers for job in jobs))
            self._waiting.append(deque(jobs))
            self._changed.notify()

    def sleep_later(self, session: Session, done: Callable[[], None]) -> None:
        """Schedules the passes that a session owes for when nothing else waits."""
        with self._changed:
            self._asleep.append((session, done))
            self._changed.notify()

    def stop(self, within: float) -> None:
        """Accepts nothing more. Waiting jobs fail now, running ones after `within` seconds, unless
        they have ended by then.
        """
        with self._changed:
            self._closed, self._end = True, time.monotonic() + within
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread; what is unfinished fails."""
        self.stop(0)
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether it accepts jobs."""
        return not self._closed

    @property
    def load(self) -> dict[str, int]:
        """How many answers are in progress, requests waiting, and sessions sleeping."""
        with self._changed:
            self._drop_gone()
            waiting, asleep = len(self._waiting), len(self._asleep)
        return {"active": self._under_way, "waiting": waiting, "sleeping": asleep}

    # ---- the thread

    def _run(self) -> None:
        try:
            while self._admit():
                self._answer()
                self._read_a_piece()
                self._sleep_a_pass()
        except Exception as error:  # a bug of ours: without this thread nothing is answered
            log.critical("the engine has stopped: restart the server", exc_info=error)
        with self._changed:
            self._closed = True
            self._refuse([*self._active, *(job for request in self._waiting for job in request)])

    def _admit(self) -> bool:
        """Waits until there is something to do; False if the thread must end."""
        with self._changed:
            self._active = [job for job in self._active if self._is_wanted(job)]
            while not (self._closed or self._waiting or self._active or self._asleep):
                self._changed.wait()
            self._drop_gone()
            if self._closed:
                self._refuse([job for request in self._waiting for job in request])
                self._waiting.clear()
                return bool(self._active) and time.monotonic() < self._end
            while self._waiting and self._under_way + self._waiting[0][0].answers <= self.batch:
                self._active.append(self._waiting[0].popleft())
                if not self._waiting[0]:
                    self._waiting.popleft()
            return True

    def _refuse(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.emit(Failed(_stopping()))

    @property
    def _under_way(self) -> int:
        """Answers in progress, including those that start once their input is read."""
        return sum(job.answers for job in list(self._active))

    def _drop_gone(self) -> None:
        """Drops cancelled jobs from the queue, to make room for others."""
        wanted = (deque(filter(self._is_wanted, request)) for request in self._waiting)
        self._waiting = deque(request for request in wanted if request)

    def _is_wanted(self, job: Job) -> bool:
        """False if the client has gone, which is counted: call it once per dropped job."""
        if job.cancelled:
            self.meters.answers.labels("cancelled").inc()
        return not job.cancelled

    def _answer(self) -> None:
        """One token of each answer that can continue, in one forward pass; chooses the next
        ones.
        """
        jobs = [job for job in self._active if job.next is not None and not job.session.pending]
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
        """Samples a token, and ends the answer if it is the last."""
        barred = job.ends if job.count < job.least else ()
        choice = job.sampler.choose(logits, job.session.seen, job.said, barred)
        if choice.token in job.ends:
            self._finish(job, "stop", job.stream.finish(), (), choice)
            return
        self._time_token(job)
        text = job.stream.push(choice.token)
        job.count, job.next, job.tail = job.count + 1, choice.token, job.tail + text
        job.said[choice.token] += 1
        job.emit(Said(text, choice, Facts.of(job.session)))
        if job.stream.stopped is not None:  # the session is kept without the stop string
            job.session = job.safe or job.session
            self._finish(job, "stop", "", job.stream.tokenizer.encode(job.tail))
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
        """Reads at most a window of one job's input; the next turn is another job's."""
        job = self._first(lambda job: job.next is None and not job.session.pending)
        if job is not None:
            self._guarded(job, partial(self._read, job))

    def _read(self, job: Job) -> None:
        session = job.session
        if job.context:
            self._read_context(job)
            return
        stop = min(len(job.tokens), job.read + session.model.sleep.window - session.filled)
        if job.marks:
            stop = min(stop, job.marks[0][0])
        logits = session.read(job.tokens[job.read : stop], every=job.hears)
        if job.hears:
            known = job.tokens[job.read + 1 : stop + 1]  # including the next piece's first token
            job.emit(Heard(job.sampler.told(known, logits[: len(known)])))
            logits = logits[-1]
        self.meters.read.inc(stop - job.read)
        job.read = stop
        job.emit(Reading(Facts.of(session)))
        if job.marks and job.marks[0][0] == stop:
            job.marks.popleft()[1](session.fork())
        if stop == len(job.tokens):
            self._begin_answers(job, logits.cpu())

    def _read_context(self, job: Job) -> None:
        """Reads a window of a job's context, with its sleep."""
        before = job.session.sleep_passes
        self.meters.read.inc(len(job.context[0]))
        job.session.read_context(job.context.popleft())
        self.meters.passes.inc(job.session.sleep_passes - before)
        job.emit(Reading(Facts.of(job.session)))

    def _begin_answers(self, job: Job, logits: Tensor) -> None:
        others, job.others = job.others, ()
        for other in others:
            other.session, other.read = job.session.fork(), job.read
            self._active.append(other)
        for each in (job, *others):
            if each.most == 0:
                self._finish(each, "length", "", ())
            else:
                self._guarded(each, partial(self._choose, each, logits))

    def _sleep_a_pass(self) -> None:
        """One pass of sleep, of a job that waits for it, or else of an idle session."""
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
                log.exception("the sleep of a session failed", exc_info=error)
            self._asleep.popleft()

    def _sleep(self, job: Job) -> None:
        job.session.sleep_pass()
        self.meters.passes.inc()
        job.emit(Reading(Facts.of(job.session)))

    def _first(self, condition: Callable[[Job], bool]) -> Job | None:
        """The first active job that meets a condition; moves it to the end (round robin)."""
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
        """Fails one job; the others continue."""
        self.meters.answers.labels("error").inc()
        if not isinstance(error, ApiError):
            log.exception("a request failed", exc_info=error)
        if job in self._active:
            self._active.remove(job)
        job.emit(Failed(error))


def _stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", type="server_error")
