"""Text generation: sessions read what their samplers choose, all in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from parallel import mesh
from pretrain.config.checks import uses_tokenizer
from pretrain.config.run_folder import check_tokenizer
from pretrain.convert.load import open_model
from pretrain.errors import UserError
from pretrain.inference.chat import ChatForm, Refused, Turn
from pretrain.inference.decode import Decoder
from pretrain.inference.sampling import Choice, Sampler, Sampling
from pretrain.inference.session import Session, read_together, unscored_tokens
from pretrain.inference.text import TextDecoder
from tokenizer.encode import Tokenizer


class Piece(NamedTuple):
    """What one more token adds."""

    text: str  # that is final now; often empty while a character or a stop string may be incomplete
    choice: Choice | None  # None: this is the text that was held back at the end


class Continuation:
    """One session's answer while it is generated.

    unread   the token chosen last, until the session has read it
    ended    "stop": EOS or a stop string was generated; "length": it has `max_tokens`; None: no

    Args:
        logits: [vocabulary], from the session's last `read`.
        ends: tokens that end it, and are not part of it.
    """

    def __init__(
        self,
        session: Session,
        logits: Tensor,
        sampler: Sampler,
        text: TextDecoder,
        max_tokens: int,
        ends: Collection[int],
    ) -> None:
        self.session, self.logits, self.sampler, self.text = session, logits, sampler, text
        self.max_tokens, self.ends = max_tokens, ends
        self.tokens: list[int] = []
        self.unread: int | None = None
        self.ended: Literal["stop", "length"] | None = None

    def choose(self) -> Piece:
        """Chooses the next token from `logits`; returns what it adds to the text."""
        choice = self.sampler.choose(self.logits, self.session.seen)
        if choice.token in self.ends:
            self.ended = "stop"
            return Piece(self.text.finish(), None)
        self.unread = choice.token
        self.tokens.append(choice.token)
        text = self.text.push(choice.token)
        if self.text.stopped is None and len(self.tokens) == self.max_tokens:
            text += self.text.finish()
            self.ended = "length"
        if self.text.stopped is not None:
            self.ended = "stop"
        return Piece(text, choice)


def generate(continuations: Sequence[Continuation]) -> Iterator[tuple[Continuation, Piece]]:
    """Generates all continuations to their ends, in lockstep; sleeps are done immediately."""
    going = [each for each in continuations if each.ended is None]
    while going:
        for each in going:
            yield each, each.choose()
        going = [each for each in going if each.ended is None]
        if going:
            advance(going)


def advance(continuations: Sequence[Continuation]) -> None:
    """Each session does the sleep that it may owe, then reads the token that was chosen."""
    for each in continuations:
        each.session.sleep()
    chosen = [each.unread for each in continuations if each.unread is not None]
    logits = read_together([each.session for each in continuations], chosen)
    for each, row in zip(continuations, logits, strict=True):
        each.logits, each.unread = row, None


def open_run(run: Path, precision: str = "fp32") -> tuple[Decoder, Tokenizer]:
    """Opens a run (its newest checkpoint), a checkpoint or an export for generating text.

    Args:
        precision: of the weights, fp32 or bf16, whichever was trained.
    Raises:
        UserError: the run was not trained on text, or has no checkpoint.
    """
    model, config = open_model(run, precision=precision)
    if not uses_tokenizer(config):
        raise UserError(
            f"{run} was trained on the task {config.data.task!r}, which has no text to generate"
        )
    check_tokenizer(config)
    return Decoder(model.to(mesh.device())), Tokenizer.load(config.data.tokenizer)


def continue_text(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    sampling: Sampling,
    *,
    context: str = "",
    max_tokens: int = 200,
    stop: Sequence[str] = (),
    form: ChatForm | None = None,
    samples: int = 1,
    passes: int | None = None,
    until: float = 0.0,
) -> list[Continuation]:
    """Continuations of a prompt, which is read once; sample i draws with seed + i.

    Args:
        prompt: text, or its tokens.
        context: text that is read first, slept over and no longer attended to.
        form: if the prompt is a conversation, its form, which says what ends an answer.
        passes: N over each full window, if not the trained one.
        until: ends sleeps earlier, see `pretrain.model.stop_rule`; 0: does not.
    Raises:
        UserError: the prompt is empty, or max_tokens is below 1.
    """
    if max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens}: must be at least 1")
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not ids:
        raise UserError("the prompt is empty: give the model some text to continue")
    session = Session(decoder, passes, until)
    if context:
        session.read_context(tokenizer.encode(context))
        if before := unscored_tokens(len(ids), decoder.model.sleep.window):
            session.read_context(ids[:before])
            ids = ids[before:]
    logits = session.read(ids)
    return [
        Continuation(
            session if i == samples - 1 else session.fork(),
            logits,
            Sampler(replace(sampling, seed=sampling.seed + i), tokenizer.vocab_size),
            TextDecoder(tokenizer, (*(form.stops if form else ()), *stop)),
            max_tokens,
            form.ends if form else {tokenizer.eos},
        )
        for i in range(samples)
    ]


def question(form: ChatForm, message: str, system: str | None = None) -> list[int]:
    """A user's message in its chat form, up to where the answer begins.

    Args:
        system: the system message.
    Raises:
        UserError: the form cannot write these messages.
    """
    turns = [Turn("system", system)] if system is not None else []
    try:
        return form.write([*turns, Turn("user", message)]).tokens
    except Refused as error:
        raise UserError(f"the model's chat template cannot write these messages: {error}") from None
