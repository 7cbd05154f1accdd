"""Time to first batch, and memory, of the stream of a huge corpus on one rank.

The corpus is 20,000 shards with a billion documents whose tokens are all 0: sparse tar files, and a
real documents.idx of 16 GB.

    python -m benchmarks.startup --documents 1e9    # two lines; minutes, most to write the index
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from benchmarks.command import described
from benchmarks.stream import WINDOW, WINDOWS
from pretrain.config.schema import CorpusConfig, DataConfig
from pretrain.data.index import DOCUMENT, DOCUMENTS, FORMAT, Index, Shard, shard_name
from pretrain.data.stream import TextStream
from tokenizer.encode import Tokenizer
from tokenizer.train import train

SHARDS, ROWS = 20_000, 16


def make_corpus(folder: Path, documents: int) -> None:
    """folder/tokenizer.model, and folder/train, whose shards are all alike."""
    words = [f"{a}{b}{c}" for a in "wsz" for b in "aeiou" for c in "kplmn"]
    tokenizer = train([" ".join(words)] * 9, folder / "tokenizer.model", vocab_size=320)
    split, each = folder / "train", documents // SHARDS
    split.mkdir()
    tokens = np.random.default_rng(0).lognormal(6, 1.2, each).clip(20, 8000).astype(np.uint32)
    records = np.empty(each, DOCUMENT)
    records["tokens"], records["offset"] = tokens, 2 * (np.cumsum(tokens, dtype=np.uint64) - tokens)
    records["crc32"] = [zlib.crc32(bytes(2 * int(n))) for n in tokens]
    digest, content, size = hashlib.sha256(), records.tobytes(), 2 * int(tokens.sum())
    shards = []
    with (split / DOCUMENTS).open("wb") as file:
        for n in range(SHARDS):
            digest.update(content)
            file.write(content)
            with (split / shard_name(n)).open("wb") as tar:
                tar.truncate(size)
            shards.append(Shard(shard_name(n), size, each, size // 2, "0" * 64))
    index = Index(
        FORMAT, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos, tokenizer.pad, "u16",
        each * SHARDS, size // 2 * SHARDS, 1, digest.hexdigest(), shards,
    )  # fmt: skip
    index.write(split)


def measure(folder: Path, checks: bool) -> None:
    """Prints the time and memory that a rank needs up to its first batch."""
    corpus = [CorpusConfig(path=str(folder))]
    config = DataConfig(tokenizer=str(folder / "tokenizer.model"), train=corpus, windows=WINDOWS)
    Tokenizer.load(config.tokenizer)
    before, begin = _resident(), time.perf_counter()
    stream = TextStream(config, WINDOW, ROWS * 64, seed=0, rank=5, ranks=64, checks=checks)
    opened = time.perf_counter() - begin
    stream.describe(1000)
    stream.next()
    first = time.perf_counter() - begin
    memory = _resident() - before
    which = "the rank of each host that checks files" if checks else "every other rank"
    print(f"| {which} | {opened:.2f} | {first:.2f} | {memory:.0f} |", flush=True)
    stream.close()


def _resident() -> float:
    """Peak resident MiB so far, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints the table."""
    parser = described(__doc__)
    parser.add_argument("--documents", type=float, default=1e9)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "CHECKS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(Path(args.measure[0]), bool(int(args.measure[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder), int(args.documents))
        print(
            "| | s to open the corpus | s to the first batch | MiB |\n|---|---|---|---|", flush=True
        )
        for checks in ("0", "1"):  # each in a process of its own
            command = [sys.executable, "-m", "benchmarks.startup", "--measure", folder, checks]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
