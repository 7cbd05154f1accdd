"""Capacity is limited and released: batch slots, the queue, and the memory of sessions."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from torch import Tensor

from pretrain.inference.memory import SessionMemory
from pretrain.inference.sampling import Choice, Sampler
from pretrain.inference.server.engine import log
from pretrain.model.hybrid import HybridLM
from tests.server.serving import NAME, Serving, serving, until

ASK: dict[str, Any] = {"model": NAME, "temperature": 0, "prompt": "a"}
ENDLESS: dict[str, Any] = {"max_tokens": 90_000, "extra_body": {"ignore_eos": True}}


@contextmanager
def under_way(served: Serving, **ask: Any) -> Iterator[openai.Stream[openai.types.Completion]]:
    """An answer that is streamed during the block, and abandoned at its end."""
    with served.client().completions.create(**ASK | ENDLESS | ask, stream=True) as stream:
        next(iter(stream))
        yield stream


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[SessionMemory]:
    """The memories created from now on, as long as they live. (A walk over all Python objects would
    meet some that other threads have not finished.)
    """
    made = weakref.WeakSet[SessionMemory]()
    make, copy = SessionMemory.__init__, SessionMemory.copy

    def made_and_noted(self: SessionMemory, model: HybridLM) -> None:
        make(self, model)
        made.add(self)

    def copied_and_noted(self: SessionMemory) -> SessionMemory:
        copied = copy(self)
        made.add(copied)
        return copied

    monkeypatch.setattr(SessionMemory, "__init__", made_and_noted)
    monkeypatch.setattr(SessionMemory, "copy", copied_and_noted)
    return made


def test_a_request_that_has_ended_leaves_no_memory(
    served: Serving,
    memories: weakref.WeakSet[SessionMemory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Freed at once, not at Python's next garbage collection: on a GPU that would be gigabytes."""
    choose, client = Sampler.choose, served.client()

    def fails_at_top_k_7(self: Sampler, logits: Tensor, *rest: Any) -> Choice:
        if self.sampling.top_k == 7:
            raise RuntimeError("broken")
        return choose(self, logits, *rest)

    def fails() -> None:
        with pytest.raises(openai.InternalServerError):
            client.completions.create(**ASK, extra_body={"top_k": 7})

    def left() -> None:
        with under_way(served):
            pass

    monkeypatch.setattr(Sampler, "choose", fails_at_top_k_7)
    monkeypatch.setattr(log, "exception", lambda *_, **__: None)  # pytest would keep what is logged
    message: Any = {"role": "user", "content": "day " * 40}
    chat: Any = {"model": NAME, "messages": [message], "max_tokens": 3}
    gc.disable()
    try:
        for ask in (
            lambda: client.completions.create(**ASK, n=2),
            lambda: list(client.completions.create(**ASK, stream=True)),
            lambda: client.chat.completions.create(**chat, n=2),
            lambda: list(client.chat.completions.create(**chat, stream=True)),
            lambda: list(client.responses.create(model=NAME, input="a", stream=True)),
            fails,
            left,
        ):
            ask()
            until(lambda: not memories)
    finally:
        gc.enable()


def test_every_answer_takes_a_place_of_the_batch(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, batch=4) as served:
        client, load = served.client(), lambda: served.service.engine.load
        with pytest.raises(openai.BadRequestError, match=r"n is at most 4 here.*--batch"):
            client.completions.create(**ASK, n=5)
        with under_way(served):
            with pytest.raises(openai.APITimeoutError):
                served.client(timeout=0.5).completions.create(**ASK, n=4)
            with under_way(served, n=3):
                assert load()["active"] == 4
            until(lambda: load() == {"active": 1, "waiting": 0, "sleeping": 0})
        assert len(client.completions.create(**ASK, n=4).choices) == 4


def test_a_request_waits_in_one_place(run: Path, tmp_path: Path) -> None:
    """Its inputs are answered one after the other if there is no room for more."""
    with serving(run, tmp_path, batch=1, queue=1) as served:
        said = served.client().completions.create(**ASK | {"prompt": ["a"] * 5, "max_tokens": 2})
        assert len(said.choices) == 5 and len({choice.text for choice in said.choices}) == 1


def test_of_a_request_that_fails_nothing_goes_on(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Sampler.choose

    def fails_after_b(self: Sampler, logits: Tensor, seen: Any, *rest: Any) -> Choice:
        if seen[b]:
            raise RuntimeError("broken")
        return choose(self, logits, seen, *rest)

    (b,) = served.service.tokenizer.encode("b")
    monkeypatch.setattr(Sampler, "choose", fails_after_b)
    with pytest.raises(openai.InternalServerError):
        served.client().completions.create(**ASK | ENDLESS | {"prompt": ["b", "a"]})
    until(lambda: served.service.engine.load["active"] == 0)


def test_who_goes_away_while_waiting_gives_its_place_back(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(run, tmp_path, batch=1, queue=1) as served:

        def is_let_in() -> bool:
            with pytest.raises((openai.APITimeoutError, openai.RateLimitError)) as told:
                served.client(timeout=0.5).completions.create(**ASK)
            return told.type is openai.APITimeoutError

        engine, goes_on = served.service.engine, threading.Event()
        with under_way(served), ExitStack() as at_the_end:
            at_the_end.callback(goes_on.set)
            monkeypatch.setattr(engine, "_answer", goes_on.wait)  # a long step
            assert is_let_in()
            until(is_let_in)  # before `load` is read, which recounts those waiting
            until(lambda: engine.load["waiting"] == 0)


def test_what_is_refused_has_taken_no_memory(
    run: Path,
    tmp_path: Path,
    memories: weakref.WeakSet[SessionMemory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(run, tmp_path, batch=1, queue=1) as served:
        client = served.client()
        first = client.responses.create(model=NAME, input="a", max_output_tokens=2)
        with under_way(served):
            waits = threading.Thread(target=lambda: client.completions.create(**ASK))
            waits.start()
            until(lambda: served.service.engine.load["waiting"] == 1)
            # a waiting request has none either; the answer has two while text is held back
            until(lambda: len(memories) == 1)
            loads = list[object]()
            monkeypatch.setattr(served.service.store, "session", lambda *ask: loads.append(ask))
            for _ in range(2):
                with pytest.raises(openai.RateLimitError):
                    client.responses.create(model=NAME, input="b", previous_response_id=first.id)
            assert not loads
        waits.join()
