"""What the engine is asked for, a job for each answer, and what it tells of it while it comes."""

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
    """What a session holds, for whoever watches it."""

    tokens: int  # read so far
    filled: int  # of them in the open window
    window: int
    slept: int  # windows slept over
    passes: int
    pending: int  # passes of sleep that are owed
    bytes: int  # of its memory, whatever it has read

    @staticmethod
    def of(session: Session) -> Facts:
        return Facts(
            session.position, session.filled, session.model.sleep.window, session.slept,
            session.passes, session.pending, session.memory.nbytes,
        )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """Some of the input has been read, or a pass of sleep made."""

    facts: Facts


@dataclass(frozen=True)
class Heard:
    """What the model says of tokens of the input, each after those before it."""

    choices: Sequence[Choice]


@dataclass(frozen=True)
class Said:
    """A token of the answer; its text may be held back until it is known to be no stop string."""

    text: str
    choice: Choice
    facts: Facts


@dataclass(frozen=True)
class Finished:
    """The answer's end.

    unread   tokens that the conversation has and the session has not read yet
    by       the token that ended it and is no part of it, if one did
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
    """One answer to be given.

    session    what it goes on from; nobody else's
    tokens     to be read first, at least one
    marks      places in `tokens` where a copy of the session is handed on: (how many are read, to)
    stream     where the answer's tokens become text
    encode     text to tokens
    most       tokens of the answer
    least      tokens of the answer before one may end it
    ends       tokens that end it, and are no part of it
    others     further answers to the same input, until it is read
    hears      also report log-probabilities of the input tokens
    """

    session: Session
    tokens: Sequence[int]
    sampler: Sampler
    stream: TextDecoder
    encode: Callable[[str], list[int]]
    most: int
    ends: Collection[int]
    emit: Callable[[Event], None]
    least: int = 0
    marks: deque[tuple[int, Callable[[Session], None]]] = field(default_factory=deque)
    others: Sequence[Job] = ()
    hears: bool = False
    cancelled: bool = False
    read: int = 0  # of tokens
    count: int = 0  # tokens of the answer
    said: Counter[int] = field(default_factory=Counter)  # the same, each so many times
    next: int | None = None  # a token that is sampled and not read yet
    safe: Session | None = None  # as it was before the tokens whose text is held back
    tail: str = ""  # text that they have given
    arrived: float = field(default_factory=time.perf_counter)
    spoke: float = 0.0  # when its last token came

    @property
    def answers(self) -> int:
        """How many it is: places of the engine's batch that it takes."""
        return 1 + len(self.others)
