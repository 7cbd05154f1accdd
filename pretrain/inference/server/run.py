"""The server process: what `hypnos serve` starts, and how it shuts down."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from pretrain.errors import UserError
from pretrain.inference.chat import chat_form
from pretrain.inference.generate import open_run
from pretrain.inference.server.app import LOCAL, make_app
from pretrain.inference.server.engine import Engine
from pretrain.inference.server.meters import Meters
from pretrain.inference.server.service import Service
from pretrain.inference.server.store import SessionStore, store_lock
from pretrain.inference.server.warm import warm_up_app, warm_up_model
from pretrain.run.console import said_if_slow

# On shutdown: answers may finish for DRAIN_S, then clients get an error, then are cut off at CUT_S.
DRAIN_S, CUT_S = 4.0, 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """The server's options; see `hypnos serve --help`."""

    host: str
    port: int
    name: str
    store: Path
    store_bytes: int
    keys: Set[str]
    batch: int
    queue: int
    max_tokens: int
    answer_limit: int
    max_body: int
    chat_template: Path | None
    chat_template_kwargs: Mapping[str, Any] | None
    until: float
    precision: str


def check(options: Options) -> None:
    """UserError if the server would be public without keys, or if limits contradict each other."""
    if options.host not in LOCAL and not options.keys:
        raise UserError(
            f"--host {options.host} lets other machines connect: give --api-keys FILE with one key "
            "per line, or leave out --host to serve this machine only"
        )
    if options.max_tokens > options.answer_limit:
        raise UserError(
            f"--max-tokens {options.max_tokens} is above --answer-limit {options.answer_limit}: "
            "lower the first or raise the second"
        )


def serve(folder: Path, options: Options, say: Callable[[str], None]) -> None:
    """Serves a run until the process is told to stop.

    Args:
        say: receives lines on where it listens, and what it found in its store.
    Raises:
        UserError: the run has no text model; another server has the store; the port is taken.
    """
    check(options)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    # first, so that a run that cannot be served is left untouched
    with said_if_slow(f"opening {folder}", say):
        decoder, tokenizer = open_run(folder, options.precision)
        form = chat_form(tokenizer, options.chat_template, options.chat_template_kwargs)
    with store_lock(options.store):
        with said_if_slow(f"warming up, and reading {options.store}", say):
            warm_up_model(decoder)
            store = SessionStore(options.store, options.store_bytes, decoder, say)
        engine = Engine(options.batch, options.queue)
        service = Service(
            options.name, decoder, tokenizer, form, store, engine, options.max_tokens,
            options.answer_limit, options.until,
        )  # fmt: skip
        app = make_app(service, options.keys, options.max_body)
        config = uvicorn.Config(
            app, options.host, options.port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=CUT_S, server_header=False, backlog=512,
        )  # fmt: skip

        def listening() -> None:
            engine.meters = Meters()  # without the warm-up request
            say(_welcome(options, service))

        try:
            warm_up = partial(warm_up_app, app, options.name, next(iter(options.keys), ""))
            Server(config, engine, warm_up, listening).run()
        finally:
            engine.close()
            service.writer.shutdown()


class Server(uvicorn.Server):
    """Warms up before it listens; reports when it listens, or why it cannot; on shutdown gives
    answers in progress a little time.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        engine: Engine,
        warm_up: Callable[[], Awaitable[None]],
        listening: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._engine, self._warm_up, self._listening = engine, warm_up, listening

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await self._warm_up()
        try:
            await super().startup(sockets)  # type: ignore[arg-type]
        except SystemExit as end:  # raised by uvicorn after an error that it has logged
            where = f"{self.config.host}:{self.config.port}"
            raise UserError(
                f"{where}: cannot listen there: {end.__context__}; choose another --port, or an "
                "address of this machine as --host"
            ) from None
        self._listening()

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._engine.stop(DRAIN_S)
        await super().shutdown(sockets)  # type: ignore[arg-type]


def _welcome(options: Options, service: Service) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    known = f"{len(service.store):,} stored, {service.store.size / 1e6:,.0f} MB"
    return f"http://{host}:{options.port}/ serves {options.name} ({known}); Ctrl-C stops it"
