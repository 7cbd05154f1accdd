"""A session with a model that sleeps: read, sleep when the window is full, read on, answer.

Between tokens a session holds at most L tokens of keys and values, the open window's hidden states
and the fast weights S: the same memory after a million tokens as after a thousand. Every token
    costs
one pass; the N - 1 passes of sleep are paid once per window. What it computes is what training
computed (`pretrain/model/sleep.py`), token by token.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from parallel import mesh
from parallel.window import open_window
from pretrain.checkpoint import load_model
from pretrain.errors import UserError
from pretrain.model.hybrid import HybridLM
from pretrain.model.sleep import run_part
from tokenizer.encode import Tokenizer


class Session:
    """B rows read in step.

    Args:
        passes: N, if other than the model was trained with.
    """

    def __init__(self, model: HybridLM, rows: int = 1, passes: int | None = None) -> None:
        self.model, self.passes = model, passes or model.sleep.passes
        self.state = model.empty_state(rows)
        # the wake pass's outputs over the open window, [B, t, D] together
        self.hidden: list[Tensor] = []
        self.filled = 0  # t, tokens read into the open window
        self.slept = 0  # windows consolidated so far
        self._predicts = True  # whether the open window is one that predicts

    @torch.inference_mode()
    def read(self, tokens: Tensor, predicts: bool = True) -> Tensor | None:
        """Reads tokens [B, T], T >= 1, each in a single pass, sleeping whenever the window fills
        up.

        Args:
            predicts: these tokens are predicted (a continuation, an answer) rather than only
                consolidated. It matters to a model trained with sleep.when = "context", whose
                predicting windows do not sleep; such a model begins a new window where reading
                turns into predicting.
        Returns:
            logits [B, vocabulary] after the last token; None while a model with a coda only
            consolidates, since the coda then runs after the sleep.
        """
        if self.model.sleep.when == "context" and predicts != self._predicts:
            if self.filled:
                self.end_window()
            self._predicts = predicts
        logits = None
        for start, stop in self._pieces(tokens.shape[1]):
            logits = self._read_piece(tokens[:, start:stop])
            if self.filled == self.model.sleep.window:
                self.end_window()
        return logits

    def _pieces(self, count: int) -> Iterator[tuple[int, int]]:
        """The token ranges that end where the window fills up."""
        start = 0
        while start < count:
            stop = min(count, start + self.model.sleep.window - self.filled)
            yield start, stop
            start = stop

    def _read_piece(self, tokens: Tensor) -> Tensor | None:
        model, sleep = self.model, self.model.sleep
        everything = torch.ones_like(tokens, dtype=torch.bool)
        window = open_window(
            model.config,
            self.state,
            everything,
            False,
            sleep.window,
            sleep.eviction == "sliding",
            stays_open=True,
        )
        h = model.embedded(tokens)
        for part in (model.prelude, model.core):
            h, self.state = run_part(model, part, h, self.state, window, "none")
        self.hidden.append(h)
        self.filled += tokens.shape[1]
        if self._coda_waits:
            logits = None
        else:
            h, self.state = run_part(model, model.coda, h, self.state, window, "none")
            logits = model.logits(h[:, -1])
        self.state = self.state._replace(attendable=window.attendable)
        return logits

    @property
    def _coda_waits(self) -> bool:
        """In a window that only consolidates, the coda runs once, after the last pass."""
        return (
            self.model.sleep.when == "context" and not self._predicts and self.model.sleep.coda > 0
        )

    @torch.inference_mode()
    def end_window(self) -> None:
        """Sleeps over the open window (passes 2..N), if it is one that sleeps, and clears its keys
        and values.
        """
        model, sleep = self.model, self.model.sleep
        h = torch.cat(self.hidden, dim=1)
        everything = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        sliding, keep = (
            sleep.eviction == "sliding",
            sleep.window - 1 if sleep.eviction == "sliding" else 0,
        )
        sleeps = sleep.when == "always" or not self._predicts
        attendable = self.state.attendable
        for number in range(2, self.passes + 1 if sleeps else 2):
            state = self.state.begin_pass(model.core)
            window = open_window(model.config, state, everything, False, sleep.window, sliding)
            write_only = number == self.passes and not self._coda_waits
            h, self.state = run_part(model, model.core, h, state, window, "none", write_only)
        if self._coda_waits:
            before = self.state._replace(attendable=attendable[:, : self.state.past])
            window = open_window(model.config, before, everything, False, sleep.window, sliding)
            h, self.state = run_part(model, model.coda, h, before, window, "none", write_only=True)
        self.state = self.state._replace(attendable=attendable).end_window(keep, self.filled)
        self.hidden, self.filled = [], 0
        self.slept += sleeps

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
    model, config = load_model(run)
    if config.data.task != "text":
        raise UserError(
            f"{run} was trained on the task {config.data.task!r}, which has no text to generate"
        )
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
