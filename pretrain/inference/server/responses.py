"""/v1/responses: every response id is a session on disk that any later request can continue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pretrain.inference.chat import Turn
from pretrain.inference.server import wire
from pretrain.inference.server.answer import Answers
from pretrain.inference.server.conversations import Conversation, Limit, Order, page
from pretrain.inference.server.errors import ApiError, not_found
from pretrain.inference.server.http import (
    ALIVE,
    Pulse,
    event_stream,
    owner_of,
    service_of,
    while_connected,
)
from pretrain.inference.server.keep import Keeper
from pretrain.inference.server.schemas import ResponsesRequest
from pretrain.inference.server.service import Service, Start
from pretrain.inference.server.store import TURN, Entry, NotStored, new_id

router = APIRouter()
KIND = "resp"
LOGPROBS, SESSION = "message.output_text.logprobs", "hypnos.session"


@router.post("/v1/responses")
async def create(request: ResponsesRequest, http: Request) -> Response:
    service, owner = service_of(http), owner_of(http)
    service.check(request)
    with ExitStack() as stack:
        conversation = None
        if request.conversation is not None:
            conversation = Conversation.stored(http, request.conversation.id)
            stack.enter_context(conversation.locked())
        start = await asyncio.to_thread(_start, service, owner, request, conversation)
        stored = request.store is not False
        keeper = Keeper(service, owner, start) if stored or conversation else None
        mark = keeper.mark if keeper else None
        wanted = LOGPROBS in (request.include or ())
        answers = Answers(
            service, start, request, most=request.max_output_tokens,
            top=(request.top_logprobs or 0) if wanted else None, mark=mark,
        )  # fmt: skip
        answers.begin()
        said = _Said(request, answers, keeper, conversation, stack.pop_all())
    if request.stream:
        return await event_stream(said.events())
    return JSONResponse(await while_connected(http, said.whole()))


def _start(
    service: Service, owner: str, request: ResponsesRequest, conversation: Conversation | None
) -> Start:
    form = service.form_of(request.chat_template_kwargs)
    turns = [Turn(m.role, m.content) for m in request.input]
    if request.instructions:
        turns.insert(0, Turn("system", request.instructions))
    if request.previous_response_id is not None:
        id = request.previous_response_id
        missing = not_found("Previous response", id, "previous_response_id")
        return service.start_after(owner, id, form, turns, request.passes, missing)
    if conversation is not None and conversation.head:
        return service.start_after(
            owner, conversation.head, form, turns, request.passes, conversation.ended
        )
    return service.start_history(owner, form, turns, request.passes)


@router.get("/v1/responses/{id}")
def retrieve(id: str, http: Request) -> Response:
    """Returns the response as it was given, and the state of its session now."""
    entry, record = _record(id, http)
    return JSONResponse(record["object"] | {"session": dict(entry.facts)})


@router.delete("/v1/responses/{id}")
def delete(id: str, http: Request) -> Response:
    _record(id, http)
    service_of(http).delete(owner_of(http), id)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


@router.get("/v1/responses/{id}/input_items")
def input_items(
    id: str, http: Request, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> Response:
    """The messages before the answer, as far back as they are stored."""
    _record(id, http)
    lineage = service_of(http).store.lineage(owner_of(http), id)
    return page(lineage, limit, order, after, answered_by=id)


def _record(id: str, http: Request) -> tuple[Entry, wire.Json]:
    try:
        entry, record = service_of(http).store.record(owner_of(http), id)
    except NotStored:
        raise not_found("Response", id) from None
    if not id.startswith(KIND) or not record.get("object"):
        raise not_found("Response", id)
    return entry, record


class _Said:
    """The answer to one request.

    Args:
        held: what is released at its end: the lock on the conversation.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        answers: Answers,
        keeper: Keeper | None,
        conversation: Conversation | None,
        held: ExitStack,
    ) -> None:
        self.request, self.answers, self.keeper = request, answers, keeper
        self.conversation, self.held = conversation, held
        self.id, self.created = new_id(KIND), int(time.time())
        self.item = self.id.replace(KIND, "msg")

    def _object(self, status: str) -> wire.Json:
        output, usage = [], None
        if status != "in_progress":
            output, usage = [self._item(status)], self.answers.usage
        return wire.response(self.id, self.created, self.request, status, output, usage)

    def _item(self, status: str) -> wire.Json:
        return wire.message_item(self.item, self.answers.each[0].said, status)

    @property
    def _status(self) -> str:
        cut = self.answers.each[0].said.finish_reason == "length"
        return "incomplete" if cut else "completed"

    async def whole(self) -> wire.Json:
        with self.held:
            await self.answers.finish()
            return await self._kept()

    async def _kept(self) -> wire.Json:
        """The complete object, once it is stored and is the last turn of its conversation."""
        shown = self._object(self._status)
        if self.keeper is not None:
            stored = self.request.store is not False
            id = self.id if stored else new_id(TURN)
            await self.keeper.answer(id, self.answers.each[0], shown if stored else None)
            if self.conversation is not None:
                await self.conversation.move(id)
        return shown

    async def events(self) -> AsyncGenerator[str]:
        """Streams events; the last one comes once everything is stored."""
        out = wire.ResponseEvents(self.item)
        with self.held:
            try:
                for line in out.begin(self._object("in_progress")):
                    yield line
                for line in out.open():
                    yield line
                async with aclosing(self._pieces(out)) as lines:
                    async for line in lines:
                        yield line
                shown = await self._kept()
                for line in out.end(self.answers.each[0].said, self._item(self._status)):
                    yield line
                yield out.finish(shown)
            except ApiError as error:
                yield out.error(error.detail)
            finally:
                self.answers.give_up()

    async def _pieces(self, out: wire.ResponseEvents) -> AsyncGenerator[str]:
        pulse, watched = Pulse(), SESSION in (self.request.include or ())
        async with aclosing(self.answers.updates()) as updates:
            async for update in updates:
                if watched and update.facts is not None:
                    yield out.session(asdict(update.facts))
                if update.text or update.scores:
                    yield out.delta(update.text, update.scores)
                elif pulse.due():
                    yield ALIVE
