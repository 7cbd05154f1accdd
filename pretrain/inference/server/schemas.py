"""Request schemas: OpenAI's three APIs, and a few more parameters, named as in vLLM.

Everything is validated before it is queued. An unknown parameter is refused, and so is a known one
that this server cannot honour, unless its value requests nothing ("tools": []).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_PASSES = 64
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64
NOTHING: tuple[Any, ...] = (None, [], {})


def _is_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        raise PydanticCustomError(
            "unicode", "the text holds a lone surrogate, {which}", {"which": surrogate}
        ) from None
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]


class Request(BaseModel):
    """No unknown keys, no strings for numbers, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    # Parameters that cannot be honoured, each with the values that request nothing.
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Parameters that identify the user or help routing: they do not affect the answer.
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_inert(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, inert in cls.unsupported.items():
            if name in given and given[name] not in (*NOTHING, *inert):
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "Unsupported parameter: '{param}' is not supported by this server.",
                    {"param": name},
                )
        drop = cls.ignored | cls.unsupported.keys()
        return {name: value for name, value in given.items() if name not in drop}


def _text_of(content: Any) -> Any:
    """A message's content as one string; it may be a list of text parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        known = isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text")
        if not known or not isinstance(part.get("text"), str):
            raise PydanticCustomError("content", "only text parts are supported")
        texts.append(part["text"])
    return "".join(texts)


class Message(Request):
    """A chat message, or an item of a Responses request or a conversation."""

    ignored = frozenset({"id", "name", "phase", "status"})
    unsupported: ClassVar = {
        "tool_calls": (), "function_call": (), "refusal": (), "audio": (), "annotations": (),
        "reasoning_content": ("",),
    }  # fmt: skip

    type: Literal["message", "text"] = "message"  # "text": from older lm-eval
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_text_of)]


# One error is told: a million token ids in place of messages would otherwise give a million.
Messages = Annotated[list[Message], Field(fail_fast=True)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class SamplingRequest(Request):
    """Sampling parameters. Beyond OpenAI's: vLLM's top_k, min_p, repetition_penalty,
    stop_token_ids, ignore_eos and min_tokens; and passes.
    """

    model: Text
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, lt=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Bias] | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    passes: int | None = Field(
        default=None, ge=1, le=MAX_PASSES
    )  # N over this session's full windows


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Stop = Annotated[Text, Field(min_length=1, max_length=200)]
Stops = Annotated[
    Annotated[list[Stop], Field(max_length=16)] | None,  # the limit applies to the list
    BeforeValidator(_listed),
]
Variables = dict[Text, JsonValue]
Metadata = dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]]


class StreamOptions(Request):
    ignored = frozenset({"include_obfuscation"})

    include_usage: bool | None = None


def _is_prompt(given: Any) -> bool:
    """One text, or the ids of its tokens."""
    return isinstance(given, str) or (isinstance(given, list) and {*map(type, given)} == {int})


def _prompts(given: Any) -> Any:
    if _is_prompt(given):
        prompts = [given]
    elif isinstance(given, list) and all(map(_is_prompt, given)):
        prompts = given
    else:
        raise PydanticCustomError(
            "prompt", "must be a string, a list of strings, a list of token ids, or a list of those"
        )
    return [_is_unicode(p) if isinstance(p, str) else p for p in prompts]


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    ignored = frozenset({"user"})
    unsupported: ClassVar = {
        "suffix": ("",), "best_of": (1,),
    }  # fmt: skip

    # Texts, or token ids; several prompts give several choices.
    prompt: Annotated[
        list[str | list[int]], BeforeValidator(_prompts),
        Field(min_length=1, max_length=MAX_PROMPTS),
    ]  # fmt: skip
    # Read and slept over before each prompt; the prompt begins a window of its own.
    context: Text | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=1, le=16)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stop: Stops = None
    stream_options: StreamOptions | None = None


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    ignored = frozenset({
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
        "parallel_tool_calls",
    })  # fmt: skip
    unsupported: ClassVar = {
        "tools": (), "tool_choice": ("none", "auto"), "functions": (), "function_call": ("none",),
        "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (),
        "prediction": (), "reasoning_effort": (), "verbosity": (), "web_search_options": (),
    }  # fmt: skip

    messages: Messages = Field(min_length=1)
    chat_template_kwargs: Variables | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=16)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stop: Stops = None
    store: bool | None = None
    metadata: Metadata | None = Field(default=None, max_length=16)
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs needs logprobs = true")
        return self


def _items(given: Any) -> Any:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [] if given is None else given


class Named(Request):
    id: Text


def _named(given: Any) -> Any:
    return {"id": given} if isinstance(given, str) else given


class ResponsesRequest(SamplingRequest):
    """POST /v1/responses."""

    ignored = frozenset({
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
        "parallel_tool_calls", "max_tool_calls",
    })  # fmt: skip
    unsupported: ClassVar = {
        "background": (False,), "tools": (), "tool_choice": ("none", "auto"), "prompt": (),
        "reasoning": (), "text": ({"format": {"type": "text"}},),
        "truncation": ("auto", "disabled"), "context_management": (),
    }  # fmt: skip

    input: Annotated[Messages, BeforeValidator(_items)] = Field(default_factory=list)
    instructions: Text | None = None
    chat_template_kwargs: Variables | None = None
    previous_response_id: Text | None = None
    conversation: Annotated[Named | None, BeforeValidator(_named)] = None
    store: bool | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    metadata: Metadata | None = Field(default=None, max_length=16)
    include: list[Literal["message.output_text.logprobs", "hypnos.session"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _has_something_to_read(self) -> ResponsesRequest:
        if self.conversation and self.previous_response_id:
            raise PydanticCustomError(
                "conversation", "give either conversation or previous_response_id, not both"
            )
        if not (self.input or self.conversation or self.previous_response_id):
            raise PydanticCustomError("input", "there is nothing to answer: give an input")
        return self


class ConversationRequest(Request):
    """POST /v1/conversations, and updates of a conversation."""

    items: list[Message] | None = Field(default=None, max_length=20)
    metadata: Metadata | None = Field(default=None, max_length=16)


class ItemsRequest(Request):
    """POST /v1/conversations/{id}/items."""

    items: list[Message] = Field(min_length=1, max_length=20)
