"""DELETE is final, and includes data without ids; what continues from the deleted still works."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server.serving import NAME, serving, until

GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0}
LONG = "the window sleeps and the memory writes what the day has read " * 3


def user(content: str) -> Any:
    return {"role": "user", "content": content}


def test_what_is_deleted_leaves_no_text_on_the_disk(run: Path, tmp_path: Path) -> None:
    """Nor that of long inputs, further choices and conversations, which have no ids."""

    def holding(secret: str) -> int:
        return sum(secret.encode() in path.read_bytes() for path in tmp_path.glob("[!.]*"))

    with serving(run, tmp_path) as served:
        client = served.client()
        chat = client.chat.completions.create(
            messages=[{"role": "system", "content": "secret " + LONG}, user("who?")], n=3,
            model=NAME, max_tokens=4,
        )  # fmt: skip
        said = client.responses.create(input="riddle " + LONG, max_output_tokens=4, **GREEDY)
        more = client.responses.create(input="on", previous_response_id=said.id, **GREEDY)
        message: Any = {"type": "message", "role": "user", "content": "whisper " + LONG}
        conversation = client.conversations.create(items=[message])
        client.responses.create(input="a", conversation=conversation.id, store=False, **GREEDY)
        assert len(list(tmp_path.glob("turn_*"))) == 4 and holding("secret")
        client.chat.completions.delete(chat.id)
        assert not holding("secret") and holding("riddle") and holding("whisper")
        client.responses.delete(more.id)
        client.responses.delete(said.id)
        assert not holding("riddle")
        client.conversations.delete(conversation.id)
        assert not holding("whisper") and len(served.service.store) == 0


def test_what_others_go_on_from_is_kept_until_the_last_is_deleted(
    run: Path, tmp_path: Path
) -> None:
    beginning: Any = {"role": "system", "content": LONG}
    with serving(run, tmp_path) as served:
        client = served.client()
        one, two = (
            client.responses.create(input=[beginning, user(text)], **GREEDY)
            for text in ("one", "two")
        )
        marks = lambda: len(list(tmp_path.glob("mark_*")))  # noqa: E731
        assert marks() == 1
        client.responses.delete(one.id)
        assert marks() == 1
        client.responses.delete(two.id)
        assert marks() == 0


def test_two_requests_that_delete_the_same(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path) as served, ThreadPoolExecutor(2) as pool:
        client, writer, goes_on = served.client(), served.service.writer, threading.Event()
        said = client.responses.create(input="a", max_output_tokens=2, **GREEDY)
        writer.submit(goes_on.wait)  # until both have found it
        asks = [pool.submit(client.responses.delete, said.id) for _ in range(2)]
        until(lambda: writer._work_queue.qsize() == 2)
        goes_on.set()
        assert [ask.result() for ask in asks] == [None, None]
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(said.id)


def test_a_conversation_that_is_described_while_its_last_turn_is_deleted(
    run: Path, tmp_path: Path
) -> None:
    with serving(run, tmp_path) as served, ThreadPoolExecutor(2) as pool:
        client, writer, goes_on = served.client(), served.service.writer, threading.Event()
        conversation = client.conversations.create()
        ask: Any = {"conversation": conversation.id, "max_output_tokens": 2, **GREEDY}
        client.responses.create(input="one", **ask)
        two = client.responses.create(input="two", **ask)
        writer.submit(goes_on.wait)
        pool.submit(client.responses.delete, two.id)
        until(lambda: writer._work_queue.qsize() == 1)
        described = pool.submit(client.conversations.update, conversation.id, metadata={"a": "b"})
        until(lambda: writer._work_queue.qsize() == 2)
        goes_on.set()
        assert described.result().metadata == {"a": "b"}
        client.responses.create(input="three", **ask)  # it goes on from the first turn
        assert len(client.conversations.items.list(conversation.id).data) == 4


def test_a_conversation_whose_last_turn_is_gone(run: Path, tmp_path: Path) -> None:
    """It ends with the turn before; if that is missing, the error names the conversation."""
    with serving(run, tmp_path) as served:
        client = served.client()
        conversation = client.conversations.create()
        ask: Any = {"conversation": conversation.id, **GREEDY}
        one = client.responses.create(input="one", **ask)
        two = client.responses.create(input=LONG, **ask)
        client.responses.delete(two.id)
        three = client.responses.create(input="three", **ask)
        items: Any = client.conversations.items.list(conversation.id, order="asc").data
        texts = [item.content[0].text for item in items]
        assert texts == ["one", one.output_text, "three", three.output_text]
        (tmp_path / f"{three.id}.safetensors").unlink()
        with pytest.raises(openai.NotFoundError, match=f"last turn of .*'{conversation.id}'"):
            client.responses.create(input="four", **ask)
