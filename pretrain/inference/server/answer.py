"""One request's answers: from a `Start` to text that comes piece by piece, and its usage."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from pretrain.inference.sampling import Choice, Sampler, Sampling
from pretrain.inference.server import wire
from pretrain.inference.server.errors import ApiError, bad_request, server_failed
from pretrain.inference.server.http import SILENCE
from pretrain.inference.server.job import (
    Event,
    Facts,
    Failed,
    Finished,
    Heard,
    Job,
    Reading,
    Said,
)
from pretrain.inference.server.schemas import SamplingRequest
from pretrain.inference.server.service import Mark, Service, Start
from pretrain.inference.server.wire import TokenScore, Usage
from pretrain.inference.session import Session, context_windows, unscored_tokens
from pretrain.inference.text import TextDecoder


@dataclass(frozen=True)
class Update:
    """One streaming update: new text of answer `index`, or only progress."""

    index: int
    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    facts: Facts | None = None
    ended: bool = False


class Answer:
    """One of a request's answers, as generated so far."""

    def __init__(self) -> None:
        self.said = wire.Generated()
        self.tokens = 0
        self.finished: Finished | None = None
        self.unshown: list[TokenScore] = []  # scores of tokens whose text is held back
        self.has_begun = False  # some text has come, perhaps only the form's space

    @property
    def end(self) -> Finished:
        assert self.finished is not None, "it is asked for at the end"
        return self.finished


class Answers:
    """All of a request's answers; they share one reading of its input.

    Args:
        count: how many. most: maximum tokens of each. top: how many most likely tokens to report
            per token; None: no log-probabilities. echo: report them for the input's tokens too.
            mark: stores the input's session at a mark.
    """

    def __init__(
        self,
        service: Service,
        start: Start,
        request: SamplingRequest,
        *,
        count: int = 1,
        most: int | None = None,
        stops: Sequence[str] = (),
        top: int | None = None,
        echo: bool = False,
        mark: Callable[[Mark, Session], None] | None = None,
    ) -> None:
        form = start.form
        self.service, self.start, self.top = service, start, top
        self.each = [Answer() for _ in range(count)]
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        post = partial(_post, asyncio.get_running_loop(), self._events)
        self._before = (_asleep(start.session), start.session.position)
        self._read = len(start.context) + len(start.tokens)
        sampling = _sampling(request, top)
        ends = set() if request.ignore_eos else form.ends if form else {service.tokenizer.eos}
        ends = ends.union(request.stop_token_ids or ())
        if request.min_tokens and len(ends) >= service.tokenizer.vocab_size:
            raise bad_request("stop_token_ids leave no token for min_tokens.", "stop_token_ids")
        most = service.max_tokens if most is None else most
        self._jobs = [
            Job(
                start.session,
                start.tokens,
                Sampler(
                    replace(sampling, seed=(sampling.seed + i) % (1 << 63)),
                    service.tokenizer.vocab_size,
                ),
                TextDecoder(service.tokenizer, (*(form.stops if form else ()), *stops)),
                most=most,
                ends=ends,
                emit=partial(post, i),
                least=request.min_tokens or 0,
            )
            for i in range(count)
        ]
        first = self._jobs[0]
        first.others = self._jobs[1:]
        self.heard: list[TokenScore] = []  # scores of the input's tokens, with echo
        if echo and top is not None:
            first.hears = True
            self.heard.append(TokenScore(service.tokenizer.token_bytes[start.tokens[0]], None))
        if start.context:
            window = start.session.model.sleep.window
            if not first.hears:
                first.read = unscored_tokens(len(start.tokens), window)
            parts = (start.context, start.tokens[: first.read])
            first.context = deque(
                part[each] for part in parts for each in context_windows(len(part), window)
            )
        if mark is not None:
            first.marks = deque((m.tokens, partial(mark, m)) for m in start.marks)

    def begin(self, *others: Answers) -> None:
        """Queues them, with those to the other inputs of the request. ApiError: the queue is full,
        or the server is stopping.
        """
        self.service.engine.submit([answers._jobs[0] for answers in (self, *others)])

    def give_up(self) -> None:
        """Cancels them: nobody waits for them any more."""
        for job in self._jobs:
            job.cancelled = True

    async def updates(self) -> AsyncGenerator[Update]:
        """Yields updates until all answers end, now and then one without text. If the generator is
        closed early, the answers are cancelled.

        Raises:
            ApiError: one of them failed.
        """
        try:
            going = len(self.each)
            while going:
                try:
                    # not wait_for: before Python 3.12 it loses a cancellation that meets an event
                    async with asyncio.timeout(SILENCE):
                        index, event = await self._events.get()
                except TimeoutError:
                    yield Update(0)
                    continue
                if isinstance(event, Failed):
                    raise _told(event.error)
                update = self._update(index, event)
                going -= update.ended
                yield update
        finally:
            self.give_up()

    async def finish(self) -> None:
        """Waits until all answers have ended."""
        async for _ in self.updates():
            pass

    def _update(self, index: int, event: Reading | Heard | Said | Finished) -> Update:
        if isinstance(event, Reading):
            return Update(index, facts=event.facts)
        if isinstance(event, Heard):
            self.heard += map(self._score, event.choices)
            return Update(index)
        answer, shows = self.each[index], bool(event.text)
        text = event.text
        form = self.start.form
        if form is not None and not answer.has_begun:
            text = text.removeprefix(form.space)
        answer.has_begun |= bool(event.text)
        if isinstance(event, Said):
            answer.tokens += 1
            if self.top is not None:
                answer.unshown.append(self._score(event.choice))
        else:
            answer.finished, answer.said.finish_reason = event, event.reason
            shows |= event.reason == "length"
            if event.by is not None and self.top is not None and form is None:
                # a completion's end token has a score like the others, but no text: lm-eval counts
                # it
                answer.unshown.append(replace(self._score(event.by), text=b""))
                shows = True
        scores: tuple[TokenScore, ...] = ()
        if shows:
            scores, answer.unshown = tuple(answer.unshown), []
        answer.said.text += text
        answer.said.scores += scores
        facts = event.facts if isinstance(event, Said) else None
        return Update(index, text, scores, facts, isinstance(event, Finished))

    def _score(self, choice: Choice) -> TokenScore:
        written = self.service.tokenizer.token_bytes
        top = tuple((written[token], logprob) for token, logprob in choice.top)
        return TokenScore(written[choice.token], choice.logprob, top)

    @property
    def usage(self) -> Usage:
        """The usage, once all have ended; the shared reading of the input counts once."""
        asleep, position = self._before
        ends = [answer.end.session for answer in self.each]
        wake = self._read + sum(s.position - position - self._read for s in ends)
        return Usage(
            cached=self.start.cached,
            prompt=max(0, position + self._read - self.start.cached),
            completion=sum(answer.tokens for answer in self.each),
            wake_tokens=wake,
            sleep_passes=sum(_asleep(s) - asleep for s in ends),
        )


def _post(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[tuple[int, Event]], index: int,
    event: Event,
) -> None:  # fmt: skip
    """Passes an event from the engine's thread to the event loop. Not a method: a reference cycle
    between a job and its `Answers` would keep the session alive until garbage collection.
    """
    with suppress(RuntimeError):  # the server and its event loop have stopped
        loop.call_soon_threadsafe(events.put_nowait, (index, event))


def _asleep(session: Session) -> int:
    """Passes of sleep that a session has made or owes."""
    return session.sleep_passes + session.pending


def _told(error: BaseException) -> ApiError:
    """The error as a client sees it; the log has the details."""
    return error if isinstance(error, ApiError) else server_failed()


def _sampling(request: SamplingRequest, top: int | None) -> Sampling:
    seed = secrets.randbits(63) if request.seed is None else request.seed % (1 << 63)
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple((int(id), bias) for id, bias in (request.logit_bias or {}).items()),
        seed=seed,
        logprobs=top,
    )
