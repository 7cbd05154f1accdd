"""Addresses where a server cannot listen, and names with a slash."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
import uvicorn

from pretrain.errors import UserError
from pretrain.inference.server.engine import Engine
from pretrain.inference.server.run import Server
from tests.server.serving import nothing, serving


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "(assign requested|could not bind on any) address"),  # by Python's version
        ("127.0.0.1", "already in use"),
    ],
)
def test_why_it_cannot_listen_is_told(host: str, why: str) -> None:
    engine = Engine(1, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = uvicorn.Config(lambda: None, host, taken.getsockname()[1], lifespan="off")
        server = Server(config, engine, nothing, lambda: None)
        config.load()
        server.lifespan = config.lifespan_class(config)
        with pytest.raises(UserError, match=f"{why}.*another --port, or an address"):
            asyncio.run(server.startup())
    engine.close()


def test_a_model_whose_name_holds_a_slash_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(run, tmp_path) as served:
        served.service.name = "org/tiny"
        assert served.client().models.retrieve("org/tiny").id == "org/tiny"
