"""The stream: every token once, exact resume at any rank count, and what a batch says about
documents.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pretrain.config.schema import CorpusConfig, DataConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.data.corpus import Corpus
from pretrain.data.reader import Shards
from pretrain.data.shards import prepare
from pretrain.data.stream import TextStream, heldout_batches
from pretrain.errors import UserError
from tests.data.texts import make_texts, write_texts
from tokenizer.encode import Tokenizer

L, B = 8, 4
MODES = [("isolate", True), ("isolate", False), ("stitch", True)]


def open_stream(
    config: DataConfig, mode: tuple[str, bool] = ("isolate", True), rank: int = 0, ranks: int = 1
) -> TextStream:
    documents, carry = mode
    return TextStream(
        replace(config, documents=documents, carry=carry), L, B, seed=5, rank=rank, ranks=ranks
    )


def take(stream: TextStream, steps: int) -> list[Batch]:
    batches = [stream.next() for _ in range(steps)]
    stream.close()
    return batches


def same(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(x, y) and x.dtype == y.dtype
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def join(parts: list[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def lane_documents(batches: list[Batch], lane: int, eos: int) -> list[list[int]]:
    """The documents of one lane, put together again from its rows; the last may be unfinished."""
    documents: list[list[int]] = [[]]
    for batch in batches:
        tokens, valid = batch.tokens[lane], batch.valid[lane]
        for token in tokens[valid].tolist():
            documents[-1].append(token)
            if token == eos:
                documents.append([])
    return documents


@pytest.mark.parametrize("mode", MODES)
def test_every_token_of_every_document_once_per_epoch(
    config: DataConfig, texts: list[str], tokenizer: Tokenizer, mode: tuple[str, bool]
) -> None:
    """The first documents of all lanes, in the order of the draws, are two whole epochs."""
    batches = take(open_stream(config, mode), 500)
    lanes = [lane_documents(batches, lane, tokenizer.eos)[:-1] for lane in range(B)]
    drawn = [tuple(lanes[j % B][j // B]) for j in range(2 * len(texts))]
    expected = Counter((*tokenizer.encode(text), tokenizer.eos) for text in texts)
    assert Counter(drawn[: len(texts)]) == expected
    assert Counter(drawn[len(texts) :]) == expected
    assert drawn[: len(texts)] != drawn[len(texts) :]


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_types(config: DataConfig, mode: tuple[str, bool]) -> None:
    batch = open_stream(config, mode).next()
    assert batch.tokens.shape == batch.targets.shape == batch.valid.shape == (B, 3 * L)
    assert batch.starts.shape == (B, 3)
    assert batch.carries.shape == (B,)
    assert (batch.tokens.dtype, batch.targets.dtype) == (torch.int64, torch.int64)
    assert {batch.valid.dtype, batch.starts.dtype, batch.carries.dtype} == {torch.bool}


@pytest.mark.parametrize("carry", [True, False])
def test_isolated_rows_follow_the_lane_token_by_token(
    config: DataConfig, texts: list[str], tokenizer: Tokenizer, carry: bool
) -> None:
    """An independent walk over each lane's documents, one token at a time."""
    batches = take(open_stream(config, ("isolate", carry)), 300)
    carried = 0
    for lane in range(B):
        documents = iter(lane_documents(batches, lane, tokenizer.eos))
        rest: list[int] = []  # of the current document
        for batch, following in pairwise(batches):
            for w in range(3):
                begins = not rest
                rest = rest or next(documents)
                assert bool(batch.starts[lane, w]) == (begins or (w == 0 and not carry))
                here, rest = rest[:L], rest[L:]
                after = [*here[1:], *(rest[:1] or [IGNORE])]
                padding = L - len(here)
                columns = slice(w * L, (w + 1) * L)
                assert batch.tokens[lane, columns].tolist() == here + [tokenizer.pad] * padding
                assert batch.targets[lane, columns].tolist() == after + [IGNORE] * padding
                assert batch.valid[lane, columns].tolist() == [True] * len(here) + [False] * padding
            assert bool(batch.carries[lane]) == (carry and bool(rest))
            carried += bool(rest)
            if carry:
                assert bool(batch.carries[lane]) == (not following.starts[lane, 0])
    assert carried > 100


def test_stitched_rows_are_one_stream_of_all_documents(
    config: DataConfig, tokenizer: Tokenizer
) -> None:
    batches = take(open_stream(config, ("stitch", True)), 100)
    tokens = torch.cat([batch.tokens for batch in batches], dim=1)  # [B, steps * T]
    targets = torch.cat([batch.targets for batch in batches], dim=1)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    for batch in batches:
        assert batch.valid.all()
        assert batch.starts.tolist() == [[True, False, False]] * B
        assert not batch.carries.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_rows_do_not_depend_on_the_number_of_ranks(
    config: DataConfig, mode: tuple[str, bool], ranks: int
) -> None:
    whole = take(open_stream(config, mode), 30)
    streams = [open_stream(config, mode, rank, ranks) for rank in range(ranks)]
    parts = [[stream.next() for _ in range(30)] for stream in streams]
    assert all(same(join([part[i] for part in parts]), whole[i]) for i in range(30))
    assert all(stream.state_dict() == streams[0].state_dict() for stream in streams)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("position", [0, 1, 7, 60])
@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_exact_at_any_position_and_rank_count(
    config: DataConfig, mode: tuple[str, bool], position: int, ranks: int
) -> None:
    first = open_stream(config, mode, rank=1, ranks=4)
    for _ in range(position):
        first.next()
    state = json.loads(json.dumps(first.state_dict()))  # while the prefetch thread is ahead
    first.close()
    assert state["steps"] == position
    expected = take(open_stream(config, mode), position + 10)[position:]
    parts = []
    for rank in range(ranks):
        stream = open_stream(config, mode, rank, ranks)
        for _ in range(3):  # a stream in use is set back too
            stream.next()
        stream.load_state_dict(state)
        assert stream.state_dict() == state
        parts.append(take(stream, 10))
    assert all(same(join([part[i] for part in parts]), expected[i]) for i in range(10))


def test_a_stream_that_was_closed_goes_on_after_the_last_batch_taken(config: DataConfig) -> None:
    expected, stream = take(open_stream(config), 4), open_stream(config)
    parts = take(stream, 2) + take(stream, 2)
    assert all(map(same, parts, expected))


def test_seed_changes_the_order(config: DataConfig) -> None:
    one, two = TextStream(config, L, B, seed=1).next(), TextStream(config, L, B, seed=2).next()
    assert not torch.equal(one.tokens, two.tokens)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"windows": 4}, "data.windows"),
        ({"documents": "stitch"}, "data.documents"),
        ({"carry": False}, "data.carry"),
        ({"train": "weight"}, "data.train"),
    ],
)
def test_resume_with_other_settings_is_refused_by_name(
    config: DataConfig, folder: Path, change: dict[str, object], name: str
) -> None:
    state = open_stream(config).state_dict()
    if "train" in change:
        change = {"train": [CorpusConfig(path=str(folder), weight=2.0)]}
    stream = TextStream(replace(config, **change), L, B, seed=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=name) as error:
        stream.load_state_dict(state)
    assert "set it back, or begin another run" in str(error.value)


def test_corpora_are_mixed_by_their_share_of_tokens(
    config: DataConfig, model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """One corpus of short and one of long documents, equal weights: as many tokens of each."""
    for name, words, repeat in (("short", "wake", 3), ("long", "sleep", 60)):
        texts = [f"{words} {i}\n" * repeat for i in range(50)]
        prepare(
            Corpus([write_texts(tmp_path / name, texts)]),
            tokenizer,
            tmp_path / f"{name}-out",
            holdout=0,
        )
    corpora = [
        CorpusConfig(path=str(tmp_path / f"{name}-out"), weight=1.0) for name in ("short", "long")
    ]
    batches = take(open_stream(replace(config, train=corpora), ("stitch", True)), 1000)
    text = tokenizer.decode(torch.cat([batch.tokens.flatten() for batch in batches]).tolist())
    cost = {word: len(tokenizer.encode(f"{word} 1\n")) for word in ("wake", "sleep")}
    tokens = {word: text.count(word) * cost[word] for word in cost}
    assert tokens["wake"] / sum(tokens.values()) == pytest.approx(0.5, abs=0.05)


def test_other_tokenizer_and_folder_without_shards_are_refused(
    config: DataConfig, other_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="made with another tokenizer"):
        open_stream(replace(config, tokenizer=str(other_model)))
    with pytest.raises(UserError, match="holds no train shards"):
        open_stream(replace(config, train=[CorpusConfig(path=str(tmp_path))]))


def test_damage_found_by_the_thread_reaches_the_trainer_every_time(
    config: DataConfig, folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    stream = open_stream(replace(config, train=[CorpusConfig(path=str(copy))]))
    for tar in (copy / "train").glob("*.tar"):  # as large as before, but other bytes
        tar.write_bytes(bytes(tar.stat().st_size))
    for _ in range(3):
        with pytest.raises(UserError, match=r"shard-00000\d\.tar: document \d{9} is damaged"):
            stream.next()
    stream.close()


def test_wait_is_counted(config: DataConfig) -> None:
    stream = open_stream(config)
    assert stream.wait_seconds == 0
    stream.next()
    assert stream.wait_seconds > 0  # the first batch is not there yet
    stream.close()


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    root = tmp_path_factory.mktemp("heldout")
    source = write_texts(root / "texts", make_texts(60, seed=6, longest=150))
    prepare(Corpus([source]), tokenizer, root / "out", holdout=0.5)
    return root / "out"


def test_heldout_rows_are_stretches_of_documents_first_beginnings_then_the_rest(
    heldout: Path, tokenizer: Tokenizer
) -> None:
    batches = heldout_batches(heldout, tokenizer, L, 3, batch=B, n=10)
    assert len(batches) == 10
    shards = Shards(heldout / "heldout", tokenizer)
    streams = [[*shards.document(i).tolist(), tokenizer.eos] for i in range(len(shards))]
    width = 3 * L
    rows = []  # the same by hand: stretches with a target at every place
    for turn in range(100):
        for stream in streams:
            stretch = stream[turn * width : (turn + 1) * width + 1]
            if len(stretch) == width + 1:
                rows.append(stretch)
    whole = join(batches)
    assert whole.tokens.tolist() == [row[:-1] for row in rows[: 10 * B]]
    assert whole.targets.tolist() == [row[1:] for row in rows[: 10 * B]]
    assert whole.valid.all()
    assert whole.starts.tolist() == [[True, False, False]] * (10 * B)
    assert not whole.carries.any()


def test_too_few_heldout_documents_say_how_many_there_are(
    heldout: Path, tokenizer: Tokenizer
) -> None:
    with pytest.raises(
        UserError, match=r"fill \d+ sequences of 24 tokens, 4000 are asked for; lower"
    ):
        heldout_batches(heldout, tokenizer, L, 3, batch=B, n=1000)
