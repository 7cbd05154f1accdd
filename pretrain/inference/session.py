"""A session with a model that sleeps: read, sleep when the window is full, read on, answer.

Between tokens a session holds the open window's keys, values and hidden states and the fast weights
S: the same memory after a million tokens as after a thousand. Every token costs one pass; when a
window is full, the N - 1 passes of sleep are owed. They can be done at once, in the background, or
one by one between other sessions' tokens, with the same result; until then the session cannot read
on.

It runs what training runs, the `one_pass` of `pretrain.model.sleep`, except that the tokens of the
wake pass come in pieces. Single tokens use the fast path of `pretrain.inference.decode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parallel import mesh
from parallel.state import State
from parallel.window import Window
from pretrain.data.batch import IGNORE, Batch
from pretrain.inference.decode import Decoder
from pretrain.inference.memory import SessionMemory
from pretrain.model.plan import WindowPlan
from pretrain.model.reader import Head, Memory, Reader, begin_window, end_window
from pretrain.model.sleep import one_pass
from pretrain.model.stop_rule import StopRule, change_of


class SleepOwed(ValueError):
    """A session cannot read on: its window is full, and not slept over yet."""


class Session:
    """One conversation, or any other stream of tokens.

    It predicts everything that it reads but a context (`read_context`), so with sleep.when =
    "context" no other window sleeps.

    position      tokens read so far
    filled        how many of them are in the open window
    slept         windows slept over so far
    sleep_passes  passes made over them, without the wake passes
    pending       passes of sleep that it owes
    seen          [vocabulary] bool, the tokens that it has read, for a repetition penalty

    Args:
        passes: N, if not the trained one.
        until: end a sleep before its N-th pass once a pass changes S by less than this share of its
            norm, see `pretrain.model.stop_rule`; 0: always N passes.
    """

    def __init__(self, decoder: Decoder, passes: int | None = None, until: float = 0.0) -> None:
        self.decoder, self.model = decoder, decoder.model
        self._memory: SessionMemory | None = None
        self.seen = np.zeros(self.model.config.vocab_size, dtype=bool)
        self.ended = False  # the window takes no more tokens
        self.done = 1  # passes over the window, including the wake pass
        self.slept = 0
        self.sleep_passes = 0
        self.until = until
        self._passes = passes or self.model.sleep.passes
        self._background: Future[None] | None = None

    @property
    def memory(self) -> SessionMemory:
        """Allocated on first use: a session that has read nothing takes no memory."""
        if self._memory is None:
            with torch.inference_mode(False):  # whatever the caller's mode
                self._memory = SessionMemory(self.model)
        return self._memory

    @property
    def position(self) -> int:
        """Tokens read so far."""
        return self.filled + (self._memory.position if self._memory else 0)

    @property
    def filled(self) -> int:
        """Tokens in the open window."""
        return self._memory.filled if self._memory else 0

    @property
    def passes(self) -> int:
        """N of the next sleep. Setting it below 1, or during a sleep, is a ValueError."""
        return self._passes

    @passes.setter
    def passes(self, passes: int) -> None:
        self.wait()
        if passes < 1:
            raise ValueError(f"passes = {passes}: N counts the wake pass, so it is at least 1")
        if self.done > 1 and passes != self._passes:
            raise ValueError(
                f"{self.done} of {self._passes} passes are done: N cannot change before the last"
            )
        self._passes = passes
        self._forget_if_done()

    @property
    def pending(self) -> int:
        """Passes of sleep owed before it can read on; with a stop rule, the maximum."""
        return self._passes - self.done if self.ended and self._sleeps else 0

    @property
    def _sleeps(self) -> bool:
        return self.model.sleep.when == "always"

    # ---- reading

    @torch.inference_mode()
    def read(self, tokens: Sequence[int] | Tensor, every: bool = False) -> Tensor:
        """Reads tokens, each in a single pass; sleeps when the window is full and more tokens come.

        Args:
            tokens: at least one.
            every: logits after each token rather than after the last.
        Returns:
            logits [vocabulary], or [T, vocabulary].
        """
        ids = self._checked(tokens)
        self.wait()
        said = []
        for piece in self._pieces(ids):
            self.sleep()
            said.append(self._read_piece(piece, every))
        return torch.cat(said) if every else said[-1][-1]

    @torch.inference_mode()
    def read_context(self, tokens: Sequence[int] | Tensor) -> None:
        """Reads tokens as training reads a task's context: nothing is predicted, and every window
        is slept over, whatever sleep.when. The next token begins a new window.

        The context fills windows from its end, as in training, so the first one may be shorter.
        """
        ids = self._checked(tokens)
        self.end_window()
        self.sleep()
        for stretch in context_windows(len(ids), self.model.sleep.window):
            self._read_window(ids[stretch])

    def end_window(self) -> None:
        """Closes this window: its sleep is owed now, even if it is not full."""
        self.wait()
        if self.filled:
            self.ended = True
            self._forget_if_done()

    def _checked(self, tokens: Sequence[int] | Tensor) -> Tensor:
        ids = torch.as_tensor(tokens, dtype=torch.int64, device="cpu")
        if not len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < len(self.seen):
            raise ValueError(
                f"a session reads at least one token, with ids 0..{len(self.seen) - 1}"
            )
        return ids

    def _read_window(self, ids: Tensor) -> None:
        """All passes over a window of which nothing is predicted."""
        stop = StopRule(self.until) if self.until else None
        batch = _of_one_window(ids[None], torch.full((1, len(ids)), IGNORE))
        state = self.model(batch, self.memory.state(), passes=self._passes, stop=stop).state
        self.memory.filled = len(ids)
        self.memory.end_window(state)
        self.seen[ids.numpy()] = True
        self.slept += 1
        self.sleep_passes += (int(stop.made[-1]) if stop and stop.made else self._passes) - 1

    def _pieces(self, ids: Tensor) -> Iterator[Tensor]:
        """Splits the tokens where windows fill up."""
        room = 0 if self.ended else self.model.sleep.window - self.filled
        if room:
            yield ids[:room]
        yield from ids[room:].split(self.model.sleep.window) if room < len(ids) else ()

    def _read_piece(self, ids: Tensor, every: bool) -> Tensor:
        """The wake pass over some of the window's tokens; the pass stays open for more."""
        if len(ids) == 1:
            logits = self.decoder.step([self.memory], ids.tolist())
        else:
            logits = self._prefill(ids, every)
        self._has_read(ids.numpy())
        return logits

    def _has_read(self, ids: NDArray[np.int64] | int) -> None:
        self.seen[ids] = True
        if self.filled == self.model.sleep.window:
            self.end_window()

    def _prefill(self, ids: Tensor, every: bool) -> Tensor:
        """Reads several tokens in one pass. Returns logits after each, or only after the last."""
        said: list[Tensor] = []

        def keep_logits(w: WindowPlan, y: Tensor, targets: Tensor) -> Tensor:
            said.append(self.decoder.logits(y))
            return y.new_zeros(len(y))

        before = self.memory.state()
        reader, w = self._reader(ids[None], Memory(before), passes=1, every=every, head=keep_logits)
        window, memory = begin_window(reader, w, Memory(before), stays_open=True)
        output, memory = one_pass(reader, reader.passes(w)[0], window, None, memory)
        assert output.h is not None, "a wake pass runs the core"
        filled = self.filled
        self.memory.write(memory.state.blocks)
        self.memory.hidden[:, filled : filled + len(ids)] = output.h
        self.memory.filled += len(ids)
        return said[0]

    # ---- sleeping

    @torch.inference_mode()
    def sleep_pass(self) -> None:
        """Does one of the owed passes; after the last one the window is forgotten."""
        if not self.pending:
            raise ValueError("no sleep is owed")
        reader, w, window, memory = self._reopened()
        h, before = self.memory.hidden[:, : self.filled], memory.state
        p = reader.passes(w)[self.done]
        (left, _, _), memory = one_pass(reader, p, window, h, memory)
        self.done += 1
        self.sleep_passes += 1
        if not self.pending or self._has_settled(before, memory.state):
            self._forget(reader, w, window, memory)
        else:
            assert left is not None, "a pass that is not the last runs the core"
            self.memory.write(memory.state.blocks)
            h.copy_(left)

    def sleep(self) -> None:
        """Does all owed passes, or waits for those being done in the background."""
        self.wait()
        self._sleep_through()

    def sleep_in_background(self) -> Future[None]:
        """Does all owed passes in a thread; reading and `sleep` wait for them.

        Raises:
            ValueError: with tensor parallelism, whose collectives must all be in one thread.
        """
        if mesh.tp_size() > 1:
            raise ValueError("only a session on one rank sleeps in the background: call sleep()")
        if self._background is None:
            self._background = _threads.submit(self._sleep_through)
        return self._background

    def _sleep_through(self) -> None:
        while self.pending:
            self.sleep_pass()

    def wait(self) -> None:
        """Waits for a sleep in the background; an error there is raised here."""
        background, self._background = self._background, None
        if background is not None:
            background.result()

    def _forget_if_done(self) -> None:
        if self.ended and not self.pending:
            with torch.inference_mode():
                self._forget(*self._reopened())

    def _has_settled(self, before: State, after: State) -> bool:
        """Whether the stop rule ends a sleep after this pass."""
        if not self.until:
            return False
        return float(change_of(before, after, self.model.core)) < self.until

    def _forget(self, reader: Reader, w: WindowPlan, window: Window, memory: Memory) -> None:
        self.memory.end_window(end_window(reader, w, window, memory).state)
        self.slept += self._sleeps
        self.ended, self.done = False, 1

    def _reopened(self) -> tuple[Reader, WindowPlan, Window, Memory]:
        """The open window as a whole, for another pass."""
        state = self.memory.state()
        before = Memory(state._replace(attendable=state.attendable[:, : state.past]))
        tokens = torch.zeros(1, self.filled, dtype=torch.int64)  # no pass of sleep reads them
        reader, w = self._reader(tokens, before, passes=self._passes)
        window, memory = begin_window(reader, w, before)
        return reader, w, window, memory

    # ---- planning

    def _reader(
        self,
        tokens: Tensor,
        before: Memory,
        passes: int,
        every: bool = False,
        head: Head | None = None,
    ) -> tuple[Reader, WindowPlan]:
        """A reader of tokens [1, t], planned as training plans a batch of one window.

        The last token is scored, or all are.
        """
        targets = torch.full(tokens.shape, IGNORE)
        targets[:, 0 if every else -1 :] = 0
        batch = _of_one_window(tokens, targets)
        reader = Reader.of(self.model, batch, before.state, passes=passes, head=head)
        return reader, reader.windows[0]

    # ---- copying

    def fork(self) -> Session:
        """An independent session that continues from here."""
        self.wait()
        other = object.__new__(Session)
        other.__dict__.update(self.__dict__)
        other._memory, other.seen = self.memory.copy(), self.seen.copy()
        return other


def _of_one_window(tokens: Tensor, targets: Tensor) -> Batch:
    """A batch of one window; its document continues after it. tokens, targets: [1, t]."""
    valid = torch.ones(tokens.shape, dtype=torch.bool)
    return Batch(tokens, targets, valid, torch.zeros(1, 1).bool(), torch.ones(1).bool())


def context_windows(tokens: int, window: int) -> list[slice]:
    """The windows of a context: full ones up to its end, before them a shorter one if need be."""
    ends = range(tokens % window or window, tokens + 1, window)
    return [slice(max(0, end - window), end) for end in ends]


def unscored_tokens(tokens: int, window: int) -> int:
    """How many of a question's tokens are in windows before that of its last token, which predicts
    the answer. To training these windows have no targets either: they are read as context.
    """
    return (tokens - 1) // window * window


_threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sleep")


def read_together(sessions: Sequence[Session], tokens: Sequence[int]) -> Tensor:
    """Each session, all of the same decoder, reads its own token, in one forward pass.

    Returns:
        logits [B, vocabulary] of each one's next token.
    Raises:
        SleepOwed: a session's window is full; do its `pending` passes first.
    """
    for session in sessions:
        if session.ended:
            raise SleepOwed(f"{session.pending} passes must be made before the session can read on")
    logits = sessions[0].decoder.step([session.memory for session in sessions], tokens)
    for session, token in zip(sessions, tokens, strict=True):
        session._has_read(token)
    return logits
