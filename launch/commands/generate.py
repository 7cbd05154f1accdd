"""hypnos generate: continues a prompt, in a session that sleeps whenever its window is full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands import argument, command
from launch.commands.asking import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_KWARGS,
    FOLDER,
    PRECISION,
    SLEEP_UNTIL,
)
from launch.commands.values import number, path, positive, read_text, seed, tell, whole
from pretrain.errors import UserError

if TYPE_CHECKING:
    from pretrain.inference.generate import Continuation, Piece


@command(
    "generate",
    "continue a prompt with a trained model that sleeps when its window is full",
    description="Continues a prompt with a run's newest checkpoint, or with an export of it.",
    example='hypnos generate runs/text-tiny --prompt "def main(" --tokens 300\n'
    "hypnos generate runs/text-tiny --prompt-file book.txt --samples 4 --top-p 0.9 --passes 8\n"
    'hypnos generate runs/questions --context-file story.txt --prompt "Answer:" --temperature 0\n'
    'hypnos generate runs/text-tiny --chat --prompt "What is sleep?"',
    arguments=[
        FOLDER,
        argument("--prompt", metavar="TEXT", help="text to continue"),
        argument(
            "--prompt-file",
            type=path,
            metavar="FILE",
            help="UTF-8 file to continue; -: standard input",
        ),
        argument(
            "--context-file",
            type=path,
            metavar="FILE",
            help="UTF-8 file that is read and slept over before the prompt, and then forgotten "
            "but for the fast weights",
        ),
        argument(
            "--chat",
            action="store_true",
            help="treat the prompt as a user's message, as in `hypnos serve`, and answer it",
        ),
        argument("--system", metavar="TEXT", help="with --chat: the system message"),
        CHAT_TEMPLATE,
        CHAT_TEMPLATE_KWARGS,
        argument(
            "--tokens",
            "--max-tokens",
            type=positive,
            metavar="COUNT",
            default=200,
            help="maximum new tokens",
        ),
        argument(
            "--samples", type=positive, metavar="COUNT", default=1, help="number of continuations"
        ),
        argument(
            "--stop",
            action="append",
            metavar="TEXT",
            default=[],
            help="text that ends a continuation and is left out; may be repeated",
        ),
        argument(
            "--temperature",
            type=number,
            metavar="X",
            default=0.8,
            help="sampling temperature; 0: always the most likely token",
        ),
        argument(
            "--top-p",
            type=number,
            metavar="P",
            default=1.0,
            help="sample from the most likely tokens that together have this probability",
        ),
        argument("--top-k", type=whole, metavar="K", help="sample from the K most likely tokens"),
        argument(
            "--min-p",
            type=number,
            metavar="P",
            help="sample only tokens at least P times as likely as the most likely one",
        ),
        argument(
            "--repetition-penalty",
            type=number,
            metavar="X",
            default=1.0,
            help="above 1: makes tokens that were read before less likely",
        ),
        argument(
            "--seed",
            type=seed,
            default=0,
            help="seed of sampling; sample i uses seed + i (default: 0)",
        ),
        argument(
            "--passes",
            type=positive,
            metavar="N",
            help="passes over a full window (default: as trained)",
        ),
        SLEEP_UNTIL,
        PRECISION,
    ],
)
def generate(
    folder: Path,
    prompt: str | None,
    prompt_file: Path | None,
    context_file: Path | None,
    chat: bool,
    system: str | None,
    chat_template: Path | None,
    chat_template_kwargs: dict[str, Any] | None,
    tokens: int,
    samples: int,
    stop: list[str],
    passes: int | None,
    until: float,
    precision: str,
    top_k: int | None,
    min_p: float | None,
    **settings: Any,
) -> None:
    if (prompt is None) == (prompt_file is None):
        raise UserError("name the text to continue: either --prompt TEXT or --prompt-file FILE")
    if not chat and any(of is not None for of in (system, chat_template, chat_template_kwargs)):
        raise UserError("--system and --chat-template are for a conversation: give --chat, too")
    if prompt_file is not None:
        prompt = read_text(None if str(prompt_file) == "-" else prompt_file)
    assert prompt is not None, "one of the two is given"
    context = read_text(context_file) if context_file else ""

    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch, Megatron and DeepSpeed", tell):
        from pretrain.inference.chat import chat_form
        from pretrain.inference.generate import continue_text, generate, open_run, question
        from pretrain.inference.sampling import Sampling

    sampling = Sampling(top_k=top_k or 0, min_p=min_p or 0.0, **settings)
    with said_if_slow(f"opening {folder} and reading the prompt", tell):
        decoder, tokenizer = open_run(folder, precision)
        form = chat_form(tokenizer, chat_template, chat_template_kwargs) if chat else None
        asked = question(form, prompt, system) if form else prompt
        started = continue_text(
            decoder, tokenizer, asked, sampling, context=context,
            max_tokens=tokens, stop=stop, form=form, samples=samples, passes=passes, until=until,
        )  # fmt: skip
    shown = "" if chat else prompt  # printed before the continuation
    pieces = _without(form.space if form else "", generate(started))
    if samples == 1:
        print(shown, end="", flush=True)
        for _, text in pieces:
            print(text, end="", flush=True)
        print()
        return
    texts = dict.fromkeys(started, shown)
    with said_if_slow(f"writing {samples} continuations", tell):
        for one, text in pieces:
            texts[one] += text
    for sample, text in enumerate(texts.values(), 1):
        print(f"---- {sample} of {samples}\n{text}")


def _without(
    space: str, pieces: Iterable[tuple[Continuation, Piece]]
) -> Iterator[tuple[Continuation, str]]:
    """Their texts, without the space before an answer."""
    begun = set()
    for one, piece in pieces:
        yield one, piece.text if one in begun else piece.text.removeprefix(space)
        if piece.text:
            begun.add(one)
