"""Compares the speed of `hypnos data prepare` with that of bare sentencepiece on the same texts.

Both in one process on one core, in turns: JSON lines of about 3,000 characters are read, encoded
and written as shards; and the same texts are encoded in memory by the bare library. CPU times are
compared, which depend less on other work on the machine.

    python -m benchmarks.prepare    # a line, in half a minute
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import sentencepiece

from benchmarks.command import described
from pretrain.data.corpus import Corpus, PythonCorpus
from pretrain.data.prepare import prepare
from tokenizer.train import train

REPEATS, VOCABULARY, CHARACTERS, TEXTS = 5, 8192, 3000, 800


def make_texts() -> list[str]:
    """Python's own documentation and sources, cut into pieces and shuffled."""
    whole = [document.text for document in PythonCorpus()]
    texts = [t[i : i + CHARACTERS] for t in whole for i in range(0, len(t), CHARACTERS)]
    random.Random(0).shuffle(texts)
    return texts[:TEXTS]


def seconds(act: Callable[[], object]) -> float:
    """CPU time of one call."""
    begin = time.process_time()
    act()
    return time.process_time() - begin


def main() -> None:
    """Prints the line."""
    described(__doc__).parse_args()
    texts = make_texts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train(texts, folder / "tokenizer.model", vocab_size=VOCABULARY)
        bare = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        source = folder / "texts.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

        def write() -> None:
            prepare(Corpus([source]), tokenizer, folder / "out", workers=1)

        def encode() -> None:
            for text in texts:
                bare.encode(text)

        times: dict[str, list[float]] = {"prepare": [], "encode": []}
        for _ in range(REPEATS):
            times["encode"].append(seconds(encode))
            times["prepare"].append(seconds(write))
            shutil.rmtree(folder / "out")
        tokens = sum(len(bare.encode(text)) for text in texts)
    rates = {name: tokens / median(spent) for name, spent in times.items()}
    ratio = median(e / p for e, p in zip(times["encode"], times["prepare"], strict=True))
    print(
        f"{tokens:,} tokens: sentencepiece encodes {rates['encode']:,.0f} a second of one core, "
        f"prepare writes {rates['prepare']:,.0f}: {ratio:.0%}"
    )


if __name__ == "__main__":
    main()
