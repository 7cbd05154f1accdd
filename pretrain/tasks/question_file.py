"""Reads a file of questions: JSON lines, each with a context, a question about it, and the answer.

{"context": "...", "question": "...", "answer": "...", further fields}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema import QuestionsConfig
from pretrain.data.compression import Damaged, TooLarge, open_stream
from pretrain.data.json_rows import MAX_LINE, numbered_lines
from pretrain.errors import UserError, storage_error
from pretrain.files import parse_record, sha256
from tokenizer import TokenizerError
from tokenizer.encode import Tokenizer

Ids = NDArray[np.int32]
FIELDS = ("context", "question", "answer")
HELD_OUT = 10  # one context in so many
MAX_GROUP = 40  # characters of a group's name
MARKUP = set("|[]\\$")  # of Markdown's tables, of rich, of matplotlib


class Question(NamedTuple):
    """One line, as tokens."""

    context: Ids
    question: Ids
    answer: Ids  # with EOS
    group: str  # the value of the field `questions.group`


def read_questions(path: Path, config: QuestionsConfig, tokenizer: Tokenizer) -> list[Question]:
    """All questions of a file, which is encoded once: training and evaluation share what it holds,
    and so do the runs of a study that is planned.

    Raises:
        UserError: a line that is no question, by its number; contexts, or questions with their
            answers, that are longer than the settings allow: how many, and the longest.
    """
    try:
        content = sha256(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    asked = config.context, config.answer, config.group
    return list(_encoded(_Source(path, content, asked, tokenizer.fingerprint, config, tokenizer)))


@dataclass(frozen=True)
class _Source:
    """What the questions of a file follow from; equal ones have equal questions."""

    path: Path
    content: str  # its sha256
    asked: tuple[int, int, str]  # of the settings, those that reading depends on
    fingerprint: str  # of the tokenizer
    config: QuestionsConfig = field(compare=False)
    tokenizer: Tokenizer = field(compare=False)


@lru_cache(maxsize=2)  # questions.path and questions.heldout
def _encoded(source: _Source) -> list[Question]:
    path, config, tokenizer = source.path, source.config, source.tokenizer
    found: list[Question] = []
    too_long: dict[str, list[tuple[int, int]]] = {"context": [], "answer": []}  # (tokens, line)
    for number, record in _records(path):
        place = f"{path}, line {number}"
        try:
            context, question, answer = (
                np.array(tokenizer.encode(record[name]), np.int32) for name in FIELDS
            )
        except TokenizerError as error:  # JSON can escape lone surrogates
            raise UserError(f"{place}: {error}") from None
        if not len(question):
            raise UserError(
                f"{place}: the question is empty, so its answer would be predicted from the "
                'context\'s window; write what is asked, if only "Answer:"'
            )
        group = _group(record, config.group, place)
        one = Question(context, question, np.append(answer, np.int32(tokenizer.eos)), group)
        found.append(one)
        for name, tokens in (("context", len(context)), ("answer", answer_width(one))):
            if tokens > getattr(config, name):
                too_long[name].append((tokens, number))
    if not found:
        raise UserError(f"{path}: no questions: the file is empty")
    for name, of in (("context", "contexts"), ("answer", "questions with their answers")):
        if lines := too_long[name]:
            raise UserError(
                f"{path}: {len(lines)} of {len(found)} {of} have more than questions.{name} = "
                f"{getattr(config, name)} tokens (the first: line {lines[0][1]}; the longest: "
                f"{max(lines)[0]}); raise it, or shorten them"
            )
    return found


def answer_width(question: Question) -> int:
    """Tokens that are read after the context: the answer's last, EOS, is only predicted."""
    return len(question.question) + len(question.answer) - 1


def split_questions(questions: list[Question], path: Path) -> tuple[list[Question], list[Question]]:
    """(to train on, held out): a tenth of the contexts, by a hash of their tokens, is held out."""
    digests = [_digest(question) for question in questions]
    contexts = sorted(set(digests))
    if len(contexts) < 2:
        raise UserError(
            f"{path}: all questions are about one context, so none can be held out; "
            "name a file of other questions in questions.heldout"
        )
    held_out = set(contexts[: max(1, len(contexts) // HELD_OUT)])
    pairs = list(zip(questions, digests, strict=True))
    return [q for q, d in pairs if d not in held_out], [q for q, d in pairs if d in held_out]


def _digest(question: Question) -> bytes:
    """Of what it is about: its context; without one, the question itself."""
    about = question.context if len(question.context) else question.question
    return hashlib.sha256(about.tobytes()).digest()


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of all lines that are not blank."""
    try:
        with open_stream(path) as file:
            for number, line in numbered_lines(file):
                yield number, _parse(line, f"{path}, line {number}")
    except OSError as error:
        raise _unreadable(path, error) from None
    except (Damaged, TooLarge) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None


def _unreadable(path: Path, error: OSError) -> Exception:
    return storage_error(error)(f"{path}: cannot be read: {error.strerror}")


def _parse(line: bytes, place: str) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise UserError(f"{place}: more than {MAX_LINE >> 20} MiB; shorten it")
    record = parse_record(line, place)
    for name in FIELDS:
        if not isinstance(record.get(name), str):
            fix = f"give each line the fields {', '.join(FIELDS)}, as strings"
            raise UserError(f'{place}: "{name}" is missing or not a string; {fix}')
    return record


def _group(record: dict[str, Any], field: str, place: str) -> str:
    """The value of the field that groups questions; "" if there is no such field. It is part of a
    measure's name, in tables and on terminals.
    """
    if not field:
        return ""
    value = record.get(field)
    name = str(value) if isinstance(value, str | int) else ""
    if not 0 < len(name) <= MAX_GROUP or not name.isprintable() or set(name) & MARKUP:
        raise UserError(
            f'{place}: "{field}" (questions.group) must be a whole number, or text of at most '
            f"{MAX_GROUP} printable characters without any of {' '.join(sorted(MARKUP))}"
        )
    return name
