"""Which requests are valid, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pretrain.inference.server.errors import from_validation
from pretrain.inference.server.schemas import (
    ChatRequest,
    CompletionRequest,
    ConversationRequest,
    ItemsRequest,
    Request,
    ResponsesRequest,
)

MESSAGE = {"role": "user", "content": "a"}
LEAST: list[tuple[type[Request], dict[str, Any]]] = [
    (CompletionRequest, {"model": "m", "prompt": "a"}),
    (ChatRequest, {"model": "m", "messages": [MESSAGE]}),
    (ResponsesRequest, {"model": "m", "input": "a"}),
    (ResponsesRequest, {"model": "m", "previous_response_id": "resp_0"}),
    (ConversationRequest, {}),
    (ItemsRequest, {"items": [MESSAGE]}),
]


@pytest.mark.parametrize(("schema", "least"), LEAST)
def test_null_is_as_good_as_nothing(schema: type[Request], least: dict[str, Any]) -> None:
    """Clients send null for what their users leave out."""
    optional = [*schema.model_fields.keys() - least.keys(), *schema.unsupported]
    given = schema.model_validate(least | dict.fromkeys(optional))
    assert given == schema.model_validate(least)


@pytest.mark.parametrize("least", [least for schema, least in LEAST if schema is ChatRequest])
def test_an_answer_can_be_resent_as_a_client_holds_it(least: dict[str, Any]) -> None:
    """OpenAI's client dumps fields that the server did not send as null."""
    names = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content")
    answer = {"role": "assistant", "content": "b", **dict.fromkeys(names)}
    said = ChatRequest.model_validate(least | {"messages": [MESSAGE, answer]})
    assert said.messages[1].content == "b"
    with pytest.raises(ValidationError, match=r"'reasoning_content' is not supported"):
        ChatRequest.model_validate(least | {"messages": [answer | {"reasoning_content": "hm"}]})


@pytest.mark.parametrize("prompt", [[1.5, 2], [True], [None], [[]], [["a"]], 7, None, ["a", [1.5]]])
def test_what_is_no_prompt_is_told_what_one_is(prompt: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    detail = from_validation(refused.value.errors()).detail
    assert detail["param"] == "prompt"
    assert "a string, a list of strings, a list of token ids" in detail["message"]


@pytest.mark.parametrize(
    ("schema", "param"),
    [(ChatRequest, "messages"), (ResponsesRequest, "input"), (ItemsRequest, "items")],
)
def test_token_ids_in_place_of_messages_are_one_error(schema: type[Request], param: str) -> None:
    """A million errors would take the server half a minute and gigabytes."""
    with pytest.raises(ValidationError) as refused:
        schema.model_validate({"model": "m", param: [7] * 1000})
    assert sum(error["loc"][0] == param for error in refused.value.errors()) == 1


def test_param_holds_names_of_fields_alone() -> None:
    def param(schema: type[Request], **given: Any) -> str:
        with pytest.raises(ValidationError) as refused:
            schema.model_validate({"model": "m"} | given)
        return str(from_validation(refused.value.errors()).detail["param"])

    assert param(CompletionRequest, prompt=["a", "\ud800"]) == "prompt"
    assert param(CompletionRequest, prompt="a", stop=["", "b"]) == "stop[0]"
    assert param(ResponsesRequest, input="a", metadata={"k" * 65: "v"}) == f"metadata.{'k' * 65}"
