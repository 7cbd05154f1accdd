"""Many sessions on one thread: each produces what it would alone, and fails alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from pretrain.inference.sampling import Choice, Sampler
from tests.server.serving import NAME, Serving, serving

ASK: dict[str, Any] = {"model": NAME, "temperature": 0}


def test_together_as_alone(served: Serving) -> None:
    """With different lengths, N, kinds and ends; some wait for a slot, some for their sleep."""
    client = served.client()

    def said(number: int) -> str:
        text = " ".join(["sleep", "wake", "night", "day"][number % 4 :] * (1 + number))
        most = 5 + 7 * (number % 4)
        if number % 2:
            passes = {"passes": 1 + number % 3}
            answer = client.completions.create(
                prompt=text, max_tokens=most, extra_body=passes, **ASK
            )
            return answer.choices[0].text
        return client.responses.create(
            input=text, max_output_tokens=most, store=False, **ASK
        ).output_text

    alone = [said(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(said, range(8)))
    assert together == alone and len(set(alone)) == 8


def test_what_prometheus_reads(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path) as served:
        client = served.client()
        client.completions.create(prompt="day " * 100, max_tokens=7, **ASK)
        usage = client.completions.create(prompt="night", max_tokens=5, n=2, **ASK).usage
        found = {
            (sample.name, sample.labels.get("reason")): sample.value
            for family in text_string_to_metric_families(
                urlopen(f"{served.url}/metrics").read().decode()
            )
            for sample in family.samples
        }
    assert usage is not None
    assert found["hypnos_generation_tokens_total", None] == 7 + 2 * 5
    assert found["hypnos_answers_total", "length"] == 3
    assert found["hypnos_prompt_tokens_total", None] > usage.prompt_tokens > 0
    assert found["hypnos_sleep_passes_total", None] > 0
    assert found["hypnos_time_to_first_token_seconds_count", None] == 3
    assert found["hypnos_time_between_tokens_seconds_count", None] == 7 + 2 * 5 - 3
    assert found["hypnos_requests_running", None] == found["hypnos_requests_waiting", None] == 0


def test_a_long_input_does_not_keep_others_waiting(served: Serving) -> None:
    """It is read one window at a time: another answer is produced meanwhile."""
    client, order = served.client(), list[str]()

    def long() -> None:
        client.completions.create(prompt="day " * 600, max_tokens=1, **ASK)
        order.append("long")

    reading = threading.Thread(target=long)
    reading.start()
    while not served.service.engine.load["active"]:
        threading.Event().wait(0.001)
    client.completions.create(prompt="a", max_tokens=5, **ASK)
    order.append("short")
    reading.join()
    assert order == ["short", "long"]


def test_what_fails_fails_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose = Sampler.choose

    def fails_at_top_k_7(self: Sampler, logits: Tensor, *rest: Any) -> Choice:
        if self.sampling.top_k == 7 and self.sampling.min_p:
            raise RuntimeError("broken")
        return choose(self, logits, *rest)

    monkeypatch.setattr(Sampler, "choose", fails_at_top_k_7)
    broken = {"extra_body": {"top_k": 7, "min_p": 0.1}}
    with serving(run, tmp_path) as found:
        client = found.client()
        ask = ASK | {"input": "a", "max_output_tokens": 40}
        with client.responses.create(stream=True, **ask) as stream:
            next(iter(stream))
            with pytest.raises(openai.InternalServerError, match="its log says why"):
                client.responses.create(**ask, **broken)
            assert [event.type for event in stream][-1] == "response.incomplete"
        events = list(client.responses.create(stream=True, **ask, **broken))
        assert events[-1].type == "error" and "its log" in events[-1].message
        with pytest.raises(openai.APIError, match="its log says why"):
            list(client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "a"}], stream=True, **broken
            ))  # fmt: skip
        assert not found.service.engine.load["active"]
    assert "RuntimeError: broken" in caplog.text


def test_a_file_that_is_gone_or_damaged_is_read_anew(run: Path, tmp_path: Path) -> None:
    """A history whose beginning was stored in it is still answered."""
    messages = [{"role": "user", "content": "day " * 60}]
    with serving(run, tmp_path) as found:
        client = found.client(timeout=60)

        def answer() -> str:
            said = client.chat.completions.create(messages=messages, **ASK)  # type: ignore[call-overload]
            return str(said.choices[0].message.content)

        first = answer()
        for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(b"x" * 100)):
            stored = list(tmp_path.glob("*.safetensors"))
            assert stored
            for path in stored:
                spoil(path)
            assert answer() == first


def test_a_server_whose_engine_has_stopped_says_so(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path) as found:
        assert httpx2.get(f"{found.url}/health").json()["status"] == "ok"
        assert httpx2.head(f"{found.url}/health").status_code == 200
        found.service.engine.close()
        told = httpx2.get(f"{found.url}/health")
        assert (told.status_code, told.json()["status"]) == (503, "stopped")
