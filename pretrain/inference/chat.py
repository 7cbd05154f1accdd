"""Messages as the tokens a model reads: in plain text, or by its tokenizer's chat template.

A stored session has read a conversation to the end of a message's content, the model's or the
user's. What stands between two messages depends on both, so it is written once the next one is
known; a continued conversation is what the session has read plus what is written after it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pretrain.errors import UserError, shortened
from tokenizer.encode import Tokenizer

PLAIN = "plain"  # in place of a template's file


class Turn(NamedTuple):
    """Who said what; a role is system, developer (which is system), user or assistant."""

    role: str
    content: str

    @property
    def speaker(self) -> str:
        return "system" if self.role == "developer" else self.role


# The turns that an answer is taken to follow, if nothing more is known.
BEFORE = (Turn("user", ""),)


class Written(NamedTuple):
    """The tokens of a conversation that a model has yet to read before it answers.

    tokens  after the content of the turn that was read last, to where the answer begins
    ends    how many of them are read once so many turns are, where a session may be kept: no token
            is of that turn and of what comes next
    """

    tokens: list[int]
    ends: Mapping[int, int]


class Refused(ValueError):
    """A chat template cannot render these messages; says why."""


class ChatForm(Protocol):
    """How messages are written as tokens.

    key    identifies the form
    stops  texts that end an answer, beside EOS
    ends   tokens that end it, EOS included
    space  what a model writes before its answer that is not part of it
    """

    key: str
    stops: tuple[str, ...]
    ends: frozenset[int]
    space: str

    def write(self, turns: Sequence[Turn], read: int = 0) -> Written:
        """Writes what comes after the first `read` turns, which a session has already read.

        ValueError: they cannot be written, or tokens cannot.
        """
        ...

    def having(self, variables: Mapping[str, Any]) -> ChatForm:
        """This form with other variables of its template. Refused: it has no template, or the
        template fails with them.
        """
        ...


def chat_form(
    tokenizer: Tokenizer, template: Path | None = None, settings: Mapping[str, Any] | None = None
) -> ChatForm:
    """The form of a model's conversations.

    Args:
        template: a file with a Jinja chat template, as in transformers; `PLAIN`; None: the
            tokenizer's own, or plain text if it has none.
        settings: variables of the template, such as Qwen3's `enable_thinking`.
    Raises:
        UserError: it cannot be read, or is not a chat template; names it.
    """
    if template == Path(PLAIN) or (template is None and not tokenizer.chat.template):
        if settings:
            fix = "leave them out, or give --chat-template FILE"
            raise UserError(f"--chat-template-kwargs: there is no chat template here; {fix}")
        return PlainForm(tokenizer)
    name, text = "the tokenizer's chat template", tokenizer.chat.template
    try:
        if template is not None:
            name, text = str(template), template.read_text(encoding="utf-8")
        return TemplateForm(tokenizer, text, settings or {})
    except OSError as error:
        raise UserError(f"{template}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{template}: not a chat template: {error}") from None
    except Refused as error:
        other = f"give another by --chat-template FILE, or --chat-template {PLAIN}"
        raise UserError(f"{name}: cannot be used: {error}; {other}") from None


class PlainForm:
    """Plain text with speakers' names. An answer ends where the model starts another's turn.

    System: You answer briefly.
    User: What is sleep?
    Assistant: Passes over a full window.
    """

    key = PLAIN
    stops: tuple[str, ...] = ("\nUser:", "\nSystem:", "\nAssistant:")
    space = " "

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ends = frozenset({tokenizer.eos})

    def write(self, turns: Sequence[Turn], read: int = 0) -> Written:
        """See `ChatForm`. Each part is encoded separately, as an answer's content is."""
        tokens, ends = list[int](), {read: 0}
        for number, turn in enumerate(turns[read:], read):
            tokens += self._encode(number, f"{turn.speaker.capitalize()}:", f" {turn.content}")
            ends[number + 1] = len(tokens)
        return Written(tokens + self._encode(len(turns), "Assistant:"), ends)

    def having(self, variables: Mapping[str, Any]) -> ChatForm:
        """See `ChatForm`."""
        raise Refused("conversations are plain text here: no chat template has such variables")

    def _encode(self, number: int, *parts: str) -> list[int]:
        """Encodes a turn's parts, after a newline that ends the previous turn."""
        lines = ("\n", *parts) if number else parts
        return [token for ids in self.tokenizer.encode_many(lines) for token in ids]


# Marks the place of a content in a template's output; random, so that no message can forge it.
_NUMBER = secrets.randbits(60)
_MARK = re.compile(f"\ue000{_NUMBER}:([0-9]+)\ue001")
_mark = f"\ue000{_NUMBER}:{{}}\ue001".format


# Arguments of transformers' `apply_chat_template` that requests may not set.
OURS = frozenset({
    "messages", "conversations", "chat_template", "add_generation_prompt",
    "continue_final_message", "return_assistant_tokens_mask",
})  # fmt: skip
MOST_FORMS = 64  # how many forms that requests have asked for are cached


class TemplateForm:
    """A Jinja chat template, rendered by transformers in a sandbox in which it can only compute
    text.

    The ids are those of transformers' `apply_chat_template`, except for what `tokenizer.fast_model`
    drops before it looks for pieces, and for special tokens in a message, which are plain text
    here.
    """

    stops: tuple[str, ...] = ()
    space = ""

    def __init__(self, tokenizer: Tokenizer, template: str, settings: Mapping[str, Any]) -> None:
        """Refused: the template cannot write a conversation; says why."""
        if own := sorted(OURS.intersection(settings)):
            raise Refused(f"'{own[0]}' is not a variable that can be set")
        self.tokenizer, self.template = tokenizer, template
        self.variables = {**tokenizer.chat.names, **settings}
        self._having = functools.lru_cache(MOST_FORMS)(self._made)
        known = template + json.dumps(self.variables, sort_keys=True)
        self.key = hashlib.blake2b(known.encode(), digest_size=8).hexdigest()
        trial = self._pieces([*BEFORE, Turn("assistant", ""), Turn("user", "a")], 2)
        # what the template writes after an answer is what the model generates at an answer's end
        before, *others = tokenizer.at_specials(trial[0][0])
        if swallowing := tokenizer.swallowing.intersection(others):
            raise Refused(f"{min(swallowing)} strips the spaces around it, which is not supported")
        closing = others[:1] if not before.strip() else []
        self.ends = frozenset({tokenizer.eos, *map(tokenizer.specials.__getitem__, closing)})

    def write(self, turns: Sequence[Turn], read: int = 0) -> Written:
        """See `ChatForm`. A session may be kept where a special token comes next."""
        tokens, ends, run, in_order = list[int](), {read: 0}, "", read
        for text, number in self._pieces(turns, read):
            if number is not None:
                run += text
                in_order = number + 1 if number == in_order else -1
                continue
            for i, part in enumerate(parts := self.tokenizer.at_specials(text)):
                if i % 2 == 0:
                    run += part
                    continue
                tokens += self.tokenizer.encode(run)
                if i == 1 and not parts[0] and in_order > read:
                    ends[in_order] = len(tokens)
                tokens.append(self.tokenizer.specials[part])
                run = ""
        return Written(tokens + self.tokenizer.encode(run), ends)

    def having(self, variables: Mapping[str, Any]) -> ChatForm:
        """See `ChatForm`."""
        return self._having(json.dumps(variables, sort_keys=True))

    def _made(self, variables: str) -> ChatForm:
        return TemplateForm(self.tokenizer, self.template, self.variables | json.loads(variables))

    def _pieces(self, turns: Sequence[Turn], read: int) -> list[tuple[str, int | None]]:
        """The text after the content of the last turn that was read, in pieces: template text, a
        content with its turn's number, template text, and so on; as a single piece if the contents
        cannot be told apart from the text around them.
        """
        marked = [turn._replace(content=_mark(i)) for i, turn in enumerate(turns)]
        parts = _MARK.split(self._text(marked))  # text, number, text, ...
        shown = list(turns)
        if read:
            shown[read - 1] = marked[read - 1]
        text = self._text(shown)
        if read:
            if str(read - 1) not in parts[1::2]:
                raise Refused("it leaves out what was said before")
            parts = parts[2 * parts[1::2].index(str(read - 1)) + 2 :]
            if not {*map(str, range(read, len(turns)))} <= {*parts[1::2]}:
                raise Refused("it puts a new one before what has already been read")
            text = text.partition(_mark(read - 1))[2]
        pieces: list[tuple[str, int | None]] = [(parts[0], None)]
        end = len(parts[0])
        for number, after in zip(map(int, parts[1::2]), parts[2::2], strict=True):
            given = turns[number].content
            content = next((s for s in _shown(given) if text.startswith(s + after, end)), given)
            pieces += [(content, number), (after, None)]
            end += len(content) + len(after)
        if "".join(piece for piece, _ in pieces) == text:
            return pieces
        if any(len(self.tokenizer.at_specials(turn.content)) > 1 for turn in turns):
            raise Refused("it changes a message that holds a special token")
        return [(text, None)]

    def _text(self, turns: Sequence[Turn]) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        if not turns:
            raise Refused("there are none")
        try:
            (text,), _ = render_jinja_template(
                [[{"role": turn.speaker, "content": turn.content} for turn in turns]],
                chat_template=self.template,
                add_generation_prompt=True,
                **self.variables,
            )
        except Exception as error:  # a template can raise anything
            raise Refused(shortened(str(error))) from None
        return str(text)


def _shown(content: str) -> Iterator[str]:
    """The ways templates show a content: unchanged, stripped, and without its reasoning."""
    for each in (content, content.rpartition("</think>")[2].lstrip("\n")):
        yield from (each, each.strip())
