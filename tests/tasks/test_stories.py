"""Math stories, and published records, against a reader that works out the answer from the text."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from pretrain.config.schema import StoriesConfig
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.tasks.stories import Stories
from pretrain.tasks.story_writer import MAX_NOISE, MAX_OPS, write_story
from tests.tasks.story_oracle import solve
from tokenizer.encode import Tokenizer

SAMPLE = Path(__file__).parent / "data" / "gsm_infinite.jsonl"


def test_the_reader_solves_public_records() -> None:
    for line in SAMPLE.read_text().splitlines():
        record = json.loads(line)
        answer, operands = solve(record["problem"], record["question"])
        assert f"Answer: {answer}." in record["solution"]
        if record["mode"] == "normalforward":
            assert operands == record["op"]  # they count op like this, and so do we


@pytest.mark.parametrize("op", [1, 2, 3, 5, 8, 15, MAX_OPS])
def test_written_stories_have_the_answer_and_op_they_claim(op: int) -> None:
    for seed in range(60):
        noise = random.Random(seed).choice([0, 3, MAX_NOISE])
        story = write_story(random.Random(f"{op}/{seed}"), op, noise)
        for told in {noise, noise // 2}:
            record = story.record(told)
            answer, operands = solve(str(record["problem"]), str(record["question"]))
            assert record["solution"].endswith(f" Answer: {answer}.")
            assert operands == op == record["op"]
            assert last_value(str(record["solution"])) == answer


def last_value(solution: str) -> int:
    """Follows steps "so a = b + c = 1 + 2 = 3", in letters and numbers; the last one's value."""
    values: dict[str, int] = {}
    for letter, statement in re.findall(r"(?:so |; )([a-zA-Z]) = ([^;.]+)[;.]", solution):
        sides = {work_out(side, values) for side in statement.split(" = ")}
        assert len(sides) == 1 and letter not in values, statement
        values[letter] = sides.pop()
    return values[letter]


def work_out(side: str, values: dict[str, int]) -> int:
    """The value of a sum or product of numbers and letters."""
    sign = math.prod if "*" in side else sum
    return sign(values[part] if part.isalpha() else int(part) for part in re.split(r" [+*] ", side))


def test_stories_vary() -> None:
    records = [write_story(random.Random(i), 6, 4).record(4) for i in range(200)]
    assert len({str(r["problem"]) for r in records}) == 200
    assert len({str(r["solution"]).rsplit(" ", 1)[1] for r in records}) > 15
    text = "".join(str(r["problem"]) + str(r["question"]) for r in records)
    for form in (
        "times the sum of",
        "plus the total number",
        "How many",
        "What is the total",
        ", and the number",
    ):
        assert form in text


def test_a_row_reads_the_story_and_is_asked_for_its_answer(tokenizer: Tokenizer) -> None:
    config = StoriesConfig(context=400, min_ops=2, max_ops=5)
    task = Stories(config, 200, tokenizer)
    batch = task.sample(1, 0, 40)
    assert batch.starts[:, 0].all() and batch.starts.sum() == 40 and batch.starts.shape[1] == 3
    ops = Counter(batch.grade.tolist())
    assert set(ops) == {2, 3, 4, 5}
    for row in range(40):
        tokens, targets, valid = batch.tokens[row], batch.targets[row], batch.valid[row]
        text = tokenizer.decode(tokens[:400][valid[:400]].tolist())
        question, problem = re.fullmatch(r"(.+?\?) (.+)", text).groups()
        answer, operands = solve(problem, question)
        assert operands == batch.grade[row]
        scored = (targets != IGNORE).nonzero()[:, 0]
        assert scored.min() >= 400 and tokenizer.decode(targets[scored].tolist()) == f" {answer}"
        assert targets[scored[-1]] == tokenizer.eos
        asked = tokens[400:][valid[400:]].tolist()
        assert tokenizer.decode(asked) == f"Answer: {answer}"
        # Targets are the next tokens, and every scored position but the last is followed by its
        # target.
        assert torch.equal(tokens[scored[1:]], targets[scored[:-1]])
        assert (tokens[~valid] == tokenizer.pad).all()


def test_rows_do_not_depend_on_how_they_are_grouped(tokenizer: Tokenizer) -> None:
    for config in (StoriesConfig(context=300), StoriesConfig(context=600, path=str(SAMPLE))):
        task = Stories(config, 100, tokenizer)
        parts = [task.sample(1, 10, 3), task.sample(1, 13, 5)]
        whole = task.sample(1, 10, 8)
        for name in ("tokens", "targets", "valid", "grade"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))
        assert torch.equal(whole.rows(2, 5).grade, whole.grade[2:5])


def test_score_is_exact_and_by_op(tokenizer: Tokenizer) -> None:
    task = Stories(StoriesConfig(context=300, min_ops=1, max_ops=4), 100, tokenizer)
    batch = task.test(0, 8)
    assert batch.grade.tolist() == [1, 2, 3, 4] * 2
    assert task.score(batch.targets, batch) == {
        "exact": 1.0,
        "op_1": 1.0,
        "op_2": 1.0,
        "op_3": 1.0,
        "op_4": 1.0,
    }
    best = batch.targets.clone()
    best[2, (best[2] != IGNORE).nonzero()[0]] += 1  # one wrong token makes the answer wrong
    assert task.score(best, batch) == {
        "exact": 7 / 8,
        "op_1": 1.0,
        "op_2": 1.0,
        "op_3": 0.5,
        "op_4": 1.0,
    }


def test_a_files_records_are_read_and_never_tested_on_when_trained_on(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    twice = tmp_path / "twice.jsonl"
    twice.write_text(SAMPLE.read_text() * 2)  # each copy of a problem must fall on the same side
    task = Stories(StoriesConfig(context=600, path=str(twice)), 200, tokenizer)
    texts = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    known = {
        f"{t['question']} {t['problem'].strip()}": re.search(r"Answer: (\d+)", t["solution"])[1]
        for t in texts
    }

    def stories(batch) -> dict[str, str]:
        rows = zip(batch.tokens[:, :600], batch.valid[:, :600], batch.targets, strict=True)
        return {
            tokenizer.decode(t[v].tolist()): tokenizer.decode(g[g != IGNORE].tolist()).strip()
            for t, v, g in rows
        }

    trained, tested = stories(task.sample(0, 0, 300)), stories(task.test(0, 100))
    assert not set(trained) & set(tested)
    assert {**trained, **tested} == known
    only = Stories(
        StoriesConfig(context=600, path=str(SAMPLE), min_ops=4, max_ops=4), 200, tokenizer
    )
    assert set(only.sample(0, 0, 20).grade.tolist()) == {4}
    assert only.fingerprint != task.fingerprint
    moved = twice.rename(tmp_path / "moved.jsonl")
    assert (
        Stories(StoriesConfig(context=600, path=str(moved)), 200, tokenizer).fingerprint
        == task.fingerprint
    )
    moved.write_text(SAMPLE.read_text())
    assert (
        Stories(StoriesConfig(context=600, path=str(moved)), 200, tokenizer).fingerprint
        != task.fingerprint
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"broken.jsonl:11: malformed JSON"),
        ("[1]", r"broken.jsonl:11: not a JSON object"),
        ('{"question": "q", "problem": "p", "op": 2}', r"broken.jsonl:11: 'solution' is missing"),
        (
            '{"question": "q", "problem": "p", "solution": "Answer: 3.", "op": "2"}',
            r"broken.jsonl:11: 'op' is missing",
        ),
        (
            '{"question": "q", "problem": "p", "solution": "so 3", "op": 2}',
            r"broken.jsonl:11: the solution does not",
        ),
    ],
)
def test_broken_files_are_named_with_the_line(
    line: str, message: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(SAMPLE.read_text() + line + "\n")
    with pytest.raises(UserError, match=message):
        Stories(StoriesConfig(context=600, path=str(path)), 200, tokenizer)


def test_what_does_not_fit_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"gsm_infinite.jsonl:\d+: \d+ tokens do not fit stories.context = 60"
    ):
        Stories(StoriesConfig(context=60, path=str(SAMPLE)), 20, tokenizer)
    with pytest.raises(UserError, match=r"stories\.context = 40 does not hold a story of 8 ops"):
        Stories(StoriesConfig(context=40, min_ops=8), 20, tokenizer).sample(0, 0, 20)
    with pytest.raises(UserError, match="cannot read the stories"):
        Stories(StoriesConfig(context=60, path=str(tmp_path / "none.jsonl")), 20, tokenizer)
    with pytest.raises(UserError, match="no story has"):
        Stories(StoriesConfig(context=600, path=str(SAMPLE), min_ops=7), 200, tokenizer)
    with pytest.raises(UserError, match=r"not a multiple of sleep\.window"):
        Stories(StoriesConfig(context=100), 64, tokenizer)
    with pytest.raises(UserError, match=r"set train\.batch to 8"):
        Stories(StoriesConfig(context=300), 100, tokenizer).test(0, 7)
