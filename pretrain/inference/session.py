"""A session with a model that sleeps: read, sleep when the window is full, read on, answer.

Between tokens a session holds at most L tokens of keys and values, the open window's hidden states
and the fast weights S: the same memory after a million tokens as after a thousand. Every token
costs one pass; the N - 1 passes of sleep are paid once per window. It runs what training runs, the
`one_pass` of `pretrain.model.sleep`, with the tokens of the wake pass coming one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from parallel import mesh
from pretrain.config.run_folder import check_tokenizer
from pretrain.convert.load import open_model
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.model.plan import WindowPlan
from pretrain.model.reader import Memory, Reader
from pretrain.model.sleep import SleepLM, begin_window, end_window, one_pass
from tokenizer.encode import Tokenizer


class Session:
    """B rows read in step.

    Args:
        passes: N, if other than the model was trained with.
    """

    def __init__(self, model: SleepLM, rows: int = 1, passes: int | None = None) -> None:
        self.model, self.passes = model, passes or model.sleep.passes
        self.memory = Memory(model.empty_state(rows))
        # the wake pass's outputs over the open window, [B, t, D] together
        self.hidden: list[Tensor] = []
        self.filled = 0  # t, tokens read into the open window
        self.slept = 0  # windows consolidated so far
        self._predicts = True  # whether the open window is one that predicts
        self._logits: Tensor | None = None  # [B, vocabulary] of the last token

    @torch.inference_mode()
    def read(self, tokens: Tensor, predicts: bool = True) -> Tensor | None:
        """Reads tokens [B, T], T >= 1, each in a single pass, sleeping whenever the window is full.

        Args:
            predicts: these tokens are predicted (a continuation, an answer) rather than only
                consolidated. It matters to a model trained with sleep.when = "context", whose
                predicting windows do not sleep; such a model begins a new window where reading
                turns into predicting.
        Returns:
            logits [B, vocabulary] after the last token; None where it is only consolidated.
        """
        if self.model.sleep.when == "context" and predicts != self._predicts:
            if self.filled:
                self.end_window()
            self._predicts = predicts
        for start, stop in self._pieces(tokens.shape[1]):
            self._read_piece(tokens[:, start:stop])
            if self.filled == self.model.sleep.window:
                self.end_window()
        return self._logits

    def _pieces(self, count: int) -> Iterator[tuple[int, int]]:
        """The token ranges that end where the window fills up."""
        start = 0
        while start < count:
            stop = min(count, start + self.model.sleep.window - self.filled)
            yield start, stop
            start = stop

    def _reader(self, tokens: Tensor) -> tuple[Reader, WindowPlan]:
        """Of the open window's tokens [B, t], planned as training plans a batch of one window.

        The last token is scored if the window predicts, and every document goes on.
        """
        targets = torch.full(tokens.shape, IGNORE)
        if self._predicts or self.model.sleep.when == "always":
            targets[:, -1] = 0
        valid, rows = torch.ones(tokens.shape, dtype=torch.bool), len(tokens)
        starts, carries = torch.zeros(rows, 1, dtype=torch.bool), torch.ones(rows).bool()
        batch = Batch(tokens, targets, valid, starts, carries)
        reader = Reader.of(
            self.model, batch, self.memory.state, passes=self.passes, head=self._keep_logits
        )
        return reader, reader.windows[0]

    def _keep_logits(self, w: WindowPlan, y: Tensor, targets: Tensor) -> Tensor:
        """The head of `one_pass`: what is predicted is wanted, and no loss."""
        self._logits = self.model.logits(y)
        return self._logits.new_zeros(len(y))

    def _read_piece(self, tokens: Tensor) -> None:
        """The wake pass over some of the window's tokens; its keys and convolutions stay open."""
        self._logits = None
        reader, w = self._reader(tokens)
        window, memory = begin_window(reader, w, self.memory, stays_open=True)
        wake = replace(reader.passes(w)[0], write_only=None)  # later tokens convolve over these
        output, memory = one_pass(reader, wake, window, None, memory)
        assert output.h is not None, "a wake pass runs the core"
        self.hidden.append(output.h)
        self.filled += tokens.shape[1]
        self.memory = Memory(memory.state._replace(attendable=window.attendable))

    @torch.inference_mode()
    def end_window(self) -> None:
        """Sleeps over the open window (passes 2..N), if it is one that sleeps, and forgets it."""
        h: Tensor | None = torch.cat(self.hidden, dim=1)
        state = self.memory.state
        before = state._replace(attendable=state.attendable[:, : state.past])
        rows = len(state.position)
        reader, w = self._reader(torch.zeros(rows, self.filled, dtype=torch.int64))
        window, memory = begin_window(reader, w, Memory(before))
        for p in reader.passes(w)[1:]:
            (h, _, _), memory = one_pass(reader, p, window, h, memory)
        self.memory = end_window(reader, w, window, memory)
        self.hidden, self.filled = [], 0
        self.slept += bool(w.sleeps.all())

    def generate(
        self,
        logits: Tensor,
        count: int,
        temperature: float,
        seed: int,
        stop: int | None = None,
        vocab_size: int | None = None,
    ) -> Iterator[int]:
        """Samples tokens one by one after `read` gave `logits` [1, vocabulary], reading each as it
        comes.

        Args:
            count: at most so many tokens. temperature: 0 takes the likeliest. stop: a token that
                ends it.
            vocab_size: ids the tokenizer has, where the model's vocabulary is padded beyond them.
        """
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            logits = logits[:, :vocab_size]
            if temperature == 0:
                token = int(logits.argmax())
            else:
                scores = logits[0].double().cpu()
                chances = torch.softmax((scores - scores.max()) / temperature, dim=0)
                token = int(torch.multinomial(chances, 1, generator=generator))
            if token == stop:
                return
            yield token
            following = self.read(torch.tensor([[token]], device=logits.device))
            assert following is not None, "a predicting window always gives logits"
            logits = following


def generate_run(
    run: Path,
    prompt: str,
    max_tokens: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    passes: int | None = None,
) -> Iterator[str]:
    """Continues a prompt with a run's newest checkpoint, piece by piece as the text is decoded.

    Args:
        passes: N over each full window, if other than the run was trained with.
    Raises:
        UserError: the run was not trained on text, or has no checkpoint.
    """
    model, config = open_model(run)
    if config.data.task != "text":
        raise UserError(
            f"{run} was trained on the task {config.data.task!r}, which has no text to generate"
        )
    check_tokenizer(config)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    session = Session(model.to(mesh.device()).eval(), passes=passes)
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError("the prompt is empty: give the model some text to go on from")
    logits = session.read(torch.tensor([ids], device=mesh.device()))
    assert logits is not None, "a predicting window always gives logits"
    written, shown = [], ""
    for token in session.generate(
        logits, max_tokens, temperature, seed, tokenizer.eos, tokenizer.vocab_size
    ):
        written.append(token)
        text = tokenizer.decode(written)
        # a character's bytes may come in several tokens
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(written)[len(shown) :]
