"""kill -9 at any moment: every id that a client received can be continued, with the same answers.

HYPNOS_KILLS=100 kills more often than by default.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.data.texts import make_texts
from tests.server.serving import NAME, make_run

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("HYPNOS_KILLS", "5"))
PARTS = max(4, 2 * KILLS)
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_output_tokens": 20}


@dataclass
class Process:
    """A `hypnos serve` process that is killed and restarted."""

    run: Path
    store: Path

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="me", max_retries=0, timeout=120
        )
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-m", "launch", "serve", str(self.run), "--port", str(self.port),
            "--store", str(self.store),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        while "serves tiny" not in said:
            line = self.process.stderr.readline()
            assert line, f"it ended: {said}"
            said += line
        assert "not a stored session" not in said and "other weights" not in said

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def process(run: Path, store: Path) -> Iterator[Process]:
    found = Process(run, store)
    try:
        yield found
    finally:
        found.client.close()
        found.kill()


def steps() -> list[str]:
    """A long text in parts, about ten thousand tokens, with a question after every second part."""
    parts = []
    for i in range(PARTS):
        parts.append("".join(make_texts(20, seed=i)))
        parts += ["what did the night write?"] * (i % 2)
    return parts


def ask(client: openai.OpenAI, text: str, last: str | None) -> openai.types.responses.Response:
    return client.responses.create(
        input=text, **GREEDY, **({"previous_response_id": last} if last else {})
    )


@pytest.fixture(scope="module")
def long_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(corpus, tmp_path_factory.mktemp("killed"), window=128)


def test_a_server_that_is_killed_says_what_another_says(long_run: Path, tmp_path: Path) -> None:
    with process(long_run, tmp_path / "left alone") as server:
        expected, last = [], None
        begin = time.monotonic()
        for text in steps():
            answer = ask(server.client, text, last)
            expected.append(answer.output_text)
            last = answer.id
        usage, seconds = answer.usage, (time.monotonic() - begin) / len(expected)
        assert usage is not None and usage.input_tokens > 1000 * PARTS // 2
        assert len(set(expected)) > 2

    chance, kills, told = random.Random(0), 0, list[tuple[str, str]]()
    with process(long_run, tmp_path / "killed") as server:
        for text in steps():
            last = told[-1][0] if told else None
            answers: list[openai.types.responses.Response] = []
            while not answers:
                asking = threading.Thread(target=_try, args=(server, text, last, answers))
                asking.start()
                if kills < KILLS and chance.random() < 0.7:
                    time.sleep(chance.uniform(0, 1.2 * seconds))
                    server.kill()
                    kills += 1
                    asking.join()
                    server.start()
                asking.join()
            told.append((answers[0].id, answers[0].output_text))
        assert kills == KILLS
        assert [text for _, text in told] == expected
        for id, text in told:
            assert server.client.responses.retrieve(id).output_text == text
        last = server.client.responses.retrieve(told[-1][0])
        assert last.usage is not None and last.usage.total_tokens == usage.total_tokens

        server.kill()
        server.start()
        # here, not later: an answer that is being stored also has a draft
        assert not list((tmp_path / "killed").glob(".*.draft"))
        begin = time.perf_counter()
        stream = server.client.responses.create(
            input="and the day?", previous_response_id=told[-1][0], stream=True, **GREEDY
        )
        next(event for event in stream if event.type == "response.output_text.delta")
        first = 1000 * (time.perf_counter() - begin)
        read = f"{usage.total_tokens:,} tokens"
        print(f"{kills} kills; first token after a start, {read}: {first:.0f} ms")
        stream.close()


def _try(
    server: Process, text: str, last: str | None, answers: list[openai.types.responses.Response]
) -> None:
    """Sends a request to a server that may be killed."""
    try:
        answers.append(ask(server.client, text, last))
    except openai.APIConnectionError:
        return
