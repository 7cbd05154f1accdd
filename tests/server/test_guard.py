"""Access, limits and validation: every refusal has OpenAI's form and says what to do."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from pretrain.inference.server.answer import Answers
from pretrain.inference.server.job import Facts, Reading
from pretrain.inference.server.schemas import CompletionRequest
from tests.server.serving import NAME, Serving, serving, until

ASK: dict[str, Any] = {"model": NAME, "temperature": 0}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"model": "gpt-9"}, "model", "model_not_found"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content", "invalid_value",
        ),
        ({"input": []}, "input", "invalid_value"),
        ({"input": "\ud800"}, "input[0].content", "invalid_value"),
        ({"conversation": "conv_0", "previous_response_id": "resp_0"}, "conversation",
         "invalid_value"),
        ({"previous_response_id": "resp_0"}, "previous_response_id",
         "previous_response_not_found"),
        ({"conversation": "../../etc/passwd"}, "conversation", "not_found"),
        ({"extra": {"a": {}}}, "extra", "unknown_parameter"),
    ],
)  # fmt: skip
def test_bad_input_is_named(served: Serving, change: dict[str, Any], param: str, code: str) -> None:
    body = json.dumps(ASK | {"input": "a"} | change)
    answer = httpx2.post(
        f"{served.url}/v1/responses", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error" and error["message"].endswith(".")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": NaN}', b'{"model": 1e999}']
)
def test_what_is_no_json_object_is_refused(served: Serving, body: bytes) -> None:
    for path in ("responses", "chat/completions", "completions", "conversations"):
        answer = httpx2.post(
            f"{served.url}/v1/{path}", content=body, headers={"Content-Type": "application/json"}
        )
        if body == b"" and path == "conversations":
            continue
        assert answer.status_code == 400 and answer.json()["error"]["message"], (path, answer.text)


def test_unknown_paths_and_methods_have_the_form_too(served: Serving) -> None:
    assert httpx2.get(f"{served.url}/v2").json()["error"]["message"] == "Not Found."
    wrong = httpx2.get(f"{served.url}/v1/responses")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_errors_are_as_the_openapi_description_has_them(served: Serving) -> None:
    described = httpx2.get(f"{served.url}/openapi.json").json()
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert set(operation["responses"]) == {"200", "default"}, path
    assert {*described["components"]["schemas"]["Detail"]["properties"]} == {
        "message", "type", "param", "code"
    }  # fmt: skip
    id = served.client("k").conversations.create().id
    for query in ("limit=0", "limit=101", "order=up"):
        answer = httpx2.get(
            f"{served.url}/v1/conversations/{id}/items?{query}",
            headers={"Authorization": "Bearer k"},
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_no_page_runs_scripts_from_elsewhere(served: Serving) -> None:
    said = [httpx2.get(f"{served.url}{path}").text for path in ("/", "/docs", "/redoc")]
    assert not any("src=" in text or "//cdn" in text for text in said)


def test_one_client_cannot_see_anothers(served: Serving) -> None:
    mine, yours = served.client("mine"), served.client("yours")
    history: Any = [{"role": "user", "content": "a secret " * 30}]
    chat = mine.chat.completions.create(messages=history, **ASK)
    said = mine.responses.create(input="secret", **ASK)
    conversation = mine.conversations.create()
    for attempt in (
        lambda: yours.responses.retrieve(said.id),
        lambda: yours.responses.delete(said.id),
        lambda: yours.responses.input_items.list(said.id),
        lambda: yours.responses.create(input="a", previous_response_id=said.id, **ASK),
        lambda: yours.responses.create(input="a", previous_response_id=chat.id, **ASK),
        lambda: yours.responses.create(input="a", conversation=conversation.id, **ASK),
        lambda: yours.conversations.retrieve(conversation.id),
        lambda: yours.conversations.delete(conversation.id),
        lambda: yours.chat.completions.retrieve(chat.id),
        lambda: yours.chat.completions.delete(chat.id),
        lambda: mine.responses.retrieve(conversation.id),  # ids of different kinds
        lambda: mine.responses.retrieve(chat.id),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            attempt()
        assert "not found" in str(refused.value)
    again = yours.chat.completions.create(messages=history, **ASK)
    assert again.usage and again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens == 0
    assert mine.responses.retrieve(said.id).id == said.id
    assert mine.chat.completions.retrieve(chat.id).id == chat.id


def test_keys(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, keys=frozenset({"good"})) as found:
        for key in ("bad", "Good"):
            with pytest.raises(openai.AuthenticationError) as refused:
                found.client(key).models.list()
            assert refused.value.code == "invalid_api_key"
        assert httpx2.get(f"{found.url}/v1/models").status_code == 401
        assert found.client("good").models.list().data
        assert httpx2.get(f"{found.url}/health").status_code == 200
        assert "hypnos" in httpx2.get(found.url).text


def test_without_keys_a_page_elsewhere_cannot_ask(served: Serving) -> None:
    """As if a browser resolved evil.example to 127.0.0.1 (DNS rebinding), or posted a form."""
    answer = httpx2.get(f"{served.url}/v1/models", headers={"Host": "evil.example:80"})
    assert answer.status_code == 403
    body = '{"model": "tiny", "prompt": "a"}'
    for form in ({"Content-Type": "text/plain"}, {}):
        refused = httpx2.post(f"{served.url}/v1/completions", content=body, headers=form)
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (415, None)
        assert "Content-Type: application/json" in error["message"]


def test_a_large_body_is_refused(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, max_body=1000) as found:
        big = b'{"model": "tiny", "prompt": "' + b"a" * 2000 + b'"}'

        def chunks() -> Any:
            for start in range(0, len(big), 100):
                yield big[start : start + 100]

        for content in (big, chunks()):
            answer = httpx2.post(
                f"{found.url}/v1/completions", content=content,
                headers={"Content-Type": "application/json"},
            )  # fmt: skip
            assert answer.status_code == 413
            assert "1,000 bytes" in answer.json()["error"]["message"]


def test_a_full_queue_refuses_and_the_others_are_answered(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, batch=1, queue=1) as found:
        client, refused, said = found.client(), [], []

        def ask() -> None:
            try:
                answer = client.completions.create(prompt="a", max_tokens=60, **ASK)
                said.append(answer.choices[0].text)
            except openai.RateLimitError as error:
                assert error.code == "queue_full" and error.response.headers["retry-after"] == "1"
                refused.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused and said and len({*said}) == 1 and len(refused) + len(said) == 8


def test_an_answer_has_a_limit(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, answer_limit=20) as found:
        client, message = found.client(), {"role": "user", "content": "a"}
        asks: Any = {
            "max_tokens": lambda n: client.completions.create(prompt="a", max_tokens=n, **ASK),
            "max_completion_tokens": lambda n: client.chat.completions.create(
                messages=[message], max_completion_tokens=n, **ASK
            ),
            "max_output_tokens": lambda n: client.responses.create(
                input="a", max_output_tokens=n, **ASK
            ),
        }
        for param, ask in asks.items():
            assert ask(20)
            for beyond in (21, 10**33):
                with pytest.raises(
                    openai.BadRequestError, match=r"at most 20 .*--answer-limit"
                ) as e:
                    ask(beyond)
                assert e.value.param == param


def test_an_answer_of_no_stated_length_has_that_limit_too(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, answer_limit=3) as found:
        never = {"extra_body": {"ignore_eos": True}}
        said = found.client().completions.create(prompt="a", **ASK | never)
        assert said.usage.completion_tokens == 3


def test_a_conversation_has_one_answer_at_a_time(served: Serving) -> None:
    client = served.client()
    conversation = client.conversations.create()
    ask: Any = ASK | {"input": "a", "conversation": conversation.id}
    with client.responses.create(stream=True, max_output_tokens=300, **ask) as stream:
        next(iter(stream))
        with pytest.raises(openai.ConflictError):
            client.responses.create(**ask)
    until(lambda: conversation.id not in served.service.locked)  # it sees that the client is gone
    assert client.responses.create(**ask).output_text is not None
    assert len(client.conversations.items.list(conversation.id).data) == 2


@pytest.mark.parametrize("turns", range(4))
def test_an_answer_that_is_cancelled_just_as_something_comes_of_it_ends(
    served: Serving, turns: int
) -> None:
    """After so many turns of the event loop the event has reached what waits for it."""

    async def is_cancelled() -> bool:
        start = served.service.start_text("a", None)
        request = CompletionRequest(model=NAME, prompt="a")
        answers = Answers(served.service, start, request, most=1)
        waiting = asyncio.ensure_future(answers.finish())
        await asyncio.sleep(0.01)
        answers._events.put_nowait((0, Reading(Facts.of(start.session))))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting}, timeout=1)
        return waiting.cancelled()

    assert asyncio.run(is_cancelled())


def gone(served: Serving) -> float:
    """The number of abandoned answers, as counted in /metrics."""
    registry = served.service.engine.meters.registry
    return registry.get_sample_value("hypnos_answers_total", {"reason": "cancelled"}) or 0


def test_a_client_that_goes_away_frees_its_place(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(run, tmp_path) as served:  # its own, as other tests' clients also go away
        monkeypatch.setattr(served.service.tokenizer, "eos", -1)  # no answer ends by itself

        def active() -> int:
            return served.service.engine.load["active"]

        long = ASK | {"prompt": "a", "max_tokens": 100_000}
        with served.client().completions.create(stream=True, **long) as stream:
            next(iter(stream))
        until(lambda: not active() and gone(served) == 1)
        body = json.dumps(long).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        )
        port = int(served.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as waits:  # not streamed
            waits.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            until(lambda: active() == 1)
        until(lambda: not active() and gone(served) == 2)
