"""POST /v1/completions: continues a text, and stores nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from pretrain.inference.server import wire
from pretrain.inference.server.answer import Answers
from pretrain.inference.server.errors import ApiError
from pretrain.inference.server.http import (
    ALIVE,
    Pulse,
    event_stream,
    service_of,
    while_connected,
)
from pretrain.inference.server.schemas import CompletionRequest
from pretrain.inference.server.store import new_id
from pretrain.inference.server.wire import Offsets, Usage

router = APIRouter()
MAX_TOKENS = 16  # OpenAI's default


@router.post("/v1/completions")
async def create(request: CompletionRequest, http: Request) -> Response:
    service = service_of(http)
    service.check(request)
    usual = min(MAX_TOKENS, service.answer_limit)
    most = usual if request.max_tokens is None else request.max_tokens
    asked = []
    for prompt in request.prompt:
        start = await asyncio.to_thread(service.start_text, prompt, request.passes, request.context)
        asked.append(
            Answers(
                service,
                start,
                request,
                count=request.n or 1,
                most=most,
                stops=request.stop or (),
                top=request.logprobs,
                echo=bool(request.echo),
            )
        )
    asked[0].begin(*asked[1:])
    said = _Said(new_id("cmpl"), int(time.time()), request, asked)
    if request.stream:
        return await event_stream(said.events())
    return JSONResponse(await while_connected(http, said.whole()))


class _Said:
    """All answers to all prompts of one request."""

    def __init__(
        self, id: str, created: int, request: CompletionRequest, asked: list[Answers]
    ) -> None:
        self.id, self.created, self.request, self.asked = id, created, request, asked
        self.n = request.n or 1
        self.echoes = [""] * len(request.prompt)
        if request.echo:
            decode = asked[0].service.tokenizer.decode
            self.echoes = [p if isinstance(p, str) else decode(p) for p in request.prompt]

    async def whole(self) -> wire.Json:
        try:
            for answers in self.asked:
                await answers.finish()
        finally:  # if one fails, the others are cancelled
            for answers in self.asked:
                answers.give_up()
        choices = []
        for p, answers in enumerate(self.asked):
            for i, answer in enumerate(answers.each):
                scores = None
                if self.request.logprobs is not None:
                    scores = [*answers.heard, *answer.said.scores]
                text = self.echoes[p] + answer.said.text
                index, reason = p * self.n + i, answer.said.finish_reason
                choices.append(wire.completion_choice(index, text, scores, reason, Offsets()))
        return wire.completion(self.id, self.created, self.request, choices, self._usage())

    def _usage(self) -> Usage:
        return sum((answers.usage for answers in self.asked), Usage())

    async def events(self) -> AsyncGenerator[str]:
        """Streams prompt by prompt; the output of later prompts waits meanwhile."""
        pulse, begun = Pulse(), dict[int, Offsets]()  # by choice
        try:
            for p, answers in enumerate(self.asked):
                async with aclosing(answers.updates()) as updates:
                    async for update in updates:
                        index = p * self.n + update.index
                        if not (update.text or update.ended):
                            if pulse.due():
                                yield ALIVE
                            continue
                        text, new = update.text, list(update.scores)
                        if index not in begun:
                            text, new = self.echoes[p] + text, answers.heard + new
                            begun[index] = Offsets()
                        said = answers.each[update.index].said
                        scores = new if self.request.logprobs is not None else None
                        reason = said.finish_reason if update.ended else None
                        yield self._chunk(
                            wire.completion_choice(index, text, scores, reason, begun[index])
                        )
            if self.request.stream_options and self.request.stream_options.include_usage:
                yield self._chunk(usage=self._usage())
        except ApiError as error:
            yield wire.event(error.body)
        finally:
            for answers in self.asked:
                answers.give_up()
        yield wire.DONE

    def _chunk(self, *choices: wire.Json, usage: Usage | None = None) -> str:
        return wire.event(wire.completion(self.id, self.created, self.request, choices, usage))
