"""What a server does once before it listens, for the first of anything is the slowest.

A window is read and slept over, a session goes to a file and comes back, and one request takes the
whole way that a client's takes: through routes and validation, to the engine's own thread and back
as a stream. What start-up has left in memory is then left alone by Python's garbage collector,
which would look through all of it in the middle of somebody's answer.
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
    """Reading, sleep, and a session on disk."""
    session = Session(decoder)
    session.read([0] * (session.model.sleep.window + 1))
    session.read([0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.safetensors"
        save_session(path, session)
        load_session(path, decoder)


async def warm_up_app(app: FastAPI, model: str, key: str) -> None:
    """One request that leaves nothing behind; then the heap is frozen.

    Args:
        model: its name. key: one that may ask, "" where none is needed.
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
            await asyncio.Event().wait()  # nobody hangs up
        return body.pop()

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200, message

    await app(scope, receive, send)
    gc.collect()
    gc.freeze()
