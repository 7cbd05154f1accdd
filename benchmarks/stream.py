"""The cost of the text stream for a rank in each step, for any number of lanes and ranks.

A corpus of random ids, in documents of 20 to 8,000 tokens (median 400), is read as one rank of many
would; no other rank is needed. CPU time of all threads of the process is measured. A step of the 1B
recipe is assumed to take as long as its FLOPs at 45 % of an H100's bf16 rate; the trainer's wait is
measured in a loop that sleeps that long per step.

    python -m benchmarks.stream    # two tables, in a minute or two
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.command import described
from pretrain.config.schema import CorpusConfig, DataConfig
from pretrain.data.formats import Document
from pretrain.data.stream import TextStream
from pretrain.data.writer import SplitWriter
from tokenizer.train import train

WINDOW, WINDOWS = 512, 8  # a row of 4,096 tokens
ROW_SECONDS = 6 * 1e9 * WINDOW * WINDOWS / (0.45 * 989e12)  # at 1B parameters, one pass
LANES, RANKS = (64, 1024, 4096, 16_384, 65_536), (1, 8, 64, 512, 4096)
MAX_ROWS = 512  # of the measured rank
DOCUMENTS, STEPS = 4000, 24


def make_corpora(folder: Path) -> tuple[Path, list[CorpusConfig]]:
    """A tokenizer and three corpora of random ids."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(2000)]
    texts = (" ".join(rng.choices(words, k=60)) for _ in range(200))
    tokenizer = train(texts, folder / "tokenizer.model", vocab_size=400)
    ids = np.random.default_rng(0)
    corpora = []
    for name, weight in (("web", 0.8), ("books", 0.15), ("code", 0.05)):
        writer = SplitWriter(folder / name, tokenizer, shard_tokens=1_000_000)
        for n in range(DOCUMENTS):
            tokens = int(np.clip(ids.lognormal(6, 1.2), 20, 8000))
            drawn = ids.integers(4, tokenizer.vocab_size, tokens).tolist()
            writer.add(Document("", str(n)), drawn)
        writer.finish()
        writer.close()
        corpora.append(CorpusConfig(path=str(folder / name), weight=weight))
    return folder / "tokenizer.model", corpora


def seconds_a_step(config: DataConfig, lanes: int, ranks: int) -> float:
    """CPU time per step, on a rank in the middle."""
    steps = max(8, min(STEPS * 8, STEPS * 64 * ranks // lanes))
    stream = TextStream(config, WINDOW, lanes, seed=0, rank=ranks // 2, ranks=ranks)
    stream.next()
    begin = time.process_time()
    for _ in range(steps):
        stream.next()
    spent = time.process_time() - begin
    stream.close()
    return spent / steps


def wait_of_the_trainer(config: DataConfig, rows: int) -> float:
    """The share of time spent waiting, if each step takes as long as the 1B recipe's."""
    stream = TextStream(config, WINDOW, rows, seed=0)
    stream.next()
    stream.wait_seconds, begin = 0.0, time.perf_counter()
    for _ in range(STEPS):
        time.sleep(ROW_SECONDS * rows)
        stream.next()
    share = stream.wait_seconds / (time.perf_counter() - begin)
    stream.close()
    return share


def main() -> None:
    """Prints both tables."""
    described(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, corpora = make_corpora(Path(folder))
        config = DataConfig(tokenizer=str(model), train=corpora, windows=WINDOWS)
        print("| lanes | ranks | rows per rank | ms/step | ms/row | fraction of a 1B step |")
        print("|---|---|---|---|---|---|")
        for lanes in LANES:
            for ranks in RANKS:
                rows = lanes // ranks
                if not 1 <= rows <= MAX_ROWS:
                    continue
                spent = seconds_a_step(config, lanes, ranks)
                numbers = f"{spent * 1e3:.2f} | {spent / rows * 1e3:.3f}"
                share = f"{spent / (rows * ROW_SECONDS):.2%}"
                print(f"| {lanes:,} | {ranks:,} | {rows} | {numbers} | {share} |", flush=True)
        print("\n| rows per rank | fraction of time the trainer waits |\n|---|---|")
        for rows in (1, 4, 16):
            print(f"| {rows} | {wait_of_the_trainer(config, rows):.2%} |", flush=True)


if __name__ == "__main__":
    main()
