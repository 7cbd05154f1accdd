"""Tasks, the paper's and others: data, loss mask and metric, one task per file.

task.py       the interface and the common layout      source.py   a task as the trainer's stream
mqar.py       associative recall                        s5.py       the word problem of a group
brevo.py      graphs of dependencies                    recall.py   needles and variables in text
repeated.py   a task with several copies of its context
kept.py       holds problems out for the test
counter.py    random numbers as a function of (seed, row)
depo.py       multi-hop retrieval                       rule110.py  a cellular automaton
stories.py    math stories (GSM-Infinite's format)      story_writer.py  writes such stories
questions.py  questions about contexts, from a file      question_file.py  reads it
"""

from __future__ import annotations

from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.tasks.brevo import Brevo
from pretrain.tasks.depo import Depo
from pretrain.tasks.mqar import Mqar
from pretrain.tasks.questions import Questions
from pretrain.tasks.recall import Recall
from pretrain.tasks.repeated import Repeated
from pretrain.tasks.rule110 import Rule110
from pretrain.tasks.s5 import S5
from pretrain.tasks.source import TaskSource
from pretrain.tasks.stories import Stories
from pretrain.tasks.task import Task
from tokenizer.encode import Tokenizer

__all__ = [
    "S5",
    "Brevo",
    "Depo",
    "Mqar",
    "Questions",
    "Recall",
    "Rule110",
    "Stories",
    "Task",
    "TaskSource",
    "make_task",
]


def make_task(config: Config, window: int) -> Task:
    """The task that data.task names, laid out in windows of `window` tokens."""
    if (repeats := config.data.repeats) == 1:
        return _make_task(config, window)
    try:
        once = _make_task(config, window // repeats)
    except UserError as error:
        if "sleep.window" not in str(error):
            raise
        meant = f"with data.repeats = {repeats}, sleep.window is {repeats} times as long"
        raise UserError(f"{error}; {meant}") from None
    return Repeated(once, repeats, window)


def _make_task(config: Config, window: int) -> Task:
    match config.data.task:
        case "depo":
            return Depo(config.depo, window)
        case "rule110":
            return Rule110(config.rule110, window)
        case "stories":
            return Stories(config.stories, window, Tokenizer.load(config.data.tokenizer))
        case "questions":
            return Questions(config.questions, window, Tokenizer.load(config.data.tokenizer))
        case "mqar":
            return Mqar(config.mqar, window)
        case "s5":
            return S5(config.s5, window)
        case "brevo":
            return Brevo(config.brevo, window)
        case "recall":
            return Recall(config.recall, window, Tokenizer.load(config.data.tokenizer))
        case other:
            raise ValueError(f"{other!r} is no task")
