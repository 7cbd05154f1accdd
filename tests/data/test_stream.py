"""The stream: every token once, exact resume with any number of ranks, and document boundaries in
batches.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config.schema import CorpusConfig, DataConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.data.corpus import Corpus
from pretrain.data.heldout import heldout_batches
from pretrain.data.index import read_index
from pretrain.data.prepare import prepare
from pretrain.data.reader import Shards
from pretrain.data.stream import TextStream, difference
from pretrain.errors import UserError
from tests.data.texts import make_texts, write_texts
from tests.oracles import order
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


def lane_documents(
    batches: list[Batch], lane: int, eos: int, isolate: bool = True
) -> list[list[int]]:
    """The documents of one lane, reassembled from its rows; the last may be unfinished."""
    documents: list[list[int]] = [[]]
    for batch in batches:
        tokens, valid = batch.tokens[lane], batch.valid[lane]
        for token in tokens[valid].tolist():
            documents[-1].append(token)
            if token == eos:
                documents.append([])
        if isolate and batch.targets[lane, -1] == eos:  # predicted, not read: the document ends
            documents[-1].append(eos)
            documents.append([])
    return documents


@pytest.mark.parametrize("mode", MODES)
def test_every_token_of_every_document_once_per_epoch(
    config: DataConfig, texts: list[str], tokenizer: Tokenizer, mode: tuple[str, bool]
) -> None:
    """The first documents of all lanes, in draw order, are two whole epochs."""
    batches = take(open_stream(config, mode), 500)
    isolate = mode[0] == "isolate"
    lanes = [lane_documents(batches, lane, tokenizer.eos, isolate)[:-1] for lane in range(B)]
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
            if rest == [tokenizer.eos]:  # the row's last token predicts it; it is not read alone
                rest = []
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
    one = open_stream(config, mode)
    one.load_state_dict(joined([stream.state_dict() for stream in streams]))
    rest = [[stream.next() for _ in range(3)] for stream in streams]
    expected = take(one, 3)
    assert all(same(join([part[i] for part in rest]), expected[i]) for i in range(3))


def joined(states: list[dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint has from some ranks: all lanes."""
    assert len({json.dumps(without_lanes(state)) for state in states}) == 1
    return states[0] | {"lanes": torch.cat([state["lanes"] for state in states])}


def without_lanes(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "lanes"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("position", [0, 1, 7, 60])
@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_exact_at_any_position_and_rank_count(
    config: DataConfig, mode: tuple[str, bool], position: int, ranks: int
) -> None:
    states = []
    for rank in range(4):
        first = open_stream(config, mode, rank=rank, ranks=4)
        for _ in range(position):
            first.next()
        states.append(first.state_dict())  # the prefetch thread is ahead
        first.close()
    state = joined(states)
    assert state["steps"] == position
    expected = take(open_stream(config, mode), position + 10)[position:]
    parts = []
    for rank in range(ranks):
        stream = open_stream(config, mode, rank, ranks)
        for _ in range(3):  # a stream in use can also be set back
            stream.next()
        mine = state | {"lanes": state["lanes"].chunk(ranks)[rank]}
        stream.load_state_dict(mine)
        assert torch.equal(stream.state_dict()["lanes"], mine["lanes"])
        assert without_lanes(stream.state_dict()) == without_lanes(state)
        parts.append(take(stream, 10))
    assert all(same(join([part[i] for part in parts]), expected[i]) for i in range(10))


@pytest.mark.parametrize("mode", MODES)
def test_lanes_hold_the_documents_of_the_order(
    config: DataConfig, folder: Path, tokenizer: Tokenizer, mode: tuple[str, bool]
) -> None:
    """One draw at a time, independently: draw lane + k * B is the lane's k-th document."""
    corpora = [CorpusConfig(path=str(folder), weight=weight) for weight in (1.0, 3.0)]  # twice
    size = len(Shards(folder / "train", tokenizer))
    for rank in range(2):
        stream = open_stream(replace(config, train=corpora), mode, rank, 2)
        found: list[list[int]] = [[], []]
        for _ in range(40):
            stream.next()
            for row, spans in enumerate(stream.samples()(list)):
                assert len({span["corpus"] for span in spans}) == 1  # one folder, twice
                read = spans[:-1] if mode[0] == "stitch" else spans
                found[row] += [span["document"] for span in read if span["first"] == 0]
        stream.close()
        for row in range(2):
            lane = rank * 2 + row
            documents = found[row][:9]
            assert len(documents) > 4
            for k, document in enumerate(documents):
                assert document == order.drawn([size] * 2, [0.25, 0.75], 5, lane + k * B)[1]


def test_a_stream_that_was_closed_goes_on_after_the_last_batch_taken(config: DataConfig) -> None:
    expected, stream = take(open_stream(config), 4), open_stream(config)
    parts = take(stream, 2) + take(stream, 2)
    assert all(map(same, parts, expected))


def test_seed_changes_the_order(config: DataConfig) -> None:
    one, two = TextStream(config, L, B, seed=1).next(), TextStream(config, L, B, seed=2).next()
    assert not torch.equal(one.tokens, two.tokens)


def test_resume_with_other_weights_is_refused_by_name(config: DataConfig, folder: Path) -> None:
    """`pretrain.config.resume` compares settings; only the stream knows its data."""
    state = open_stream(config).state_dict()
    other = replace(config, train=[CorpusConfig(path=str(folder), weight=2.0)])
    said = r"data\.train .*\(weights \[2\.0\] instead of \[1\.0\]\).* set it back, or start"
    with pytest.raises(UserError, match=said):
        open_stream(other).load_state_dict(state)


def test_which_corpus_of_a_resumed_run_is_another_is_said() -> None:
    before = [["a", 1.0], ["b", 2.0]]
    for now, said in (
        ([["b", 2.0], ["a", 1.0]], "the corpora in another order"),
        ([["a", 1.0], ["c", 2.0]], "other shards in data.train[1]"),
        ([["a", 1.0]], "corpora: 1 instead of 2"),
    ):
        assert difference(before, now) == said


@pytest.mark.parametrize("mode", [("isolate", True), ("stitch", True)])
def test_corpora_are_mixed_by_their_share_of_tokens(
    config: DataConfig, tokenizer: Tokenizer, tmp_path: Path, mode: tuple[str, bool]
) -> None:
    """Short and long documents of equal weight: as many tokens of each, as announced."""
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
    stream = open_stream(replace(config, train=corpora), mode)
    read, documents = samples_of(stream, 1500, stitched=mode[0] == "stitch")
    assert read[corpora[0].path] / read.total() == pytest.approx(0.5, rel=0.03)  # 250 long ones

    said = stream.describe(1500)
    shares = [
        float(re.search(r": about (\d+) % of the tokens \(50 % asked", line)[1]) for line in said
    ]  # type: ignore[index]
    assert shares == pytest.approx([50, 50], rel=0.005)
    for corpus, line in zip(corpora, said, strict=True):
        count = int(re.search(r"([\d,]+) documents", line)[1].replace(",", ""))  # type: ignore[index]
        assert count == pytest.approx(documents[corpus.path], rel=0.15)  # by mean lengths
        assert f"{count / 50:.2f} epochs" in line


def samples_of(stream: TextStream, steps: int, stitched: bool) -> tuple[Counter[str], Counter[str]]:
    """Tokens and documents read in `steps` steps, by corpus."""
    read, documents = Counter[str](), Counter[str]()
    for _ in range(steps):
        stream.next()
        for row in stream.samples()(list):
            for span in row[:-1] if stitched else row:
                read[span["corpus"]] += span["tokens"]
                documents[span["corpus"]] += span["first"] == 0
    stream.close()
    return read, documents


@pytest.mark.parametrize("mode", MODES)
def test_of_one_corpus_it_is_said_how_often_it_is_read(
    config: DataConfig, folder: Path, mode: tuple[str, bool]
) -> None:
    stream = open_stream(config, mode)
    [line] = stream.describe(1500)
    _, documents = samples_of(stream, 1500, stitched=mode[0] == "stitch")
    tokens = read_index(folder / "train").tokens
    said = re.fullmatch(
        rf"{folder}: 41 documents, {tokens:,} tokens, about ([\d.]+) epochs in 1,500 steps", line
    )
    assert said and float(said[1]) == pytest.approx(documents.total() / 41, rel=0.05)


def made_of(config: DataConfig, tokenizer: Tokenizer, root: Path, texts: list[str]) -> DataConfig:
    """The same configuration with a corpus of these texts."""
    prepare(Corpus([write_texts(root / "in", texts)]), tokenizer, root / "out", holdout=0)
    return replace(config, train=[CorpusConfig(path=str(root / "out"))])


def test_documents_that_are_fewer_than_rows_are_told(
    config: DataConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    one = made_of(config, tokenizer, tmp_path / "one", ["".join(make_texts(40, seed=3))])
    [batch] = take(open_stream(one), 1)
    assert all(torch.equal(row, batch.tokens[0]) for row in batch.tokens)
    for documents in (1, B - 1, B):
        few = made_of(config, tokenizer, tmp_path / str(documents), make_texts(documents, seed=3))
        said = open_stream(few).describe(100)[1:]
        if documents == B:
            assert said == []
            continue
        [line] = said
        counted = "1 document" if documents == 1 else f"{documents} documents"
        told = f"{few.train[0].path}: only {counted} for the {B} rows of a batch, so some rows "
        assert line.startswith(f"{told}will read the same text. Give more, shorter documents: ")
        assert r"`hypnos data prepare ... --separator '\n\n'`" in line


def test_a_document_that_no_row_reads_to_its_end_is_told(
    config: DataConfig, folder: Path, tokenizer: Tokenizer
) -> None:
    longest, row = int(Shards(folder / "train", tokenizer).lengths.max()), 3 * L
    stream = open_stream(config)
    [line] = stream.describe((longest - 1) // row)[1:]
    assert f"{folder}: its longest document has {longest:,} tokens, but a row reads " in line
    assert "the rest is never read, and fractions and epochs are off. Give more, shorter" in line
    assert stream.describe(-(-longest // row))[1:] == []
    stream.close()


def test_text_that_is_held_out_and_trained_on_is_named(config: DataConfig, prepared: Path) -> None:
    trained, apart = str(prepared / "train"), str(prepared / "heldout")
    twice = replace(config, train=[CorpusConfig(path=trained)], heldout=trained)
    line, *others = open_stream(twice).describe(1000)
    assert line.startswith(f"{trained} is also data.heldout, so ")
    assert open_stream(replace(twice, heldout=apart)).describe(1000) == others


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
    for tar in (copy / "train").glob("*.tar"):  # the same size, but other bytes
        tar.write_bytes(bytes(tar.stat().st_size))
    for _ in range(3):
        with pytest.raises(UserError, match=r"shard-00000\d\.tar: document \d{9} is damaged"):
            stream.next()
    stream.close()


def test_wait_is_counted(config: DataConfig) -> None:
    stream = open_stream(config)
    assert stream.wait_seconds == 0
    stream.next()
    assert stream.wait_seconds > 0  # the first batch is not ready yet
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
    batches = heldout_batches(heldout, tokenizer, window=L, windows=3, batch=B, n=10)
    assert len(batches) == 10
    shards = Shards(heldout / "heldout", tokenizer)
    streams = [[*shards.document(i).tolist(), tokenizer.eos] for i in range(len(shards))]
    width = 3 * L
    whole = join(batches)
    found = [
        [*r, t[-1]] for r, t in zip(whole.tokens.tolist(), whole.targets.tolist(), strict=True)
    ]
    assert [row[1:] for row in found] == whole.targets.tolist()
    taken, order = 0, list[int]()  # by hand: stretches with a target at every position
    for turn in range(100):
        of_turn = {}
        for i, stream in enumerate(streams):
            stretch = stream[turn * width : (turn + 1) * width + 1]
            if len(stretch) == width + 1:
                of_turn[tuple(stretch)] = i
        rows = [of_turn.get(tuple(row), -1) for row in found[taken : taken + len(of_turn)]]
        assert -1 not in rows and len({*rows}) == len(rows)
        if turn == 0:
            order = rows
            assert len(order) == len(of_turn) and order != sorted(order)  # not the corpus's order
        else:
            assert rows == [i for i in order if i in of_turn.values()][: len(rows)]
        taken += len(rows)
    assert taken == 10 * B
    assert whole.valid.all()
    assert whole.starts.tolist() == [[True, False, False]] * (10 * B)
    assert not whole.carries.any()


def test_heldout_rows_are_of_all_of_the_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Also if there are fewer rows than documents in the corpus's first half."""
    texts = [*make_texts(60, seed=1, longest=20), *make_texts(60, seed=2, longest=20)]
    source = write_texts(tmp_path / "texts", texts)
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)
    batches = heldout_batches(tmp_path / "out/train", tokenizer, window=L, windows=1, batch=8, n=2)
    shards = Shards(tmp_path / "out/train", tokenizer)
    beginnings = [shards.document(i).tolist()[:L] for i in range(len(shards))]
    where = [beginnings.index(row) for row in join(batches).tokens.tolist()]
    assert 4 <= sum(i < len(shards) // 2 for i in where) <= 12


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Documents, some of which fill a row of 24 tokens; most do not."""
    root = tmp_path_factory.mktemp("short")
    source = write_texts(root / "texts", make_texts(60, seed=7, longest=12))
    prepare(Corpus([source]), tokenizer, root / "out", holdout=0.5)
    return root / "out"


def test_heldout_documents_that_fill_no_row_are_padded(short: Path, tokenizer: Tokenizer) -> None:
    """Every token of every held-out document occurs once, and predicts its document's next."""
    batches = heldout_batches(short, tokenizer, window=L, windows=3, batch=B, n=1000)
    shards = Shards(short / "heldout", tokenizer)
    streams = [[*shards.document(i).tolist(), tokenizer.eos] for i in range(len(shards))]
    full = sum((len(stream) - 1) // (3 * L) for stream in streams)
    assert 0 < full < len(streams) / 2
    whole = join(batches)
    assert whole.tokens.shape[1] == 3 * L and len(whole.tokens) % B == 0
    assert whole.valid[:full].all() and not whole.valid[full:].all()
    pieces = []  # as read: from one window in which a document begins to the next
    for row in range(len(whole.tokens)):
        for w in range(3):
            here = slice(w * L, (w + 1) * L)
            valid = whole.valid[row, here]
            if whole.starts[row, w]:
                pieces.append(([], []))
            assert (whole.tokens[row, here][~valid] == tokenizer.pad).all()
            assert (whole.targets[row, here][~valid] == IGNORE).all()
            if valid.any():
                pieces[-1][0].extend(whole.tokens[row, here][valid].tolist())
                pieces[-1][1].extend(whole.targets[row, here][valid].tolist())
    expected = []
    for stream in streams:
        for first in range(0, len(stream) - 1, 3 * L):  # an EOS is not read alone
            read, after = stream[first : first + 3 * L], stream[first + 1 : first + 3 * L + 1]
            expected.append((read, after + [IGNORE] * (len(read) - len(after))))
    assert sorted(pieces) == sorted(expected)
    assert not whole.carries.any()
    few = heldout_batches(short, tokenizer, window=L, windows=3, batch=B, n=2)
    assert all(map(same, few, batches[:2]))


def test_one_heldout_document_fills_up_its_batch_with_pad(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = write_texts(tmp_path / "texts", ["wake"])
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)
    batches = heldout_batches(
        tmp_path / "out" / "train", tokenizer, window=L, windows=3, batch=B, n=5
    )
    assert len(batches) == 1 and batches[0].tokens.shape == (B, 3 * L)
    assert batches[0].valid.sum() == len(tokenizer.encode("wake")) + 1
    assert (batches[0].targets != IGNORE).any(dim=1).tolist() == [True, False, False, False]


def by_tokens(tokenizer: Tokenizer, counts: list[int]) -> list[str]:
    """Distinct texts with these numbers of tokens."""
    texts = []
    for i, count in enumerate(counts):
        marks = [chr(0x4E00 + i), *["\u00e9"] * count]  # three bytes, then letters of one or two
        text = marks[0] if count >= len(tokenizer.encode(marks[0])) else "0123456789"[i % 10]
        while len(tokenizer.encode(text)) < count:
            text += "\x01"  # a byte, and so a token, each
        assert len(tokenizer.encode(text)) == count
        texts.append(text)
    return texts


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "counts",
    [[8] * 9, [24] * 9, [1] * 9, [1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 47, 48, 49, 200, 240]],
    ids=["a window", "a row", "a token", "any"],
)
def test_every_row_has_a_token_to_predict(
    config: DataConfig,
    tokenizer: Tokenizer,
    tmp_path: Path,
    counts: list[int],
    mode: tuple[str, bool],
    windows: int,
) -> None:
    """Whatever the documents' lengths; and all their tokens are predicted, EOS included."""
    texts = by_tokens(tokenizer, counts)
    source = write_texts(tmp_path / "texts", texts)
    prepare(Corpus([source]), tokenizer, tmp_path / "out", holdout=0)
    corpus = [CorpusConfig(path=str(tmp_path / "out"))]
    stream = open_stream(replace(config, train=corpus, windows=windows), mode)
    batches = take(stream, 60)
    for batch in batches:
        assert (batch.targets != IGNORE).any(dim=1).all()
    if mode[0] == "isolate":
        whole = {(*tokenizer.encode(text)[1:], tokenizer.eos) for text in texts}
        for lane in range(B):
            targets = torch.cat([batch.targets[lane] for batch in batches])
            said = targets[targets != IGNORE].tolist()
            while tokenizer.eos in said:
                end = said.index(tokenizer.eos) + 1
                assert tuple(said[:end]) in whole
                said = said[end:]


def test_many_corpora_of_many_shards_need_few_open_files(
    config: DataConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """40 more files may be opened; 6 corpora have 20 shards each."""
    corpora = []
    for c in range(6):
        source = write_texts(tmp_path / f"texts{c}", make_texts(20, seed=c, longest=9))
        prepare(
            Corpus([source]), tokenizer, tmp_path / f"{c}", holdout=0, shard_tokens=1, workers=1
        )
        assert len(list((tmp_path / f"{c}" / "train").glob("*.tar"))) == 20
        corpora.append(CorpusConfig(path=str(tmp_path / f"{c}")))
    before, limits = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, limits[1]))
    try:
        stream = open_stream(replace(config, train=corpora))
        for _ in range(60):
            stream.next()
        assert len(os.listdir("/proc/self/fd")) <= before + 20
        stream.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(os.listdir("/proc/self/fd")) == before
