"""A stopping server finishes answers that are nearly done, and informs the other clients."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from pretrain.inference.server import run as run_module
from tests.server.serving import NAME, serving, until

# No answer ends by itself.
ASK: dict[str, Any] = {"model": NAME, "temperature": 0, "extra_body": {"ignore_eos": True}}


def test_who_asked_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For a long answer, streamed or whole, and for one that waits; a short one is finished."""
    monkeypatch.setattr(run_module, "DRAIN_S", 2.0)
    told = dict[str, Any]()

    with serving(run, tmp_path, batch=5) as served:
        client, load = served.client(), lambda: served.service.engine.load

        def ask(name: str, **options: Any) -> None:
            try:
                answer = client.completions.create(prompt="a", **ASK, **options)
                told[name] = answer.choices[0].finish_reason
            except openai.APIStatusError as error:
                told[name] = error.status_code

        def stream() -> None:
            events = client.responses.create(
                input="a", max_output_tokens=90_000, stream=True, **ASK
            )
            *_, told["stream"] = events

        def start(work: Callable[..., None], *args: Any, **options: Any) -> None:
            threads.append(threading.Thread(target=work, args=args, kwargs=options))
            threads[-1].start()

        threads = list[threading.Thread]()
        start(stream)
        start(ask, "whole", max_tokens=90_000)
        until(lambda: load()["active"] == 2)
        start(ask, "short", max_tokens=40)
        until(lambda: load()["active"] == 3 or "short" in told)
        start(ask, "waits", n=4)  # more places than the two long answers leave
        until(lambda: load()["waiting"] == 1)
        served.server.should_exit = True
        for thread in threads:
            thread.join()
    event = told.pop("stream")
    assert told == {"whole": 503, "short": "length", "waits": 503}
    assert event.type == "error" and event.message == "The server is stopping."
    assert not caplog.records
