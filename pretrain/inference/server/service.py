"""A served model: where an answer starts, and how its session is stored."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from pretrain.errors import UserError
from pretrain.inference.chat import BEFORE, ChatForm, Refused, Turn
from pretrain.inference.decode import Decoder
from pretrain.inference.server import digests
from pretrain.inference.server.engine import Engine
from pretrain.inference.server.errors import ApiError, bad_request
from pretrain.inference.server.job import Facts
from pretrain.inference.server.schemas import SamplingRequest
from pretrain.inference.server.store import Entry, NoRoom, NotStored, SessionStore
from pretrain.inference.session import Session
from tokenizer.encode import Tokenizer

log = logging.getLogger("hypnos.serve")


def _log_error(done: Future[Any]) -> None:
    error = done.exception()
    if error is not None and not isinstance(error, ApiError):  # `put` has logged those
        log.error("a session could not be stored: %r", error)


def _no_room(error: NoRoom) -> ApiError:
    log.error("a session could not be stored: %s", error)
    return ApiError(
        507, "The session could not be stored: there is no room for it.",
        type="server_error", code="insufficient_storage",
    )  # fmt: skip


@contextmanager
def _refusal_told() -> Iterator[None]:
    try:
        yield
    except Refused as error:
        why = f"The model's chat template cannot write these messages: {error}"
        raise bad_request(why) from None


class Mark(NamedTuple):
    """A place in an input where its session is worth storing."""

    tokens: int  # read up to there
    digest: str
    turns: tuple[Turn, ...]  # since the previous mark


@dataclass
class Start:
    """Where an answer starts: a session, and what it has to read first."""

    session: Session
    tokens: list[int]  # up to where the answer starts
    form: ChatForm | None = None  # of the conversation; None: there is no conversation
    cached: int = 0  # tokens of the conversation read earlier
    parent: str = ""  # id of the entry that it continues
    digest: str = ""  # of all messages, these included
    turns: tuple[Turn, ...] = ()  # the new ones, since the last mark
    marks: list[Mark] = field(default_factory=list)
    end: int | None = None  # tokens up to the last message's end; None: unknown
    context: list[int] = field(default_factory=list)  # read and slept over before `tokens`


@dataclass
class Service:
    """The model and everything that belongs to it.

    Args:
        max_tokens: default maximum length of an answer.
        answer_limit: the largest maximum that a request may set.
        until: the stop rule of every session, see `pretrain.model.stop_rule`; 0: none.
    """

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    form: ChatForm  # the default form of conversations
    store: SessionStore
    engine: Engine
    max_tokens: int
    answer_limit: int
    until: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))
    locked: set[str] = field(default_factory=set)  # conversations with a response in progress
    writer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="store")
    )

    def form_of(self, variables: Mapping[str, Any] | None) -> ChatForm:
        """The form with a request's variables of the chat template. ApiError: they cannot be
        set.
        """
        try:
            return self.form.having(variables) if variables else self.form
        except Refused as error:
            raise bad_request(str(error), "chat_template_kwargs") from None

    def encode(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text)
        except ValueError as error:
            raise bad_request(f"The text cannot be read: {error}.") from None

    def check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404, f"The model '{name}' does not exist; this server serves '{self.name}'.",
                param="model", code="model_not_found",
            )  # fmt: skip

    def check(self, request: SamplingRequest) -> None:
        """ApiError if it asks for something that does not exist or exceeds a limit."""
        self.check_model(request.model)
        for param in ("logit_bias", "stop_token_ids"):
            self._check_ids(map(int, getattr(request, param) or ()), param)
        for param in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if (getattr(request, param, None) or 0) > self.answer_limit:
                raise bad_request(
                    f"{param} is at most {self.answer_limit:,} here (--answer-limit): ask for "
                    "fewer, and continue the answer in a further request.",
                    param, "invalid_value",
                )  # fmt: skip
        self.engine.check_room(getattr(request, "n", None) or 1)

    def _check_ids(self, tokens: Iterable[int], param: str) -> None:
        size = self.tokenizer.vocab_size
        if not all(0 <= token < size for token in tokens):
            raise bad_request(f"Token ids are 0..{size - 1}.", param)

    # ---- where an answer begins

    def start_text(
        self, prompt: str | list[int], passes: int | None, context: str | None = None
    ) -> Start:
        """The start of a completion: nothing is stored before or after."""
        tokens = self.encode(prompt) if isinstance(prompt, str) else prompt
        if not tokens:
            raise bad_request("The prompt is empty: give some text to continue.", "prompt")
        self._check_ids(tokens, "prompt")
        return Start(self._new(passes), list(tokens), context=self.encode(context or ""))

    def start_history(
        self, owner: str, form: ChatForm, turns: Sequence[Turn], passes: int | None
    ) -> Start:
        """The start after messages from a conversation's beginning: the longest stored, intact
        prefix is not read again.
        """
        N = passes or self.decoder.model.sleep.passes
        before = digests.begin(N, self.until, form.key)
        known = [*accumulate(turns, digests.digest, initial=before)]
        while (found := self.store.longest(owner, known)) is not None:
            read, entry = found
            try:
                start = self._stored(owner, entry.id, form)
            except (NotStored, ApiError):  # evicted since, or damaged (which is logged)
                self.store.leave_out(entry.id)
                continue
            with suppress(Refused):  # some templates write a whole history, but cannot continue one
                return self._with_turns(start, turns, read)
            break
        with _refusal_told():
            start = Start(self._new(passes), [], form, digest=known[0])
            return self._with_turns(start, turns, 0)

    def start_after(
        self,
        owner: str,
        id: str,
        form: ChatForm,
        turns: Sequence[Turn],
        passes: int | None,
        missing: ApiError,
    ) -> Start:
        """The start after a stored id; the stored entry is not changed.

        Raises:
            ApiError: `missing`: it is not stored, or not for this owner.
        """
        try:
            start = self._stored(owner, id, form)
        except NotStored:
            raise missing from None
        if passes not in (None, start.session.passes):
            start.session.passes = passes
            start.digest = ""  # as in `_stored`
        before = self._last(owner, id)
        with _refusal_told():
            return self._with_turns(start, [*before, *turns], len(before))

    def _last(self, owner: str, id: str) -> Sequence[Turn]:
        """Turns that end like the stored conversation: what follows depends on who spoke last."""
        for _, record in self.store.lineage(owner, id):
            if record["answer"] is not None:
                return [*BEFORE, Turn("assistant", "")]
            if record["turns"]:
                last = Turn(*record["turns"][-1])
                return [*BEFORE, last] if last.role == "assistant" else [last]
        return BEFORE

    def _new(self, passes: int | None) -> Session:
        """A session that has read nothing."""
        return Session(self.decoder, passes, self.until)

    def _stored(self, owner: str, id: str, form: ChatForm) -> Start:
        """A start from a stored session, as a copy. If it continues in another form or with another
        N, it can be found only by its id, no longer by its messages.
        """
        try:
            entry, session = self.store.session(owner, id)
        except UserError as error:
            log.error("%s", error)
            raise ApiError(
                500, "What is stored under this id is damaged; see the server's log.",
                type="server_error", code="damaged",
            ) from None  # fmt: skip
        session.until = self.until
        digest = entry.digest if entry.form == form.key else ""
        return Start(session, list(entry.unread), form, entry.tokens, id, digest)

    def _with_turns(self, start: Start, turns: Sequence[Turn], read: int) -> Start:
        """Adds the messages after the first `read` to what will be read, with a mark after each one
        that fills a window. Refused: the form cannot write them.
        """
        assert start.form is not None, "messages are a conversation's"
        try:
            written = start.form.write(turns, read)
        except Refused:
            raise
        except ValueError as error:
            raise bad_request(f"The text cannot be read: {error}.") from None
        before = len(start.tokens)
        start.tokens += written.tokens
        if not start.tokens:
            raise bad_request("The model's chat template renders these messages as an empty text.")
        ends = {i: before + end for i, end in written.ends.items()}
        kept, begin = 0, read
        for i, turn in enumerate(turns[read:], read + 1):
            start.digest = digests.digest(start.digest, turn) if start.digest else ""
            end = ends.get(i, 0)
            if end - kept >= self.decoder.model.sleep.window and start.digest:
                start.marks.append(Mark(end, start.digest, tuple(turns[begin:i])))
                kept, begin = end, i
        start.end, start.turns = ends.get(len(turns)), tuple(turns[begin:])
        return start

    # ---- what is kept

    def put(self, entry: Entry, record: Mapping[str, Any], session: Session | None = None) -> None:
        """Stores an entry durably; then its session sleeps, as soon as nothing else waits. Runs in
        the writer's thread.

        Raises:
            ApiError: 507, there is no room for it.
        """
        try:
            self.store.put(entry, record, session)
        except NoRoom as error:
            raise _no_room(error) from None
        if session is not None and session.pending:
            self.engine.sleep_later(session, partial(self._put_slept, entry, session))

    async def in_order(self, function: Callable[..., object], *args: Any) -> None:
        """Calls a function in the writer's thread, after everything that is queued there."""
        await asyncio.get_running_loop().run_in_executor(self.writer, function, *args)

    def _put_slept(self, entry: Entry, session: Session) -> None:
        slept = replace(entry, facts=asdict(Facts.of(session)))
        self.write_later(self.store.refresh, slept, session)

    def write_later(self, function: Callable[..., object], *args: Any) -> None:
        """Calls a function in the writer's thread; nobody waits, so errors are only logged."""
        self.writer.submit(function, *args).add_done_callback(_log_error)

    def delete(self, owner: str, id: str) -> None:
        """Deletes an entry if it is still stored, after everything that is queued for writing.

        Raises:
            ApiError: 507, see `SessionStore.delete`.
        """
        try:
            with suppress(NotStored):  # another request has deleted it meanwhile, or it is evicted
                self.writer.submit(self.store.delete, owner, id).result()
        except NoRoom as error:
            raise _no_room(error) from None
