"""Text, JSON lines, Parquet and stories that are damaged or malicious."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.config.schema import QuestionsConfig, StoriesConfig
from pretrain.data.corpus import Corpus
from pretrain.data.json_rows import MAX_LINE
from pretrain.data.reader import Shards
from pretrain.tasks.questions import Questions
from pretrain.tasks.stories import Stories
from tests.fuzz.harness import bounded, damaged, fuzz, hypnos, refusal, tree
from tests.marks import slow
from tokenizer.encode import Tokenizer

TEXTS = ["one\r\ntwo\n", "  drei  ", "vier\n" * 50, "é😀\u2581 last"]
LINES = b"".join(json.dumps({"text": text, "id": 1}).encode() + b"\n" for text in TEXTS)
STORIES = b"".join(
    json.dumps(
        {
            "question": f"How many {n}?",
            "problem": f"{n} and {n}.",
            "solution": f"Answer: {n}.",
            "op": n % 2,
        }
    ).encode()
    + b"\n"
    for n in range(2, 10)
)
# Lines that a JSON parser, or the code that uses its result, may fail on.
HARD = [
    b"[" * 100_000,
    b'{"text": ' * 100_000,
    b'{"text": "x", "n": ' + b"9" * 5000 + b"}",
    b'{"text": "x", "n": 1e99999, "m": NaN, "o": -Infinity}',
    b'{"text": "\\ud800"}',
    b'{"text": "\xed\xa0\x80"}',
    b'{"\\ud800": 1, "text": "x"}',
    b'{"text": "\\u0000"}',
    b'{"text": "a", "text": 3}',
    b'{"text": null}',
    b'{"text": {}}',
    b"\xef\xbb\xbf{}",
    '{"text": "x"}'.encode("utf-16"),
    b"\x00",
    b"\x85",
    b'"' + b"x" * 1_000_000,
    b'{"' + b"k" * 1_000_000 + b'": "x"}',
]
LINE = st.sampled_from(HARD) | damaged(LINES) | st.binary(max_size=60)


def read(path: Path) -> str | None:
    """The error of reading a file's documents, if any."""
    told = refusal(lambda: [document.text.encode() for document in Corpus([path])])
    assert told is None or str(path) in told
    return told


@pytest.mark.parametrize("line", HARD, ids=range(len(HARD)))
def test_hard_lines(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(LINES + line + b"\n" + LINES)
    told = read(path)
    assert told is None or told.startswith(f"{path}, line 5: ")


@fuzz(150)
@given(content=LINE)
def test_json_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    read(path)


def parquet(compression: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(
        pa.table({"text": TEXTS * 3, "id": list(range(12))}), file, compression=compression
    )
    return file.getvalue()


@fuzz(150)
@given(content=st.sampled_from(["none", "snappy", "zstd"]).map(parquet).flatmap(damaged))
def test_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.parquet"
    path.write_bytes(content)
    read(path)


CHECKED = {
    "texts.jsonl.gz": gzip.compress(LINES, mtime=0),
    "texts.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(LINES),
}


@fuzz(100)
@given(data=st.data(), name=st.sampled_from(sorted(CHECKED)))
def test_what_has_a_checksum_is_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,
    tokenizer: Tokenizer,
    data: st.DataObject,
    name: str,
) -> None:
    """From a compressed file, `data prepare` writes the original documents, or nothing at all."""
    root = tmp_path_factory.mktemp("prepare")
    path, out = root / name, root / "out"
    path.write_bytes(data.draw(damaged(CHECKED[name])))
    before = tree(root)
    outcome = hypnos("data", "prepare", path, "--holdout", 0, "--tokenizer", model, "--out", out)
    if outcome.status:
        assert str(path) in outcome.err.splitlines()[-1]
        assert tree(root) == before
    else:
        shards = Shards(out / "train", tokenizer)
        written = [tokenizer.decode(shards.document(n).tolist()) for n in range(len(shards))]
        # whole frames may be missing, but not parts of them
        assert written in (TEXTS, TEXTS[: len(written)])
        shards.close()


@pytest.mark.parametrize("name", ["bomb.jsonl", "bomb.jsonl.gz", slow("bomb.jsonl.zst")])
def test_a_line_that_fills_the_memory(tmp_path: Path, name: str) -> None:
    """Gigabytes of the same byte, which compress to kilobytes."""
    path, size = tmp_path / name, 16 * MAX_LINE
    if name.endswith("zst"):
        block = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        with path.open("wb") as file:
            for _ in range(size >> 24):
                file.write(block.compress(bytes(1 << 24)))
            file.write(block.flush())
    elif name.endswith("gz"):  # gzip members one after the other
        path.write_bytes(gzip.compress(bytes(1 << 24)) * (size >> 24))
    else:
        path.touch()
        os.truncate(path, size)
    told = read(path)
    assert told and told.startswith(f"{path}, line 1: more than {MAX_LINE >> 20} MiB; split the")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    with bounded():
        corpus = Corpus([tmp_path], suffixes=(".txt", ".jsonl"), skip_bad=True)
        assert [document.text for document in corpus] == ["text"]
    (line,) = corpus.tally.lines()[1:]
    assert line.startswith("left out 3 files: a pipe or a device (the first: ")


ASKED = {"context": "Two and two.", "question": "How many?", "answer": "4"}
QUESTIONS = b"".join(
    json.dumps(ASKED | {"context": f"{i} and 2."}).encode() + b"\n" for i in range(9)
)


@fuzz(120)
@given(
    content=damaged(QUESTIONS) | st.sampled_from(HARD).map(lambda line: QUESTIONS + line + b"\n")
)
@example(content=QUESTIONS + json.dumps(ASKED | {"answer": "\ud800"}).encode())
@example(content=QUESTIONS + json.dumps(ASKED | {"context": ""}).encode())
@example(content=b"\n")
@example(content=b"")
def test_questions(tmp_path: Path, tokenizer: Tokenizer, content: bytes) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    config = QuestionsConfig(path=str(path), context=64, answer=32)
    told = refusal(lambda: Questions(config, 32, tokenizer).sample(0, 0, 4))
    assert told is None or told.startswith(str(path))


STORY = {"question": "How many?", "problem": "2 and 2.", "solution": "Answer: 4.", "op": 2}


@fuzz(120)
@given(content=damaged(STORIES) | st.sampled_from(HARD).map(lambda line: STORIES + line + b"\n"))
@example(content=STORIES + json.dumps(STORY | {"question": "\ud800"}).encode())
@example(content=STORIES + json.dumps(STORY | {"op": 10**4000}).encode())
@example(content=STORIES + json.dumps(STORY | {"solution": f"Answer: {'9' * 5000}."}).encode())
@example(content=b"")
def test_stories(tmp_path: Path, tokenizer: Tokenizer, content: bytes) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_bytes(content)
    config = StoriesConfig(path=str(path), max_ops=10, context=64)
    told = refusal(lambda: Stories(config, 32, tokenizer).sample(0, 0, 4))
    assert told is None or str(path) in told or "sleep.window" in told or "stories." in told
