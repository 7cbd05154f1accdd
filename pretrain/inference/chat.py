"""Messages as the tokens a model reads: in plain text, or by the chat template of its tokenizer.

A session that is stored has read a conversation to the end of a message's content, its own or
another's. What stands between two messages depends on both, so it is written when the next one is
known; a conversation that goes on is what the session has read and what is written after it.
"""

from __future__ import annotations

import hashlib
import json
import re
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


# What an answer comes after, where nothing more is known.
BEFORE = (Turn("user", ""),)


class Written(NamedTuple):
    """What a model reads of a conversation before it answers.

    tokens  after the content of the turn that was read last, to where the answer begins
    ends    how many of them are read once so many turns are, where a session may be kept: no token
            is of that turn and of what comes next
    """

    tokens: list[int]
    ends: Mapping[int, int]


class Refused(ValueError):
    """A chat template cannot write these messages; says why."""


class ChatForm(Protocol):
    """How messages are written.

    key    tells forms apart
    stops  texts that end an answer, beside EOS
    ends   tokens that do, with it
    space  what a model writes before its answer that is none of it
    """

    key: str
    stops: tuple[str, ...]
    ends: frozenset[int]
    space: str

    def write(self, turns: Sequence[Turn], read: int = 0) -> Written:
        """What comes after the first `read` turns, which a session has read.

        ValueError: they cannot be written, or tokens cannot.
        """
        ...


def chat_form(
    tokenizer: Tokenizer, template: Path | None = None, settings: Mapping[str, Any] | None = None
) -> ChatForm:
    """The form of a model's conversations.

    Args:
        template: a file with a chat template in Jinja, as transformers has them; `PLAIN`; None: the
            tokenizer's own, or plain where it has none.
        settings: variables of the template, such as Qwen3's `enable_thinking`.
    Raises:
        UserError: it cannot be read, or is no chat template; names it.
    """
    if template == Path(PLAIN) or (template is None and not tokenizer.chat.template):
        if settings:
            raise UserError("--chat-template-kwargs are a template's, and there is none here")
        return PlainForm(tokenizer)
    name, text = "the tokenizer's chat template", tokenizer.chat.template
    try:
        if template is not None:
            name, text = str(template), template.read_text(encoding="utf-8")
        return TemplateForm(tokenizer, text, settings or {}, name)
    except OSError as error:
        raise UserError(f"{template}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{template}: no chat template: {error}") from None


class PlainForm:
    """In text that shows who speaks. An answer ends where the model begins to speak for another.

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
        """See `ChatForm`. Each part is encoded by itself, as an answer's content is."""
        tokens, ends = list[int](), {read: 0}
        for number, turn in enumerate(turns[read:], read):
            tokens += self._encode(number, f"{turn.speaker.capitalize()}:", f" {turn.content}")
            ends[number + 1] = len(tokens)
        return Written(tokens + self._encode(len(turns), "Assistant:"), ends)

    def _encode(self, number: int, *parts: str) -> list[int]:
        """A turn's parts, after the end of the line of the turn before."""
        lines = ("\n", *parts) if number else parts
        return [token for ids in self.tokenizer.encode_many(lines) for token in ids]


# Where a content is in what a template has written: it has none of these characters.
_MARK = re.compile("\ue000([0-9]+)\ue001")
_mark = "\ue000{}\ue001".format


class TemplateForm:
    """As a chat template in Jinja has it; transformers renders it, in a sandbox in which it can
    compute a text and nothing else.

    The ids are those of transformers' `apply_chat_template`, but for special tokens that stand in a
    message, which are text here.
    """

    stops: tuple[str, ...] = ()
    space = ""

    def __init__(
        self, tokenizer: Tokenizer, template: str, settings: Mapping[str, Any], name: str
    ) -> None:
        """UserError: it writes no conversation; says why, and calls it by `name`."""
        self.tokenizer, self.template = tokenizer, template
        self.variables = {**tokenizer.chat.names, **settings}
        known = template + json.dumps(self.variables, sort_keys=True)
        self.key = hashlib.blake2b(known.encode(), digest_size=8).hexdigest()
        try:
            after_answer, *_ = self._pieces([*BEFORE, Turn("assistant", ""), Turn("user", "a")], 2)
        except Refused as error:
            raise UserError(f"{name}: no chat template: {error}") from None
        # what stands after each answer is what a model says at the end of one
        before, *others = tokenizer.at_specials(after_answer)
        closing = others[:1] if not before.strip() else []
        self.ends = frozenset({tokenizer.eos, *map(tokenizer.specials.__getitem__, closing)})

    def write(self, turns: Sequence[Turn], read: int = 0) -> Written:
        """See `ChatForm`. A session may be kept where a special token comes next."""
        tokens, ends, run = list[int](), {read: 0}, ""
        for number, piece in enumerate(self._pieces(turns, read)):
            parts = [piece] if number % 2 else self.tokenizer.at_specials(piece)
            for i, part in enumerate(parts):
                if i % 2 == 0:
                    run += part
                    continue
                tokens += self.tokenizer.encode(run)
                if number and i == 1 and not parts[0]:
                    ends[read + number // 2] = len(tokens)
                tokens.append(self.tokenizer.specials[part])
                run = ""
        return Written(tokens + self.tokenizer.encode(run), ends)

    def _pieces(self, turns: Sequence[Turn], read: int) -> list[str]:
        """The text after the first `read` turns: what the template writes, a content, what it
        writes, and so on; as one piece, where a content cannot be told from what is around it.
        """
        marked = [turn._replace(content=_mark(i)) for i, turn in enumerate(turns)]
        between = _MARK.split(self._text(marked))
        text = self._text([*marked[:read], *turns[read:]])
        if read:
            _, found, text = text.partition(_mark(read - 1))
            if not found:
                raise Refused("it does not write what was said before")
        if between[1::2] == [str(i) for i in range(len(turns))]:
            pieces, end = [between[2 * read]], len(between[2 * read])
            for turn, after in zip(turns[read:], between[2 * read + 2 :: 2], strict=True):
                shown = (s for s in _shown(turn.content) if text.startswith(s + after, end))
                pieces += [next(shown, turn.content), after]
                end += len(pieces[-2]) + len(after)
            if "".join(pieces) == text:
                return pieces
        if any(len(self.tokenizer.at_specials(turn.content)) > 1 for turn in turns[read:]):
            raise Refused("it changes a message that holds a special token")
        return [text]

    def _text(self, turns: Sequence[Turn]) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            (text,), _ = render_jinja_template(
                [[{"role": turn.speaker, "content": turn.content} for turn in turns]],
                chat_template=self.template,
                add_generation_prompt=True,
                **self.variables,
            )
        except Exception as error:  # what goes wrong in a template may be of any class
            raise Refused(shortened(str(error))) from None
        return str(text)


def _shown(content: str) -> Iterator[str]:
    """What templates make of a content: as it is; without spaces around it, or its reasoning."""
    for each in (content, content.rpartition("</think>")[2].lstrip("\n")):
        yield from (each, each.strip())
