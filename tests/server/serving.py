"""A server in this process, used by the real client over HTTP, on its own port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn

from pretrain.config.schema import (
    Config,
    CorpusConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    SleepConfig,
    TrainConfig,
)
from pretrain.inference.chat import chat_form
from pretrain.inference.generate import open_run
from pretrain.inference.server.app import make_app
from pretrain.inference.server.engine import Engine
from pretrain.inference.server.run import CUT_S, Server
from pretrain.inference.server.service import Service
from pretrain.inference.server.store import SessionStore, store_lock
from pretrain.trainer import train

NAME, WINDOW = "tiny", 16


def make_run(corpus: Path, folder: Path, window: int = WINDOW) -> Path:
    """A run whose model has hardly been trained, and remembers: its decays are slow."""
    config = Config(
        run=RunConfig(name=NAME, dir=str(folder)),
        model=ModelConfig(
            d_model=32, layers=["attention", "delta", "attention", "delta"],
            attention_heads=2, attention_kv_heads=1, attention_head_dim=16,
            delta_key_heads=1, delta_value_heads=2, delta_key_dim=8, delta_value_dim=16,
            mlp_width=48, embedding_std=1.0, init_std=0.2, head_std=0.2, decay_init=(1e-4, 1e-2),
        ),
        sleep=SleepConfig(passes=3, window=window, when="always"),
        data=DataConfig(
            tokenizer=str(corpus / "small.model"),
            train=[CorpusConfig(path=str(corpus / "shards" / "train"))],
            heldout=str(corpus / "shards" / "heldout"),
            windows=2,
        ),
        train=TrainConfig(steps=1, batch=1, log_every=1, eval_every=5, checkpoint_every=1),
    )  # fmt: skip
    return train(config, progress=False)


@dataclass
class Serving:
    """A running server's address and parts."""

    url: str
    service: Service
    server: Server
    clients: ExitStack  # clients to be closed with the server

    def client(self, key: str = "a key", **options: Any) -> openai.OpenAI:
        return self.clients.enter_context(
            openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)
        )


def until(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds; it must hold soon."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it does not hold"
        threading.Event().wait(0.01)


async def nothing() -> None:
    """In place of the request that warms the server up."""


@contextmanager
def serving(
    run: Path,
    store: Path,
    *,
    keys: frozenset[str] = frozenset(),
    store_bytes: int = 10**9,
    batch: int = 8,
    queue: int = 64,
    max_body: int = 10**6,
    answer_limit: int = 10**5,
) -> Iterator[Serving]:
    """Runs the application of `hypnos serve` until the end of the block."""
    with store_lock(store), socket.create_server(("127.0.0.1", 0)) as listener:
        decoder, tokenizer = open_run(run)
        form = chat_form(tokenizer)
        sessions = SessionStore(store, store_bytes, decoder, print)
        engine = Engine(batch, queue)
        service = Service(NAME, decoder, tokenizer, form, sessions, engine, 12, answer_limit)
        config = uvicorn.Config(
            make_app(service, keys, max_body), log_level="warning", timeout_graceful_shutdown=CUT_S
        )
        server = Server(config, engine, nothing, lambda: None)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with ExitStack() as clients:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                yield Serving(url, service, server, clients)
        finally:
            server.should_exit = True
            thread.join()
            engine.close()
            service.writer.shutdown()
