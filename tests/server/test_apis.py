"""OpenAI's own client against the server: three APIs, one text."""

from __future__ import annotations

import json
import math
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from torch import Tensor

from pretrain.convert.export import export
from pretrain.inference.generate import continue_text, generate
from pretrain.inference.sampling import Choice, Sampler, Sampling
from pretrain.inference.server.store import SessionStore
from pretrain.inference.session import Session
from tests.documents import program
from tests.server.serving import NAME, WINDOW, Serving, serving

GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0}
LONG = "the window sleeps and the memory writes what the day has read " * 3


def continued(served: Serving, text: str, count: int, **options: Any) -> str:
    """What `hypnos generate` would produce."""
    s = served.service
    started = continue_text(
        s.decoder, s.tokenizer, text, Sampling(temperature=0), max_tokens=count, **options
    )
    return "".join(piece.text for _, piece in generate(started))


def asked(*contents: str) -> list[Any]:
    """Alternating messages of a user and an assistant."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_a_completion_is_what_generate_writes(served: Serving, client: openai.OpenAI) -> None:
    expected = continued(served, LONG, 40)
    said = client.completions.create(prompt=LONG, max_tokens=40, **GREEDY)
    assert said.choices[0].text == expected
    assert said.choices[0].finish_reason == "length"
    assert said.usage is not None
    read = len(served.service.tokenizer.encode(LONG))
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (read, 40)
    assert said.usage.wake_tokens == read + 39  # the last token is not read any more
    assert said.usage.sleep_passes == (read + 39) // WINDOW * 2

    ids = served.service.tokenizer.encode(LONG)
    assert (
        client.completions.create(prompt=ids, max_tokens=40, **GREEDY).choices[0].text == expected
    )
    chunks = list(client.completions.create(
        prompt=LONG, max_tokens=40, stream=True, stream_options={"include_usage": True}, **GREEDY
    ))  # fmt: skip
    assert "".join(c.choices[0].text for c in chunks if c.choices) == expected
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == read + 40


def test_a_context_is_slept_over_before_the_prompt(served: Serving, client: openai.OpenAI) -> None:
    context = LONG[: 2 * WINDOW + 5]
    expected = continued(served, "a day", 20, context=context)
    assert expected != continued(served, context + "a day", 20)
    asked = {"prompt": ["a day", LONG], "max_tokens": 20, **GREEDY}
    said = client.completions.create(n=2, extra_body={"context": context}, **asked)
    assert [choice.text for choice in said.choices[:2]] == [expected] * 2
    assert said.choices[2].text == continued(served, LONG, 20, context=context)
    assert said.usage is not None
    texts = [context, "a day", context, LONG]
    read = sum(len(served.service.tokenizer.encode(text)) for text in texts)
    assert said.usage.prompt_tokens == read
    one = client.completions.create(
        prompt="a day", max_tokens=1, extra_body={"context": context, "passes": 1}, **GREEDY
    )
    assert one.usage is not None and one.usage.model_dump()["sleep_passes"] == 0


def test_completions_of_several_prompts_with_echo(served: Serving, client: openai.OpenAI) -> None:
    said = client.completions.create(
        prompt=["a day", "a night"], n=2, echo=True, max_tokens=5, **GREEDY
    )
    assert [choice.index for choice in said.choices] == [0, 1, 2, 3]
    for choice, prompt in zip(said.choices, ["a day"] * 2 + ["a night"] * 2, strict=True):
        assert choice.text == prompt + continued(served, prompt, 5)


def test_echo_tells_how_likely_the_prompt_was(served: Serving, client: openai.OpenAI) -> None:
    """As lm-evaluation-harness asks; compared with a session that reads by token and sleeps."""
    decoder, tokenizer = served.service.decoder, served.service.tokenizer
    ids = tokenizer.encode(LONG)
    session, expected = Session(decoder), []
    for token, after in pairwise(ids):
        logits = session.read([token])
        expected.append(logits[: tokenizer.vocab_size].double().log_softmax(0)[after].item())
    assert session.slept > 1

    ask: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 1, **GREEDY}
    choice = client.completions.create(prompt=[ids, "a day"], **ask).choices[0]
    told = choice.logprobs
    assert told is not None and told.token_logprobs and told.top_logprobs and told.tokens
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    assert "".join(told.tokens) == choice.text and choice.text.startswith(LONG)
    likeliest = [max(top.values()) for top in told.top_logprobs[1:]]
    assert all(p <= best for p, best in zip(told.token_logprobs[1:], likeliest, strict=True))

    only = client.completions.create(prompt=ids, **ask | {"max_tokens": 0}).choices[0].logprobs
    assert only is not None and only.token_logprobs == told.token_logprobs[:-1]
    streamed = [
        piece.choices[0].logprobs
        for piece in client.completions.create(prompt=ids, stream=True, **ask)
    ]
    assert [p for each in streamed if each for p in each.token_logprobs or []] == (
        told.token_logprobs
    )


def test_a_completion_that_ends_at_once_has_the_score_of_its_end(
    served: Serving, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-evaluation-harness takes the last of all scores for the one token that it requests."""
    eos = served.service.tokenizer.eos

    def ends(self: Sampler, logits: Tensor, *_: Any) -> Choice:
        return next(iter(self.told([eos], logits[None])))

    ask: dict[str, Any] = {"echo": True, "logprobs": 1, "prompt": "a day", **GREEDY}
    heard = client.completions.create(**ask, max_tokens=0).choices[0].logprobs
    monkeypatch.setattr(Sampler, "choose", ends)
    choice = client.completions.create(**ask, max_tokens=1).choices[0]
    told = choice.logprobs
    assert choice.text == "a day" and choice.finish_reason == "stop"
    assert heard is not None and told is not None and told.token_logprobs and told.top_logprobs
    assert told.token_logprobs[:-1] == heard.token_logprobs and told.token_logprobs[-1] < 0
    assert told.tokens and told.tokens[-1] == "" and len(told.top_logprobs[-1]) in (1, 2)
    (*_, last) = client.completions.create(**ask, max_tokens=1, stream=True)
    scores = last.choices[0].logprobs
    assert scores is not None and (scores.token_logprobs or [])[-1] == told.token_logprobs[-1]


def test_seeds_repeat_and_differ(client: openai.OpenAI) -> None:
    def said(seed: int) -> list[str]:
        answer = client.completions.create(
            model=NAME, prompt="a", max_tokens=20, seed=seed, n=2, temperature=1
        )
        return [choice.text for choice in answer.choices]

    assert said(1) == said(1) != said(3)
    assert len({*said(1)}) == 2


def test_what_ends_an_answer_is_the_clients_to_say(served: Serving, client: openai.OpenAI) -> None:
    """Fields that OpenAI lacks, as vLLM's benchmarks send them."""

    def said(liked: int, most: int = 7, **more: Any) -> tuple[str, int, str]:
        answer = client.completions.create(
            prompt="a", max_tokens=most, logit_bias={str(liked): 100}, extra_body=more, **GREEDY
        )
        assert answer.usage is not None
        (choice,) = answer.choices
        return choice.finish_reason, answer.usage.completion_tokens, choice.text

    tokenizer = served.service.tokenizer
    eos, usual = tokenizer.eos, tokenizer.encode("the")[-1]
    assert said(eos) == ("stop", 0, "")
    assert said(eos, min_tokens=3)[:2] == ("stop", 3)
    assert said(eos, ignore_eos=True)[:2] == ("length", 7)
    assert said(usual)[:2] == ("length", 7)
    assert said(usual, stop_token_ids=[usual]) == ("stop", 0, "")
    assert said(usual, stop_token_ids=[usual], min_tokens=2)[:2] == ("stop", 2)
    # minus two per occurrence, and two once: after 49 occurrences another token is as likely
    held = said(usual, most=70, frequency_penalty=2, presence_penalty=2)[2]
    assert said(usual, most=70)[2].startswith(held[:20]) and held != said(usual, most=70)[2]
    for wrong in ({"stop_token_ids": [tokenizer.vocab_size]}, {"logit_bias": {"99999": 1}}):
        with pytest.raises(openai.BadRequestError, match=r"Token ids are 0\.\."):
            client.completions.create(prompt="a", extra_body=wrong, **GREEDY)
    nothing_left = {"stop_token_ids": [*range(tokenizer.vocab_size)], "min_tokens": 1}
    with pytest.raises(openai.BadRequestError, match="leave no token for min_tokens"):
        client.completions.create(prompt="a", extra_body=nothing_left, **GREEDY)


def test_logprobs_are_those_of_the_model(client: openai.OpenAI) -> None:
    said = client.completions.create(prompt="a", max_tokens=6, logprobs=2, **GREEDY)
    scores = said.choices[0].logprobs
    assert scores is not None and scores.token_logprobs and scores.top_logprobs
    for token, logprob, top in zip(
        scores.tokens or [], scores.token_logprobs, scores.top_logprobs, strict=True
    ):
        assert logprob == max(top.values()) == top[token]
        assert sum(map(math.exp, top.values())) <= 1
    for start, token in zip(scores.text_offset or [], scores.tokens or [], strict=True):
        assert "\N{REPLACEMENT CHARACTER}" in token or said.choices[0].text.startswith(token, start)
    ask = {"prompt": "a", "max_tokens": 6, "logprobs": 0, "stream": True}
    pieces = [p.choices[0].logprobs for p in client.completions.create(**ask, **GREEDY)]
    assert [at for told in pieces if told for at in told.text_offset or []] == scores.text_offset
    asks = asked("a"), {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    answer = client.chat.completions.create(messages=asks[0], **asks[1], **GREEDY).choices[0]
    content = answer.logprobs and answer.logprobs.content
    assert content and len(content) == 6 and len(content[0].top_logprobs) == 3
    written = b"".join(bytes(token.bytes or ()) for token in content).decode(errors="replace")
    assert written.removeprefix(" ") == answer.message.content


def test_a_history_that_is_resent_goes_on_from_what_is_stored(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(messages=asked(LONG), **GREEDY)
    answer = first.choices[0].message.content or ""
    history = asked(LONG, answer, "and then?")
    second = client.chat.completions.create(messages=history, **GREEDY)
    assert first.usage and second.usage and second.usage.prompt_tokens_details
    assert first.usage.prompt_tokens > 2 * WINDOW
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached == first.usage.total_tokens
    assert second.usage.wake_tokens < 50

    # the same with the id, and again as a stream: what is stored does not change
    by_id = {"input": "and then?", "previous_response_id": first.id, **GREEDY}
    assert client.responses.create(**by_id).output_text == second.choices[0].message.content
    stream = client.chat.completions.create(messages=history, stream=True, **GREEDY)
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == second.choices[0].message.content

    # another history shares only the long beginning
    other = client.chat.completions.create(messages=asked(LONG, "no", "why?"), **GREEDY)
    assert other.usage and other.usage.prompt_tokens_details
    beginning = other.usage.prompt_tokens_details.cached_tokens or 0
    assert 2 * WINDOW < beginning < first.usage.prompt_tokens


def test_what_is_cached_changes_no_answer(served: Serving) -> None:
    """A client whose prefix is stored, and a new client."""
    messages: Any = [{"role": "system", "content": LONG}, *asked("who?")]

    def said(key: str) -> tuple[str | None, int | None]:
        answer = served.client(key).chat.completions.create(messages=messages, **GREEDY)
        assert answer.usage and answer.usage.prompt_tokens_details
        cached = answer.usage.prompt_tokens_details.cached_tokens
        return answer.choices[0].message.content, cached

    (fresh, nothing), (again, beginning) = said("new"), said("new")
    assert fresh == again and nothing == 0 and beginning and beginning > 2 * WINDOW


def test_a_stop_string_ends_an_answer_and_is_not_remembered(client: openai.OpenAI) -> None:
    ask: Any = {"messages": asked("so"), "max_tokens": 60, **GREEDY}
    whole = client.chat.completions.create(logprobs=True, **ask)
    text, scores = whole.choices[0].message.content or "", whole.choices[0].logprobs
    assert scores and scores.content and whole.usage
    tokens = [score.token for score in scores.content]
    # three ASCII tokens: when the last has come, the first two have been read
    first, stop = next(
        (k, stop)
        for k in range(2, 58)
        if (stop := "".join(tokens[k : k + 3])).isascii() and text.count(stop) == 1
    )
    cut = client.chat.completions.create(stop=stop, **ask)
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == text[: text.index(stop)]
    after = client.responses.create(input="on", previous_response_id=cut.id, **GREEDY)
    assert after.usage is not None
    remembered = whole.usage.prompt_tokens + first
    assert after.usage.input_tokens_details.cached_tokens == remembered


def test_only_the_first_space_is_not_the_answers(
    served: Serving, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is indented stays so, however many tokens its spaces are."""
    tokenizer = served.service.tokenizer
    space, letter = tokenizer.encode(" ")[-1], tokenizer.encode("a")[-1]

    def choose(self: Sampler, logits: Tensor, seen: Any, said: Any, barred: Any) -> Choice:
        return Choice(letter if said[space] == 3 else space, None, [])

    monkeypatch.setattr(Sampler, "choose", choose)
    said = client.chat.completions.create(messages=asked("so"), max_tokens=5, **GREEDY)
    assert said.choices[0].message.content == "  aa"


def test_responses_fork_from_any_earlier_id(client: openai.OpenAI) -> None:
    first = client.responses.create(input=LONG, instructions="Be brief.", **GREEDY)
    assert first.status == "incomplete" and first.incomplete_details
    assert first.incomplete_details.reason == "max_output_tokens"

    def after(id: str, text: str) -> openai.types.responses.Response:
        return client.responses.create(input=text, previous_response_id=id, **GREEDY)

    one, two = after(first.id, "one"), after(first.id, "two")
    again = after(first.id, "one")
    assert one.output_text == again.output_text and one.id != again.id
    assert one.previous_response_id == first.id
    assert one.usage and first.usage
    assert one.usage.input_tokens_details.cached_tokens == first.usage.total_tokens
    three = after(two.id, "three")
    items = client.responses.input_items.list(three.id, order="asc").data
    rest = client.responses.input_items.list(three.id, order="asc", after=items[1].id).data
    assert rest == items[2:]
    with pytest.raises(openai.NotFoundError, match="Item with id 'msg_none' not found"):
        client.responses.input_items.list(three.id, after="msg_none")
    said = [(item.role, item.content[0].text) for item in items]  # type: ignore[union-attr]
    assert said == [
        ("system", "Be brief."), ("user", LONG), ("assistant", first.output_text), ("user", "two"),
        ("assistant", two.output_text), ("user", "three"),
    ]  # fmt: skip
    got = client.responses.retrieve(three.id)
    assert got.output_text == three.output_text and got.id == three.id

    client.responses.delete(two.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(two.id)
    with pytest.raises(openai.NotFoundError):
        after(two.id, "more")
    assert after(three.id, "more").output_text  # a session needs no earlier ones


def test_the_program_of_the_documents(
    served: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book.txt").write_text(LONG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(served.service, "name", "text-tiny")
    found: dict[str, Any] = {}
    exec(program("serving.md").replace("http://127.0.0.1:8000", served.url), found)
    found["client"].close()
    book, one, two = (found[name] for name in ("book", "one", "two"))
    assert one.previous_response_id == two.previous_response_id == book.id
    for answer in (one, two):
        assert answer.usage.input_tokens_details.cached_tokens == book.usage.total_tokens


def test_a_streamed_response_has_every_event_in_order(client: openai.OpenAI) -> None:
    ask = {"input": "tell", "max_output_tokens": 8, **GREEDY}
    whole = client.responses.create(**ask)
    options = {"include": ["message.output_text.logprobs", "hypnos.session"], "top_logprobs": 2}
    events = list(client.responses.create(stream=True, **options, **ask))  # type: ignore[call-overload]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events if e.type != "hypnos.session"]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", *["response.output_text.delta"] * deltas,
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    texts = [e for e in events if e.type == "response.output_text.delta"]
    assert "".join(e.delta for e in texts) == whole.output_text
    scored = [score for e in texts for score in e.logprobs]
    assert len(scored) == 8 and len(scored[0].top_logprobs) == 2
    last = events[-1].response
    assert client.responses.retrieve(last.id).output_text == last.output_text == whole.output_text
    watched = [e.session for e in events if e.type == "hypnos.session"]
    assert watched[-1]["tokens"] == last.usage.total_tokens - 1


def test_a_conversation_is_a_name_for_its_last_turn(client: openai.OpenAI) -> None:
    items: Any = [{"type": "message", "role": "system", "content": LONG}]
    conversation = client.conversations.create(items=items, metadata={"topic": "sleep"})
    assert client.conversations.retrieve(conversation.id).metadata == {"topic": "sleep"}
    one = client.responses.create(input="one", conversation=conversation.id, **GREEDY)
    two = client.responses.create(input="two", conversation=conversation.id, store=False, **GREEDY)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(two.id)  # it exists only in the conversation
    more: Any = [{"type": "message", "role": "user", "content": text} for text in ("three", "3")]
    added = client.conversations.items.create(conversation.id, items=more)
    listed = list(client.conversations.items.list(conversation.id, order="asc"))
    said = [i.content[0].text for i in listed]  # type: ignore[union-attr]
    assert said == [LONG, "one", one.output_text, "two", two.output_text, "three", "3"]
    assert added.data == listed[-2:] and not added.has_more  # only those, in order
    assert (added.first_id, added.last_id) == (listed[-2].id, listed[-1].id)
    one_more = client.conversations.items.create(conversation.id, items=more[:1])
    assert len(one_more.data) == 1 and not one_more.has_more

    # the same as with a chain of ids, and with a resent history
    first = client.responses.create(input=items, instructions=None, max_output_tokens=1, **GREEDY)
    assert first.output_text is not None
    history: Any = [{"role": "system", "content": LONG}, *asked("one")]
    chain = client.chat.completions.create(messages=history, **GREEDY)
    assert chain.choices[0].message.content == one.output_text

    assert client.conversations.update(conversation.id, metadata={}).metadata == {}
    client.conversations.delete(conversation.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="four", conversation=conversation.id, **GREEDY)
    assert client.responses.retrieve(one.id).output_text == one.output_text


def test_n_is_chosen_by_session_and_matters(client: openai.OpenAI) -> None:
    said = {}
    for passes in (1, 2, 3, 8):
        answer = client.responses.create(
            input=LONG, max_output_tokens=30, extra_body={"passes": passes}, **GREEDY
        )
        usage = answer.usage
        assert usage is not None
        cached = usage.input_tokens_details.cached_tokens
        windows = (usage.total_tokens - 1) // WINDOW - cached // WINDOW
        assert usage.sleep_passes == windows * (passes - 1)  # type: ignore[attr-defined]
        said[passes] = answer.output_text
    trained = client.responses.create(input=LONG, max_output_tokens=30, **GREEDY)
    assert said[3] == trained.output_text
    assert len(set(said.values())) == 4


def test_a_full_window_is_slept_over_while_idle(served: Serving, client: openai.OpenAI) -> None:
    """The answer does not wait for the sleep over the window that its last token fills."""
    start = client.responses.create(input="a", max_output_tokens=1, **GREEDY)
    left = -(start.usage.total_tokens - 1) % WINDOW  # type: ignore[union-attr]
    end = client.responses.create(input="a", max_output_tokens=1 + left, **GREEDY)
    for _ in range(100):
        session: Any = client.responses.retrieve(end.id).session  # type: ignore[attr-defined]
        if not session["pending"]:
            break
    full = end.usage.total_tokens - 1  # type: ignore[union-attr]
    assert (session["slept"], session["filled"], session["tokens"]) == (full // WINDOW, 0, full)


def test_an_export_says_what_its_run_says(
    run: Path, served: Serving, client: openai.OpenAI, tmp_path: Path
) -> None:
    export(run, tmp_path / "export")
    with serving(tmp_path / "export", tmp_path / "store") as found:
        ask = {"prompt": LONG, "max_tokens": 40, **GREEDY}
        said = found.client().completions.create(**ask).choices[0].text
        assert said == client.completions.create(**ask).choices[0].text


def test_an_id_is_told_when_it_is_on_the_disk(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = SessionStore.put

    def slow(self: SessionStore, *rest: Any) -> None:
        threading.Event().wait(0.3)
        put(self, *rest)

    monkeypatch.setattr(SessionStore, "put", slow)
    with serving(run, tmp_path) as found:
        client = found.client()
        said = client.responses.create(input="a", **GREEDY)
        assert (tmp_path / f"{said.id}.safetensors").exists()
        conversation = client.conversations.create()
        for event in client.responses.create(
            input="a", conversation=conversation.id, stream=True, **GREEDY
        ):
            last = event
        assert last.type == "response.incomplete"
        assert (tmp_path / f"{last.response.id}.safetensors").exists()
        named = json.loads((tmp_path / f"{conversation.id}.json").read_text())
        assert named["entry"]["parent"] == last.response.id
        for chunk in client.chat.completions.create(messages=asked("a"), stream=True, **GREEDY):
            if chunk.choices[0].finish_reason:
                assert (tmp_path / f"{chunk.id}.safetensors").exists()
