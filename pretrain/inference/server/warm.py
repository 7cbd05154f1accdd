"""Warms up a server before it listens, because the first call of everything is the slowest.

A window is read and slept over, a session is saved and loaded, and one request takes the full path
of a client's: through routes and validation, to the engine's thread and back as a stream. Then the
heap is frozen, so that Python's garbage collector does not scan it all in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
from pathlib import Path

from fastapi import FastAPI
from starlette.types import Message

from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session
from pretrain.inference.store import load_session, save_session


def warm_up_model(decoder: Decoder) -> None:
    """Reads, sleeps, and saves and loads a session."""
    session = Session(decoder)
    session.read([0] * (session.model.sleep.window + 1))
    session.read([0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.safetensors"
        save_session(path, session)
        load_session(path, decoder)


async def warm_up_app(app: FastAPI, model: str, key: str) -> None:
    """Sends one request that stores nothing; then freezes the heap.

    Args:
        model: its name. key: a valid API key, "" if none is needed.
    """
    asked = {"model": model, "input": "a", "stream": True, "store": False}
    asked["max_output_tokens"] = min(2, app.state.service.answer_limit)
    content = json.dumps(asked).encode()
    headers = {"host": "localhost", "content-type": "application/json"}
    headers |= {"content-length": str(len(content)), "authorization": f"Bearer {key}"}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
        "method": "POST", "scheme": "http", "path": "/v1/responses", "raw_path": b"/v1/responses",
        "root_path": "", "query_string": b"", "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    body: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        if not body:
            await asyncio.Event().wait()  # the client never disconnects
        return body.pop()

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200, message

    await app(scope, receive, send)
    gc.collect()
    gc.freeze()
