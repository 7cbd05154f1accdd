"""A model that comes with a chat template is asked with it, and conversations continue with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from pretrain.inference.chat import Turn
from tests.convert.made import SHAPE, config, write_run
from tests.server.serving import NAME, Serving, serving
from tests.tokenizer.foreign import byte_level

TEMPLATE = """\
{%- if messages[0].role == 'assistant' %}{{ raise_exception('who asked?') }}{% endif -%}
{%- for m in messages if m.role == 'system' %}{{ m.content }}{% endfor -%}
{%- for m in messages if m.role != 'system' -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
{%- if brief %}{{ 'In short: ' }}{% endif -%}
"""
GREEDY = {"model": NAME, "temperature": 0.0}
SAYS, ASKS = "You answer briefly, in one line.", "What is sleep?"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("qwen")
    (byte_level(folder) / "chat_template.jinja").write_text(TEMPLATE)
    with serving(write_run(folder / "run", config(folder, **SHAPE)), folder / "store") as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Serving) -> openai.OpenAI:
    return served.client()


def test_a_conversation_goes_on(served: Serving, client: openai.OpenAI) -> None:
    messages: list[dict[str, str]] = [
        {"role": "developer", "content": SAYS}, {"role": "user", "content": ASKS},
    ]  # fmt: skip
    ask = {"messages": messages, "max_tokens": 7, **GREEDY}
    first = client.chat.completions.create(**ask)
    written = served.service.form.write([Turn("system", SAYS), Turn("user", ASKS)]).tokens
    prompt = client.completions.create(prompt=written, max_tokens=7, **GREEDY)
    assert first.choices[0].message.content == prompt.choices[0].text != ""
    assert first.usage and first.usage.prompt_tokens == len(written)

    answer = {"role": "assistant", "content": first.choices[0].message.content or ""}
    messages += [answer, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(**ask)
    assert second.usage and second.usage.prompt_tokens_details
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.total_tokens
    after = "<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
    specials, parts = served.service.tokenizer.specials, served.service.tokenizer.at_specials(after)
    new = sum(1 if part in specials else len(served.service.encode(part)) for part in parts)
    assert second.usage.prompt_tokens == first.usage.total_tokens + new
    by_id = client.responses.create(
        input="And then?", previous_response_id=first.id, max_output_tokens=7, **GREEDY
    )
    assert by_id.output_text == second.choices[0].message.content


def test_messages_that_nobody_answers(client: openai.OpenAI) -> None:
    """Sent one by one or at once, the model reads the same."""
    said = []
    for batches in ([[SAYS], [ASKS]], [[SAYS, ASKS]], []):
        conversation = client.conversations.create()
        for batch in batches:
            items = [{"type": "message", "role": "user", "content": text} for text in batch]
            client.conversations.items.create(conversation.id, items=items)  # type: ignore[arg-type]
        rest = [] if batches else [{"role": "user", "content": text} for text in (SAYS, ASKS)]
        asked = [*rest, {"role": "user", "content": "Well?"}]
        answer = client.responses.create(
            input=asked, conversation=conversation.id, max_output_tokens=7, **GREEDY
        )  # type: ignore[call-overload]
        assert answer.usage is not None
        said.append((answer.output_text, answer.usage.input_tokens))
    assert len({*said}) == 1, said


def test_an_answer_that_the_client_gives(client: openai.OpenAI) -> None:
    items = [{"role": "user", "content": ASKS}, {"role": "assistant", "content": "Passes."}]
    ask: dict[str, Any] = {"max_output_tokens": 7, **GREEDY}
    known = client.conversations.create(items=[{"type": "message", **item} for item in items])  # type: ignore[typeddict-item]
    answer = client.responses.create(input=SAYS, conversation=known.id, **ask)
    whole = client.responses.create(input=[*items, {"role": "user", "content": SAYS}], **ask)
    assert answer.output_text == whole.output_text
    assert answer.usage and whole.usage and answer.usage.input_tokens == whole.usage.input_tokens


def test_an_answer_ends_with_what_the_form_says(
    served: Serving, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = frozenset(range(served.service.tokenizer.vocab_size))
    monkeypatch.setattr(served.service.form, "ends", every)
    messages: Any = [{"role": "user", "content": ASKS}]
    said = client.chat.completions.create(messages=messages, max_tokens=7, **GREEDY).choices[0]
    assert (said.finish_reason, said.message.content) == ("stop", "")


def test_what_the_template_refuses(served: Serving, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "assistant", "content": ASKS}]
    stored = len(served.service.store)
    with pytest.raises(openai.BadRequestError, match=r"cannot write these messages: who asked\?"):
        client.chat.completions.create(messages=messages, **GREEDY)
    with pytest.raises(openai.BadRequestError, match=r"who asked\?"):
        client.conversations.create(items=[{"type": "message", **messages[0]}])
    assert len(served.service.store) == stored


def test_a_request_sets_variables_of_the_template(served: Serving, client: openai.OpenAI) -> None:
    """What was read with some variables is not reused for a history with others."""
    messages: list[dict[str, str]] = [{"role": "user", "content": "Who?"}]
    brief = {"chat_template_kwargs": {"brief": True}}
    ask: dict[str, Any] = {"messages": messages, "max_tokens": 7, **GREEDY}
    first = client.chat.completions.create(extra_body=brief, **ask)
    written = served.service.form.write([Turn("user", "Who?")]).tokens
    prompt = [*written, *served.service.encode("In short: ")]
    assert first.usage and first.usage.prompt_tokens == len(prompt)
    whole = client.completions.create(prompt=prompt, max_tokens=7, **GREEDY)
    assert first.choices[0].message.content == whole.choices[0].text

    said = first.choices[0].message.content or ""
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    cached = []
    by_id = client.responses.create(
        input="And then?", previous_response_id=first.id, max_output_tokens=7, **GREEDY
    )
    messages += [{"role": "assistant", "content": by_id.output_text}, messages[-1]]
    for history in (messages[:3], messages):
        for more in (brief, {}):
            answer = client.chat.completions.create(**ask | {"messages": history}, extra_body=more)
            assert answer.usage and answer.usage.prompt_tokens_details
            cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached[:2] == [first.usage.total_tokens, 0]
    assert cached[2] and cached[3]  # from the histories above: none continues from `by_id`
    assert max(cached[2:]) < (by_id.usage.total_tokens if by_id.usage else 0)
    with pytest.raises(openai.BadRequestError, match="'messages' is not a variable"):
        client.chat.completions.create(**ask, extra_body={"chat_template_kwargs": {"messages": []}})


def test_a_message_that_belongs_before_what_was_read(client: openai.OpenAI) -> None:
    """A session that has read further cannot continue with it; a resent history is read anew."""
    messages = [{"role": "user", "content": ASKS}]
    ask: dict[str, Any] = {"messages": messages, "max_tokens": 7, **GREEDY}
    first = client.chat.completions.create(**ask)
    with pytest.raises(openai.BadRequestError, match="a new one before what has already been read"):
        client.responses.create(
            input="Well?", instructions=SAYS, previous_response_id=first.id, **GREEDY
        )
    answer = {"role": "assistant", "content": first.choices[0].message.content or ""}
    late = {"role": "system", "content": SAYS}
    messages += [answer, late, {"role": "user", "content": "Well?"}]
    second = client.chat.completions.create(**ask)
    assert second.usage and second.usage.prompt_tokens_details
    assert second.usage.prompt_tokens_details.cached_tokens == 0
    ask["messages"] = [late, messages[0], answer, messages[-1]]
    third = client.chat.completions.create(**ask)
    assert third.choices[0].message.content == second.choices[0].message.content
