"""A run on questions from a file, from training to an answer: `train`, `eval`, `generate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.config.schema import Config, DataConfig, QuestionsConfig
from pretrain.evaluate import evaluate_run
from pretrain.trainer import train
from tests.run.conftest import MakeConfig
from tests.runs import rows

COLOURS = ("red", "blue", "green")


@pytest.fixture
def questions(text: MakeConfig, tmp_path: Path) -> Config:
    """The colour of a thing is in its context; the questions differ in nothing else."""
    path = tmp_path / "questions.jsonl"
    records = [
        {
            "context": f"Box {i} is {COLOURS[i % 3]}.",
            "question": "Colour:",
            "answer": COLOURS[i % 3],
        }
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = text("questions", steps=40, eval_every=40, checkpoint_every=20)
    return replace(
        config,
        data=DataConfig(task="questions", tokenizer=config.data.tokenizer),
        questions=QuestionsConfig(path=str(path), context=4 * config.sleep.window, answer=16),
        sleep=replace(config.sleep, when="context"),
        parallel=replace(config.parallel, recompute="none"),
    )


def test_what_a_run_answers_is_what_its_evaluation_judged(
    questions: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions.train.eval_batches = 4
    run = train(questions)
    said = capsys.readouterr().err
    assert "54 questions to train on, 3 epochs; 6 held out" in said
    assert "held-out tokens: 6 of 16 rows" in said
    at_end = rows(run, "eval")[-2]
    assert at_end["passes"] == 2 and rows(run, "eval")[0]["accuracy"]["exact"] == 0.0

    one = tmp_path / "one.jsonl"  # other held-out questions, and the training file is gone
    right = []
    Path(questions.questions.path).rename(tmp_path / "moved.jsonl")
    for i, colour in ((2, "green"), (100, "blue"), (34, "red")):
        context = f"Box {i} is {colour}."
        one.write_text(json.dumps({"context": context, "question": "Colour:", "answer": colour}))
        judged = evaluate_run(run, [2], [f"questions.heldout={one}"])[0]["accuracy"]["exact"]
        (tmp_path / "context.txt").write_text(context)
        given = ["--context-file", str(tmp_path / "context.txt"), "--prompt", "Colour:"]
        assert main(["generate", str(run), *given, "--temperature", "0", "--tokens", "20"]) == 0
        answer = capsys.readouterr().out
        assert (answer == f"Colour:{colour}\n") == bool(judged)
        right.append(bool(judged))
    assert any(right)
