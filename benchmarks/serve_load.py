"""`hypnos serve` under load: many clients for minutes; errors, throughput and tail latency.

    python -m benchmarks.serve_load runs/text-tiny                     # 64 clients, two minutes
    python -m benchmarks.serve_load runs/text-tiny --clients 8 --seconds 20

Every client is OpenAI's own, streaming, with a key of its own: it continues with
`previous_response_id`, resends its history to chat completions, or asks for a plain completion, and
now and then starts afresh with a longer text. The server is a process of its own on this machine,
and shares its cores with the clients.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil

from benchmarks.command import described
from benchmarks.serving import MODEL, server
from pretrain.tables import table

SHARES = (0.5, 0.9, 0.95, 0.99)
WORDS = (
    "import", "self", "return", "def", "class", "for", "in", "not", "the", "a", "window", "over",
)  # fmt: skip


@dataclass
class Seen:
    """What clients have measured, in seconds."""

    first: list[float] = field(default_factory=list)  # from a request to its first text
    between: list[float] = field(default_factory=list)  # from one piece of text to the next
    whole: list[float] = field(default_factory=list)
    texts: int = 0
    cached: int = 0
    errors: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Measures, and prints a table; status 1 if a request failed."""
    parser = described(__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or an export")
    parser.add_argument("--clients", type=int, default=64, help="at a time (%(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="for how long (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as store, server(args.run, Path(store)) as (url, started):
        process = psutil.Process(started.pid)
        seen = asyncio.run(all_clients(url, args))
        used = process.cpu_times()
        health = (
            f"{process.memory_info().rss / 2**20:,.0f} MiB, {used.user + used.system:.0f} CPU s"
        )
        kept = list(Path(store).glob("*.safetensors"))
    report(args, seen, health, len(kept))
    sys.exit(1 if seen.errors else 0)


async def all_clients(url: str, args: argparse.Namespace) -> Seen:
    seen, end = Seen(), time.monotonic() + args.seconds
    await asyncio.gather(
        *(converse(url, number, end, args.tokens, seen) for number in range(args.clients))
    )
    return seen


async def converse(url: str, number: int, end: float, tokens: int, seen: Seen) -> None:
    """One client's requests, one after the other."""
    chance = random.Random(number)
    await asyncio.sleep(chance.random())
    async with openai.AsyncOpenAI(base_url=url, api_key=f"key {number}", max_retries=0) as client:
        talk = Talk(client, chance, tokens, seen)
        while time.monotonic() < end:
            begin = last = time.monotonic()
            try:
                async with aclosing(talk.next()) as texts:
                    async for _ in texts:
                        now = time.monotonic()
                        (seen.first if last is begin else seen.between).append(now - last)
                        last = now
                        seen.texts += 1
                seen.whole.append(time.monotonic() - begin)
            except openai.OpenAIError as error:
                seen.errors[f"{type(error).__name__}: {error}"[:120]] += 1


class Talk:
    """What one client asks next."""

    def __init__(
        self, client: openai.AsyncOpenAI, chance: random.Random, tokens: int, seen: Seen
    ) -> None:
        self.client, self.chance, self.seen = client, chance, seen
        self.last: str | None = None  # id of the last response
        self.history: list[Any] = []
        self.ask: dict[str, Any] = {"model": MODEL, "stream": True}
        self.tokens = tokens

    def text(self, most: int) -> str:
        return " ".join(self.chance.choices(WORDS, k=self.chance.randint(1, most)))

    async def next(self) -> AsyncGenerator[str]:
        kind = self.chance.choice(["response", "response", "chat", "chat", "completion"])
        is_new = self.chance.random() < 0.15
        text = self.text(400 if is_new else 20)
        if kind == "response":
            before = {} if is_new or not self.last else {"previous_response_id": self.last}
            events = await self.client.responses.create(
                input=text, max_output_tokens=self.tokens, **before, **self.ask
            )
            async for event in events:
                if event.type == "response.output_text.delta":
                    yield event.delta
                elif event.type in ("response.completed", "response.incomplete"):
                    self.last = event.response.id
                    self.seen.cached += event.response.usage.input_tokens_details.cached_tokens
                elif event.type == "error":
                    raise openai.OpenAIError(event.message)
        elif kind == "chat":
            if is_new:
                self.history = []
            self.history.append({"role": "user", "content": text})
            chunks = await self.client.chat.completions.create(
                messages=self.history, max_tokens=self.tokens,
                stream_options={"include_usage": True}, **self.ask
            )  # fmt: skip
            said = ""
            async for chunk in chunks:
                if chunk.choices and chunk.choices[0].delta.content:
                    said += chunk.choices[0].delta.content
                    yield said
                elif chunk.usage:
                    self.seen.cached += chunk.usage.prompt_tokens_details.cached_tokens
            self.history.append({"role": "assistant", "content": said})
        else:
            chunks = await self.client.completions.create(
                prompt=text, max_tokens=self.tokens, **self.ask
            )
            async for chunk in chunks:
                yield chunk.choices[0].text


def report(args: argparse.Namespace, seen: Seen, health: str, kept: int) -> None:
    rows = []
    for name, values in (
        ("to the first text", seen.first), ("from text to text", seen.between),
        ("whole answer", seen.whole),
    ):  # fmt: skip
        ordered = sorted(values) or [0.0]
        at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in SHARES]
        rows.append([name, *(f"{1000 * value:,.0f}" for value in (*at, ordered[-1]))])
    answers, errors = len(seen.whole), sum(seen.errors.values())
    rate = f"{answers:,} answers, {answers / args.seconds:.1f} a second, {errors} errors"
    print(f"{args.clients} clients, {args.seconds:.0f} s: {rate}")
    print(f"{seen.cached:,} tokens came from sessions; {kept:,} sessions on disk; server {health}")
    print(table(["ms", *(f"p{100 * share:g}" for share in SHARES), "max"], rows))
    for error, count in seen.errors.most_common():
        print(f"{count} x {error}")


if __name__ == "__main__":
    main()
