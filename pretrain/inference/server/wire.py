"""Response bodies in OpenAI's formats: objects, chunks and events."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from operator import add
from typing import Any

from pretrain.inference.server.schemas import ChatRequest, CompletionRequest, ResponsesRequest

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenScore:
    """A token that was read or sampled, and the most likely ones at its position.

    logprob   None: it is the very first token, which is not predicted
    """

    text: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass
class Generated:
    """What was generated so far of one answer."""

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    finish_reason: str | None = None  # stop or length


@dataclass(frozen=True)
class Usage:
    """Token counts of a request. Beyond OpenAI's: tokens read awake, and passes of sleep."""

    cached: int = 0  # read by an earlier request, whose session was continued
    prompt: int = 0  # of the input, read now
    completion: int = 0  # of the answer
    wake_tokens: int = 0  # that went through a wake pass now
    sleep_passes: int = 0  # over the windows that this request filled

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(add, astuple(self), astuple(other)))

    def _ours(self) -> Json:
        return {"wake_tokens": self.wake_tokens, "sleep_passes": self.sleep_passes}

    def of_completion(self) -> Json:
        prompt = self.cached + self.prompt
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.completion,
            "total_tokens": prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            **self._ours(),
        }

    def of_response(self) -> Json:
        prompt = self.cached + self.prompt
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self.completion,
            **self._ours(),
        }


def shown(token: bytes) -> str:
    return token.decode(errors="replace")


def score(scored: TokenScore) -> Json:
    """A token's log-probability in the format of chat completions and responses."""
    top = [
        {"token": shown(token), "bytes": list(token), "logprob": logprob}
        for token, logprob in scored.top
    ]
    return {
        "token": shown(scored.text), "bytes": list(scored.text), "logprob": scored.logprob,
        "top_logprobs": top,
    }  # fmt: skip


def event(data: Json, name: str | None = None) -> str:
    """A server-sent event."""
    line = f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
    return line if name is None else f"event: {name}\n{line}"


DONE = "data: [DONE]\n\n"


# ---- completions


def _likeliest(score: TokenScore) -> dict[str, float] | None:
    """Log-probabilities by text, the chosen token included; the highest for tokens of equal
    text.
    """
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    for text, logprob in [*score.top, (score.text, score.logprob)]:
        found[shown(text)] = max(logprob, found.get(shown(text), logprob))
    return found


_Utf8 = codecs.getincrementaldecoder("utf-8")


class Offsets:
    """Where the tokens of one choice start in its text, in characters. A token that continues a
    character starts where the character does; invalid bytes count as their replacement character.
    """

    def __init__(self) -> None:
        self._bytes, self._end = _Utf8("replace"), 0

    def next(self, token: bytes) -> int:
        new, alone = len(self._bytes.decode(token)), len(_Utf8("replace").decode(token))
        begin = self._end + max(0, new - alone)
        self._end += new
        return begin


def completion_logprobs(scores: Sequence[TokenScore], offsets: Offsets) -> Json:
    return {
        "tokens": [shown(s.text) for s in scores],
        "token_logprobs": [s.logprob for s in scores],
        "top_logprobs": [_likeliest(s) for s in scores],
        "text_offset": [offsets.next(s.text) for s in scores],
    }


def completion(
    id: str, created: int, request: CompletionRequest, choices: Sequence[Json], usage: Usage | None
) -> Json:
    body: Json = {
        "id": id, "object": "text_completion", "created": created, "model": request.model,
        "choices": list(choices),
    }  # fmt: skip
    return body if usage is None else body | {"usage": usage.of_completion()}


def completion_choice(
    index: int,
    text: str,
    scores: Sequence[TokenScore] | None,
    finish_reason: str | None,
    offsets: Offsets,
) -> Json:
    """A choice of a completion. offsets: of this choice, after its earlier tokens."""
    logprobs = None if scores is None else completion_logprobs(scores, offsets)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


# ---- chat completions


def chat(
    id: str, created: int, request: ChatRequest, choices: Sequence[Generated], usage: Usage
) -> Json:
    return {
        "id": id, "object": "chat.completion", "created": created, "model": request.model,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _chat_logprobs(choice.scores) if request.logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(choices)
        ],
        "usage": usage.of_completion(),
        "metadata": request.metadata or {},
    }  # fmt: skip


def _chat_logprobs(scores: Sequence[TokenScore]) -> Json:
    return {"content": [score(s) for s in scores], "refusal": None}


def chat_choice(
    index: int, delta: Json, scores: Sequence[TokenScore] = (), finish_reason: str | None = None
) -> Json:
    """A choice of a chunk."""
    logprobs = _chat_logprobs(scores) if scores else None
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_chunk(
    id: str, created: int, request: ChatRequest, choices: Sequence[Json], usage: Usage | None
) -> Json:
    body: Json = {
        "id": id, "object": "chat.completion.chunk", "created": created, "model": request.model,
        "choices": list(choices),
    }  # fmt: skip
    return body if usage is None else body | {"usage": usage.of_completion()}


# ---- responses


def message_item(id: str, choice: Generated, status: str) -> Json:
    return {
        "id": id, "type": "message", "role": "assistant", "status": status,
        "content": [output_text(choice)],
    }  # fmt: skip


def output_text(choice: Generated) -> Json:
    return {
        "type": "output_text", "text": choice.text, "annotations": [],
        "logprobs": [score(s) for s in choice.scores],
    }  # fmt: skip


def input_item(id: str, role: str, content: str) -> Json:
    """A message, as an item of a list."""
    kind = "output_text" if role == "assistant" else "input_text"
    part: Json = {"type": kind, "text": content}
    if role == "assistant":
        part |= {"annotations": [], "logprobs": []}
    return {
        "id": id, "type": "message", "role": role, "status": "completed", "content": [part]
    }  # fmt: skip


def response(
    id: str, created: int, request: ResponsesRequest, status: str, output: list[Json],
    usage: Usage | None = None,
) -> Json:  # fmt: skip
    """A response object; status: in_progress, completed, or incomplete if max_output_tokens ended
    it.
    """
    cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
    done = status in ("completed", "incomplete")
    return {
        "id": id, "object": "response", "created_at": created, "status": status,
        "completed_at": int(time.time()) if done else None,
        "error": None, "incomplete_details": cut, "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens, "model": request.model, "output": output,
        "parallel_tool_calls": False, "previous_response_id": request.previous_response_id,
        "conversation": {"id": request.conversation.id} if request.conversation else None,
        "reasoning": {"effort": None, "summary": None}, "store": request.store is not False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": {"type": "text"}}, "tool_choice": "none", "tools": [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled", "metadata": request.metadata or {},
        "usage": usage.of_response() if usage else None,
    }  # fmt: skip


def listed(items: Sequence[Mapping[str, Any]], after: str | None, limit: int) -> Json:
    """A page of a list of objects with ids: those after a given one, or the first ones."""
    start = 0 if after is None else [item["id"] for item in items].index(after) + 1
    page = list(items[start : start + limit])
    return {
        "object": "list", "data": page, "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None, "has_more": start + limit < len(items),
    }  # fmt: skip


class ResponseEvents:
    """The events of one streamed response, numbered, in the order that clients expect."""

    def __init__(self, item_id: str) -> None:
        self._number, self._item = 0, item_id
        self._place = {"item_id": item_id, "output_index": 0, "content_index": 0}

    def _event(self, type: str, **data: Any) -> str:
        numbered = {"type": type, "sequence_number": self._number, **data}
        self._number += 1
        return event(numbered, type)

    def begin(self, response: Json) -> Iterator[str]:
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def open(self) -> Iterator[str]:
        item = message_item(self._item, Generated(), "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        part = output_text(Generated())
        yield self._event("response.content_part.added", **self._place, part=part)

    def session(self, facts: Json) -> str:
        return self._event("hypnos.session", session=facts)

    def delta(self, text: str, scores: Sequence[TokenScore]) -> str:
        logprobs = [score(s) for s in scores]
        return self._event(
            "response.output_text.delta", **self._place, delta=text, logprobs=logprobs
        )

    def end(self, choice: Generated, item: Json) -> Iterator[str]:
        part = output_text(choice)
        yield self._event(
            "response.output_text.done", **self._place, text=choice.text, logprobs=part["logprobs"]
        )
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)

    def finish(self, response: Json) -> str:
        return self._event(f"response.{response['status']}", response=response)

    def error(self, detail: Json) -> str:
        return self._event(
            "error", code=detail["code"], message=detail["message"], param=detail["param"]
        )
