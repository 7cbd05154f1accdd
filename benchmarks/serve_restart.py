"""Time to first token of `hypnos serve` after `kill -9`, in a session of a million tokens.

    python -m benchmarks.serve_restart runs/text-tiny                      # a million tokens
    python -m benchmarks.serve_restart runs/text-tiny --tokens 20000 --kills 3

A text is read in parts, each continuing the previous response. Then the server is killed and
restarted, several times, and asked to continue the same response: the client measures the time to
the first piece of text, and checks that the answer is the same as before the first kill. For
comparison this is also done after a session's first part.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import openai

from benchmarks.command import described
from benchmarks.serving import MODEL, server
from pretrain.tables import table

PART = 2000  # words
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 20}


def main() -> None:
    """Measures, and prints a table; status 1 if an answer changed."""
    parser = described(__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or an export")
    parser.add_argument("--tokens", type=int, default=10**6, help="to be read (%(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="of the server (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        with killed_server(args.run, Path(store)) as client:
            begin = time.perf_counter()
            first, last, read = read_on(client, args.tokens)
            print(f"{read:,} tokens read in {time.perf_counter() - begin:,.0f} s")
            expected = {id: answer(client, id)[1] for id in (first, last)}
        times: dict[str, list[float]] = {last: [], first: []}  # whichever is asked first is slowest
        same = True
        for _ in range(args.kills):
            with killed_server(args.run, Path(store)) as client:
                for id, measured in times.items():
                    seconds, text = answer(client, id)
                    measured.append(1000 * seconds)
                    same &= text == expected[id]
        size = max(path.stat().st_size for path in Path(store).glob("*.safetensors"))
    rows = [
        [name, f"{times[id][0]:.0f}", f"{median(times[id]):.0f}", f"{max(times[id]):.0f}"]
        for name, id in ((f"{read:,} tokens", last), ("the first part", first))
    ]
    print(table(["after", "ms, first", "median", "max"], rows))
    told = "are those from before" if same else "HAVE CHANGED"
    print(f"the largest session on disk: {size / 1e6:.2f} MB; all answers {told}")
    sys.exit(0 if same else 1)


@contextmanager
def killed_server(run: Path, store: Path) -> Iterator[openai.OpenAI]:
    """A client of a server that is killed at the end of the block."""
    with server(run, store) as (url, process):
        try:
            client = openai.OpenAI(base_url=url, api_key="me", max_retries=0)
            client.models.list()  # connects
            yield client
        finally:
            process.kill()


def read_on(client: openai.OpenAI, tokens: int) -> tuple[str, str, int]:
    """Reads at least this many tokens; returns the first id, the last, and the tokens read."""
    chance, first, last, read = random.Random(0), "", None, 0
    while read < tokens:
        text = " ".join(f"{chance.choice('abcdef')}{chance.randint(0, 99)}" for _ in range(PART))
        before = {"previous_response_id": last} if last else {}
        said = client.responses.create(input=text, **before, **GREEDY | {"max_output_tokens": 1})
        assert said.usage is not None
        last, read = said.id, said.usage.total_tokens
        first = first or last
    assert last is not None
    return first, last, read


def answer(client: openai.OpenAI, id: str) -> tuple[float, str]:
    """Seconds to the first text after the response `id`, and the whole text."""
    begin, first, text = time.perf_counter(), 0.0, ""
    stream = client.responses.create(
        input="and then?", previous_response_id=id, stream=True, store=False, **GREEDY
    )
    for event in stream:
        if event.type == "response.output_text.delta":
            first = first or time.perf_counter() - begin
            text += event.delta
    return first, text


if __name__ == "__main__":
    main()
