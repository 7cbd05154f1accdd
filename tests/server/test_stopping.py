"""A stopping server finishes answers that are nearly done, and informs the other clients."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from pretrain.inference.server import run as run_module
from tests.server.serving import NAME, serving

ASK: dict[str, Any] = {"model": NAME, "temperature": 0}


def test_who_asked_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For a long answer, streamed or whole, and for one that waits; a short one is finished."""
    monkeypatch.setattr(run_module, "DRAIN_S", 2.0)
    told = dict[str, Any]()

    with serving(run, tmp_path, batch=3) as served:
        client = served.client()

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

        load = lambda: served.service.engine.load  # noqa: E731
        threads = [
            threading.Thread(target=stream),
            threading.Thread(target=ask, args=("whole",), kwargs={"max_tokens": 90_000}),
            threading.Thread(target=ask, args=("short",), kwargs={"max_tokens": 40}),
        ]
        for number, thread in enumerate(threads, 1):
            thread.start()
            while load()["active"] < number:
                time.sleep(0.001)
        waits = threading.Thread(target=ask, args=("waits",))
        waits.start()
        while not load()["waiting"]:
            time.sleep(0.001)
        served.server.should_exit = True
        for thread in (*threads, waits):
            thread.join()
    event = told.pop("stream")
    assert told == {"whole": 503, "short": "length", "waits": 503}
    assert event.type == "error" and event.message == "The server is stopping."
    assert not caplog.records
