"""hypnos serve: OpenAI's APIs over a model with persistent conversations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from launch.commands import argument, command
from launch.commands.asking import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_KWARGS,
    FOLDER,
    PRECISION,
    SLEEP_UNTIL,
)
from launch.commands.values import path, port, positive, read_text, tell
from pretrain.errors import UserError

KEY = "HYPNOS_API_KEY"


@command(
    "serve",
    "serve a model through OpenAI's APIs; every response is a session on disk",
    description="Serves a run's newest checkpoint, a checkpoint or an export over OpenAI's "
    "completions, chat completions and Responses APIs, with a page to talk to it. Needs "
    "`pip install -e '.[serve]'` in the clone.",
    example="hypnos serve runs/text-tiny --port 8000",
    arguments=[
        FOLDER,
        argument(
            "--host",
            default="127.0.0.1",
            help="address to listen on; a public one needs --api-keys",
        ),
        argument("--port", type=port, default=8000, help="port to listen on"),
        argument("--name", help="the model's name in requests (default: the folder's)"),
        argument(
            "--api-keys",
            type=path,
            metavar="FILE",
            help=f"file with valid keys, one per line (default: the one in ${KEY}, or no "
            "key needed)",
        ),
        argument(
            "--store",
            type=path,
            metavar="FOLDER",
            help="where sessions are kept (default: sessions in the run's folder, or the export's)",
        ),
        argument(
            "--store-gb",
            type=positive,
            metavar="GB",
            default=10,
            help="size limit of the store; the least recently used sessions are evicted first",
        ),
        argument("--batch", type=positive, default=64, help="answers in progress at a time"),
        argument(
            "--queue", type=positive, default=256, help="requests that may wait; more are refused"
        ),
        argument(
            "--max-tokens",
            type=positive,
            default=512,
            help="default maximum tokens of an answer",
        ),
        argument(
            "--answer-limit",
            type=positive,
            metavar="TOKENS",
            default=16_384,
            help="largest maximum that a request may set; more is refused",
        ),
        argument(
            "--max-body-mb", type=positive, default=64, metavar="MB", help="size limit of a request"
        ),
        CHAT_TEMPLATE,
        CHAT_TEMPLATE_KWARGS,
        SLEEP_UNTIL,
        PRECISION,
    ],
)
def serve(
    folder: Path,
    name: str | None,
    api_keys: Path | None,
    store: Path | None,
    store_gb: int,
    max_body_mb: int,
    **options: Any,
) -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"hypnos serve needs {error.name}: run `pip install -e '.[serve]'` in the clone"
        ) from None
    keys = _keys(api_keys)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a run's, or an export's")

    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch, Megatron and DeepSpeed", tell):
        from pretrain.inference.server.run import Options, serve

    options |= {
        "name": name or folder.resolve().name, "keys": keys, "max_body": max_body_mb * 10**6,
        "store": store or _home(folder) / "sessions", "store_bytes": store_gb * 10**9,
    }  # fmt: skip
    serve(folder, Options(**options), tell)


def _home(folder: Path) -> Path:
    """The run that a checkpoint belongs to, or the folder itself."""
    parent = folder.resolve().parent
    return parent.parent if parent.name == "checkpoints" else folder


def _keys(file: Path | None) -> frozenset[str]:
    """The valid API keys; empty: no key is needed."""
    text = os.environ.get(KEY, "") if file is None else read_text(file).removeprefix("\ufeff")
    keys = frozenset(line.strip() for line in text.splitlines() if line.strip())
    if file is not None and not keys:
        raise UserError(f"{file}: no key in it; write one per line")
    if not all(key.isascii() and key.isprintable() for key in keys):
        where = file or f"${KEY}"
        raise UserError(f"{where}: an HTTP header can hold printable ASCII only; use such a key")
    return keys
