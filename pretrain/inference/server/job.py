"""The engine's jobs, one per answer, and the events that it emits for them."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from pretrain.inference.sampling import Choice, Sampler
from pretrain.inference.session import Session
from pretrain.inference.text import TextDecoder


@dataclass(frozen=True)
class Facts:
    """The state of a session, for display."""

    tokens: int  # read so far
    filled: int  # how many of them are in the open window
    window: int
    slept: int  # windows slept over
    passes: int
    pending: int  # passes of sleep that are owed
    bytes: int  # size of its memory, which does not depend on how much it has read

    @staticmethod
    def of(session: Session) -> Facts:
        return Facts(
            session.position, filled=session.filled, window=session.model.sleep.window,
            slept=session.slept, passes=session.passes, pending=session.pending,
            bytes=session.memory.nbytes,
        )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """Some of the input was read, or a pass of sleep was made."""

    facts: Facts


@dataclass(frozen=True)
class Heard:
    """The model's log-probabilities of tokens of the input."""

    choices: Sequence[Choice]


@dataclass(frozen=True)
class Said:
    """A token of the answer; its text may be held back until it cannot be a stop string."""

    text: str
    choice: Choice
    facts: Facts


@dataclass(frozen=True)
class Finished:
    """The answer's end.

    unread   tokens of the conversation that the session has not read yet
    by       the token that ended it and is not part of it, if there is one
    """

    text: str
    reason: str  # stop or length
    session: Session
    unread: tuple[int, ...]
    by: Choice | None = None


@dataclass(frozen=True)
class Failed:
    error: BaseException


Event = Reading | Heard | Said | Finished | Failed


@dataclass(eq=False)
class Job:
    """One answer to generate.

    session    what it continues; not shared
    tokens     to read first, at least one
    context    windows to read and sleep over first; nothing is predicted from these. The last of
               them may be of `tokens`, and `read` counts them
    marks      (tokens read, function): places where the function gets a copy of the session
    stream     turns the answer's tokens into text
    most       maximum tokens of the answer
    least      minimum tokens of the answer before it may end
    ends       tokens that end it, and are not part of it
    others     further answers to the same input, until it is read
    hears      also report log-probabilities of the input tokens
    """

    session: Session
    tokens: Sequence[int]
    sampler: Sampler
    stream: TextDecoder
    most: int
    ends: Collection[int]
    emit: Callable[[Event], None]
    least: int = 0
    marks: deque[tuple[int, Callable[[Session], None]]] = field(default_factory=deque)
    others: Sequence[Job] = ()
    hears: bool = False
    context: deque[Sequence[int]] = field(default_factory=deque)
    cancelled: bool = False
    read: int = 0  # how many of `tokens`
    count: int = 0  # tokens of the answer
    said: Counter[int] = field(default_factory=Counter)  # how often each occurs in the answer
    next: int | None = None  # a token that is sampled but not read yet
    safe: Session | None = None  # the session before the tokens whose text is held back
    tail: str = ""  # the text of these tokens
    arrived: float = field(default_factory=time.perf_counter)
    spoke: float = 0.0  # when its last token came

    @property
    def answers(self) -> int:
        """How many answers it stands for: the places it takes in the engine's batch."""
        return 1 + len(self.others)
