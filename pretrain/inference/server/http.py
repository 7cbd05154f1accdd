"""What all routes share: the request's owner, disconnects, and streams that stay alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar, cast

from fastapi import Request
from fastapi.responses import StreamingResponse

from pretrain.inference.server.errors import ApiError
from pretrain.inference.server.service import Service

T = TypeVar("T")
ALIVE = ": still reading\n\n"  # an SSE comment, so that nobody takes a long silence for the end
SILENCE = 5.0  # seconds of silence before one is sent


def service_of(http: Request) -> Service:
    return cast(Service, http.app.state.service)


def owner_of(http: Request) -> str:
    """The owner of the request's key, see `app.Gate`."""
    return cast(str, http.state.owner)


async def while_connected(http: Request, work: Awaitable[T]) -> T:
    """The work's result; it is cancelled when the client goes away."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "The client has gone.")
        return working.result()
    finally:
        working.cancel()
        waiting.cancel()
        del working  # its error's traceback would keep this frame, and so the request, alive


async def event_stream(events: AsyncGenerator[str]) -> StreamingResponse:
    """Server-sent events, unbuffered by proxies."""
    # A generator that has started is always closed properly, even if the client has gone by now.
    first = await anext(events)

    async def all_events() -> AsyncGenerator[str]:
        try:
            async with aclosing(events):
                yield first
                async for event in events:
                    yield event
        except asyncio.CancelledError as error:
            # anyio keeps it in a reference cycle, and its traceback would keep the request alive
            raise error.with_traceback(None) from None

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)


class Pulse:
    """Tells when a stream has been silent for too long."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < SILENCE:
            return False
        self._last = now
        return True
