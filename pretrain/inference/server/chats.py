"""/v1/chat/completions: a resent history continues from what is stored of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pretrain.inference.chat import Turn
from pretrain.inference.server import wire
from pretrain.inference.server.answer import Answers
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
from pretrain.inference.server.schemas import ChatRequest
from pretrain.inference.server.store import TURN, NotStored, new_id

router = APIRouter()
KIND = "chatcmpl"


@router.post("/v1/chat/completions")
async def create(request: ChatRequest, http: Request) -> Response:
    service, owner = service_of(http), owner_of(http)
    service.check(request)
    turns = [Turn(m.role, m.content) for m in request.messages]
    form = service.form_of(request.chat_template_kwargs)
    start = await asyncio.to_thread(service.start_history, owner, form, turns, request.passes)
    keeper = None if request.store is False else Keeper(service, owner, start)
    answers = Answers(
        service, start, request, count=request.n or 1,
        most=request.max_completion_tokens or request.max_tokens,
        stops=request.stop or (),
        top=(request.top_logprobs or 0) if request.logprobs else None,
        mark=keeper.mark if keeper else None,
    )  # fmt: skip
    answers.begin()
    said = _Said(new_id(KIND), int(time.time()), request, answers, keeper)
    if request.stream:
        return await event_stream(said.events())
    return JSONResponse(await while_connected(http, said.whole()))


@router.get("/v1/chat/completions/{id}")
def retrieve(id: str, http: Request) -> Response:
    """Returns a stored chat completion."""
    return JSONResponse(_stored(id, http))


@router.delete("/v1/chat/completions/{id}")
def delete(id: str, http: Request) -> Response:
    """Deletes all of its choices; the one with its id last, so that a failure can be retried."""
    for i in reversed(range(len(_stored(id, http)["choices"]))):
        service_of(http).delete(owner_of(http), _choice_id(id, i))
    return JSONResponse({"id": id, "object": "chat.completion.deleted", "deleted": True})


def _stored(id: str, http: Request) -> wire.Json:
    """The completion as it was returned. ApiError 404 if none with that id is stored."""
    try:
        _, record = service_of(http).store.record(owner_of(http), id)
    except NotStored:
        record = {}
    if not id.startswith(KIND) or not record.get("object"):
        raise not_found("Chat completion", id)
    return cast(wire.Json, record["object"])


def _choice_id(id: str, i: int) -> str:
    """The id of a choice's session; the first choice has the completion's own id."""
    return f"{id.replace(KIND, TURN)}{i:02x}" if i else id


class _Said:
    """All answers to one request."""

    def __init__(
        self, id: str, created: int, request: ChatRequest, answers: Answers, keeper: Keeper | None
    ) -> None:
        self.id, self.created, self.request = id, created, request
        self.answers, self.keeper = answers, keeper

    async def whole(self) -> wire.Json:
        await self.answers.finish()
        return await self._kept()

    async def _kept(self) -> wire.Json:
        """The complete object, once all its answers are stored; the first one under its id."""
        choices = [answer.said for answer in self.answers.each]
        usage = self.answers.usage
        shown = wire.chat(self.id, self.created, self.request, choices, usage)
        if self.keeper is not None:
            for i, answer in enumerate(self.answers.each):
                kept = shown if i == 0 else None
                await self.keeper.answer(_choice_id(self.id, i), answer, kept)
        return shown

    async def events(self) -> AsyncGenerator[str]:
        """Streams the answers; an answer's last chunk comes once all are stored."""
        pulse = Pulse()
        try:
            for i in range(len(self.answers.each)):
                begin = {"role": "assistant", "content": "", "refusal": None}
                yield self._chunk(wire.chat_choice(i, begin))
            async with aclosing(self.answers.updates()) as updates:
                async for update in updates:
                    if update.text or update.scores:
                        delta = {"content": update.text}
                        yield self._chunk(wire.chat_choice(update.index, delta, update.scores))
                    elif pulse.due():
                        yield ALIVE
            await self._kept()
            for i, answer in enumerate(self.answers.each):
                reason = answer.said.finish_reason
                yield self._chunk(wire.chat_choice(i, {}, finish_reason=reason))
            if self.request.stream_options and self.request.stream_options.include_usage:
                yield self._chunk(usage=self.answers.usage)
        except ApiError as error:
            yield wire.event(error.body)
        finally:
            self.answers.give_up()
        yield wire.DONE

    def _chunk(self, *choices: wire.Json, usage: wire.Usage | None = None) -> str:
        return wire.event(wire.chat_chunk(self.id, self.created, self.request, choices, usage))
