"""Questions from a file: the layout, against the text; each once an epoch; what is held out."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from pretrain.config.schema import QuestionsConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks.questions import Questions
from pretrain.tasks.source import TaskSource
from tokenizer.encode import Tokenizer

L = 16


def record(i: int) -> dict[str, object]:
    """Two questions about each context; contexts of different lengths."""
    about = i // 2
    return {
        "context": f"Room {about} has {'many ' * (about % 5)}doors.",
        "question": f"Who asks in {i}?",
        "answer": f" {i * 7}",
        "kind": "odd" if i % 2 else "even",
    }


def write(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "q.jsonl", [record(i) for i in range(40)])


def make(path: str, tokenizer: Tokenizer, **settings: object) -> Questions:
    config = QuestionsConfig(path=path, context=4 * L, answer=2 * L, **settings)  # type: ignore[arg-type]
    return Questions(config, L, tokenizer)


def told(batch: Batch, row: int, tokenizer: Tokenizer) -> tuple[str, str, str]:
    """(context, question, answer) as a row tells them."""
    tokens, targets, valid = batch.tokens[row], batch.targets[row], batch.valid[row]
    scored = (targets != IGNORE).nonzero()[:, 0]
    first = int(scored[0]) + 1  # of the answer
    assert torch.equal(tokens[scored[1:]], targets[scored[:-1]])  # targets are the next tokens
    assert targets[scored[-1]] == tokenizer.eos and not valid[int(scored[-1]) + 1 :].any()
    assert (tokens[~valid] == tokenizer.pad).all() and valid[4 * L - 1]  # context ends its window
    context, question = tokens[: 4 * L][valid[: 4 * L]], tokens[4 * L : first]
    return (
        tokenizer.decode(context.tolist()), tokenizer.decode(question.tolist()),
        tokenizer.decode(targets[scored].tolist()),
    )  # fmt: skip


def test_every_question_once_an_epoch_in_another_order(file: str, tokenizer: Tokenizer) -> None:
    task = make(file, tokenizer, heldout=file)
    expected = Counter(
        tuple(record(i)[k] for k in ("context", "question", "answer")) for i in range(40)
    )
    epochs = []
    for epoch in range(2):
        batch = task.sample(3, 40 * epoch, 40)
        epochs.append([told(batch, row, tokenizer) for row in range(40)])
        assert Counter(epochs[-1]) == expected
        assert batch.starts[:, 0].all() and batch.starts.sum() == 40
    assert epochs[0] != epochs[1]
    whole, parts = task.sample(3, 30, 20), [task.sample(3, 30, 7), task.sample(3, 37, 13)]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert not torch.equal(whole.tokens, task.sample(4, 30, 20).tokens)


def test_contexts_are_held_out_whole(file: str, tokenizer: Tokenizer) -> None:
    """Two of twenty, with both questions of each; a shuffled file gives the same ones."""
    task = make(file, tokenizer)
    contexts = [
        {tokenizer.decode(q.context.tolist()) for q in part} for part in (task.train, task.held_out)
    ]
    assert (len(task.train), len(task.held_out)) == (36, 4)
    assert len(contexts[1]) == 2 and not contexts[0] & contexts[1]
    shuffled = write(Path(file).with_name("s.jsonl"), [record(i) for i in reversed(range(40))])
    assert make(file, tokenizer).train[0] is task.train[0]  # a file is encoded once
    again = make(shuffled, tokenizer)
    assert {tokenizer.decode(q.context.tolist()) for q in again.held_out} == contexts[1]
    state = TaskSource(task, 8, seed=0).state_dict()
    with pytest.raises(UserError, match=r"is '\.\.\. file=\w{64} held_out=of it', .*\. file="):
        TaskSource(again, 8, seed=0).load_state_dict(state)


def test_each_held_out_question_is_judged_once(file: str, tokenizer: Tokenizer) -> None:
    task = make(file, tokenizer, heldout=file, group="kind")
    batches = task.held_out_batches(16, 8)
    assert [batch.size[0] for batch in batches] == [16, 16, 16]  # the last with 8 rows of PAD
    scored = torch.cat([batch.targets for batch in batches]) != IGNORE
    assert scored.any(dim=1).sum() == 40
    best = batches[0].targets.clone()
    assert task.score(best, batches[0]) == {"exact": 1.0, "kind_even": 1.0, "kind_odd": 1.0}
    odd = next(r for r in range(16) if int(told(batches[0], r, tokenizer)[2]) % 2)
    at = int((best[odd] != IGNORE).nonzero()[-1])
    best[odd, at] += 1  # only EOS is wrong
    wrong = task.score(best, batches[0])
    assert wrong["exact"] == 15 / 16 and wrong["kind_even"] == 1 > wrong["kind_odd"]
    last = task.score(batches[2].targets, batches[2])
    assert last["exact"] == 1.0  # rows of PAD are not judged
    assert task.score(batches[2].targets * 0, batches[2])["exact"] == 0.0


def test_a_run_says_what_it_reads(file: str, tokenizer: Tokenizer) -> None:
    task = make(file, tokenizer)
    lines = TaskSource(task, 8, seed=0).describe(9)
    assert lines[0] == "36 questions to train on, 2 epochs; 4 held out"
    filled = task.sample(0, 0, 36).valid.double()
    context, answer = (part.sum() / 36 for part in filled.split([4 * L, 2 * L], dim=1))
    assert f"a context has {context:.0f} of 64 tokens" in lines[1]
    assert f"its answer {answer:.0f} of 32: {1 - filled.mean():.0%} is PAD" in lines[1]
    assert ", 890 epochs; " in TaskSource(make(file, tokenizer), 8, seed=0).describe(4000)[0]


def test_compressed_and_with_blank_lines(file: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    packed = tmp_path / "q.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\n" + Path(file).read_bytes()))
    here, there = (
        make(file, tokenizer).sample(1, 0, 8),
        make(str(packed), tokenizer).sample(1, 0, 8),
    )
    assert torch.equal(here.tokens, there.tokens)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: not a JSON object"),
        ('{"context": "a", "question": "b"}', 'line 2: "answer" is missing or not a string'),
        ('{"context": 1, "question": "b", "answer": "c"}', '"context" is missing or not a string'),
        ('{"context": "a", "question": "", "answer": "c"}', "line 2: the question is empty"),
        ('{"context": "\\ud800", "question": "b", "answer": "c"}', "lone surrogate"),
    ],
)
def test_a_line_that_is_no_question(
    line: str, said: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(record(0))}\n{line}\n")
    with pytest.raises(UserError) as error:
        make(str(path), tokenizer).sample(0, 0, 1)
    assert str(error.value).startswith(f"{path}, line 2: ") and said in str(error.value)


def test_what_does_not_fit_is_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = [record(i) | {"context": "word " * 100} for i in (3, 8)]
    path = write(tmp_path / "q.jsonl", [record(0), *long, record(9)])
    with pytest.raises(
        UserError, match=r"2 of 4 contexts .* questions\.context = 64 tokens .*line 2"
    ):
        make(path, tokenizer).sample(0, 0, 1)
    path = write(tmp_path / "q.jsonl", [record(0), record(2) | {"answer": "word " * 100}])
    with pytest.raises(
        UserError, match=r"1 of 2 questions with their answers .* questions\.answer"
    ):
        make(path, tokenizer).sample(0, 0, 1)
    path = write(tmp_path / "q.jsonl", [record(0), record(1)])
    with pytest.raises(UserError, match="one context, so none can be held out"):
        make(path, tokenizer).sample(0, 0, 1)
    for kind in (None, 1.5, "", "[/x]", "a|b", "two\nlines", "x" * 41):
        path = write(tmp_path / "q.jsonl", [record(i) | {"kind": kind} for i in range(40)])
        with pytest.raises(UserError, match=r'line 1: "kind" \(questions\.group\) must be a whole'):
            make(path, tokenizer, group="kind").sample(0, 0, 1)
    kinds = (10, "2-hop", 2, "zwei Hüpfer (2)")
    path = write(tmp_path / "q.jsonl", [record(i) | {"kind": kinds[i % 4]} for i in range(40)])
    groups = make(path, tokenizer, group="kind", heldout=path).groups
    assert groups == ["2", "10", "2-hop", "zwei Hüpfer (2)"]
    many = [record(i) | {"kind": i} for i in range(101)]
    path = write(tmp_path / "q.jsonl", many[1:])
    assert len(make(path, tokenizer, group="kind", heldout=path).groups) == 100
    path = write(tmp_path / "q.jsonl", many)
    with pytest.raises(UserError, match=r"101 different values, at most 100"):
        make(path, tokenizer, group="kind", heldout=path).test(0, 4)
    with pytest.raises(UserError, match=r"context is 60 tokens, which is not a multiple .* 16"):
        Questions(QuestionsConfig(path=path, context=60), L, tokenizer)
