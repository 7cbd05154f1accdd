"""The FastAPI application: routes, API keys, body limits, and errors in OpenAI's format."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping, Set
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pretrain.inference.server import chats, completions, conversations, responses
from pretrain.inference.server.errors import (
    ApiError,
    ErrorBody,
    from_validation,
    server_failed,
)
from pretrain.inference.server.http import service_of
from pretrain.inference.server.service import Service

BODY_TIMEOUT_S = 60.0  # for each chunk of a body
# The page is one file, and connects only to this server.
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'"
)
LOCAL = ("127.0.0.1", "::1", "localhost")  # addresses reachable only from this machine
OPEN = ("/", "/health")  # paths that need no key


def make_app(service: Service, keys: Set[str], max_body: int) -> FastAPI:
    """The application.

    Args:
        keys: valid API keys; empty: none is needed. max_body: limit of a request in bytes.
    """
    # FastAPI's own doc pages load scripts from elsewhere, which could then call this server
    app = FastAPI(
        title="hypnos serve", openapi_url="/openapi.json", docs_url=None, redoc_url=None,
        responses={"default": {"model": ErrorBody, "description": "An error"}},
    )  # fmt: skip
    app.state.service = service
    for module in (completions, chats, responses, conversations):
        app.include_router(module.router)
    app.add_middleware(Gate, keys=frozenset(map(_hashed, keys)), max_body=max_body)

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    def page() -> HTMLResponse:
        html = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/health")
    @app.head("/health", include_in_schema=False)  # load balancers probe with HEAD
    def health(http: Request) -> JSONResponse:
        service = service_of(http)
        stored = {"sessions": len(service.store), "bytes": service.store.size}
        status, code = ("ok", 200) if service.engine.is_running else ("stopped", 503)
        return JSONResponse({"status": status, **service.engine.load, "stored": stored}, code)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics(http: Request) -> Response:
        service, load = service_of(http), service_of(http).engine.load
        text = service.engine.meters.show(
            requests_running=load["active"], requests_waiting=load["waiting"],
            sessions_sleeping=load["sleeping"], sessions_stored=len(service.store),
            store_bytes=service.store.size,
        )  # fmt: skip
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    def models(http: Request) -> dict[str, object]:
        return {"object": "list", "data": [_model(service_of(http))]}

    @app.get("/v1/models/{name:path}")
    def model(name: str, http: Request) -> dict[str, object]:
        service_of(http).check_model(name)
        return _model(service_of(http))

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        response = ApiError(error.status_code, f"{error.detail}.").response()
        response.headers.update(error.headers or {})  # such as the methods that a path allows
        return response

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return server_failed().response()

    return app


def _model(service: Service) -> dict[str, object]:
    sleep = service.decoder.model.sleep
    return {
        "id": service.name, "object": "model", "created": service.created, "owned_by": "hypnos",
        "window": sleep.window, "passes": sleep.passes,
    }  # fmt: skip


def _hashed(key: str) -> str:
    """The hash of a key, which is all that is kept of it, in memory and on disk."""
    return hashlib.sha256(key.encode()).hexdigest()


def _host(headers: Mapping[bytes, bytes]) -> str:
    """The host that a client addressed, without the port and the brackets of IPv6."""
    name = headers.get(b"host", b"").decode("latin-1")
    return re.sub(r":\d+$", "", name).strip("[]")


class Gate:
    """Checks a request's key and size before it is read.

    Stored sessions belong to the key of their request, even if no key is required.
    """

    def __init__(self, app: ASGIApp, keys: Set[str], max_body: int) -> None:
        self.app, self.keys, self.max_body = app, keys, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        owner = _hashed(key.strip()) if scheme.lower() == "bearer" else ""
        if (error := self._refusal(owner, scope["path"], headers)) is not None:
            await error.response()(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self.app(scope, self._measured(receive), send)

    def _refusal(self, owner: str, path: str, headers: Mapping[bytes, bytes]) -> ApiError | None:
        if self.keys and owner not in self.keys and path not in OPEN:
            return ApiError(
                401, "Incorrect API key provided: send 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )  # fmt: skip
        if not self.keys and _host(headers) not in LOCAL:  # DNS rebinding by another site's page
            return ApiError(403, "Without API keys this server only answers at localhost.")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return ApiError(413, f"{self._limit}.")
        return None

    def _measured(self, receive: Receive) -> Receive:
        """Limits a body without a declared length, or one that never ends."""
        seen, is_whole = 0, False

        async def measured() -> Message:
            nonlocal seen, is_whole
            try:
                async with asyncio.timeout(None if is_whole else BODY_TIMEOUT_S):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "The request body did not arrive in time") from None
            seen += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if seen > self.max_body:
                raise HTTPException(413, self._limit)
            return message

        return measured

    @property
    def _limit(self) -> str:
        return (
            f"The request is larger than {self.max_body:,} bytes: send its text in parts, "
            "each continuing from the previous response"
        )
