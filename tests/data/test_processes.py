"""A corpus that several processes prepare together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pretrain.data.corpus import Corpus
from pretrain.data.pool import in_processes
from pretrain.data.prepare import prepare
from pretrain.data.units import Done, Unit, cut
from pretrain.errors import UserError
from tests.data.small import SETTINGS, content
from tests.data.texts import make_texts, write_texts
from tokenizer.encode import Tokenizer


def test_processes_write_what_one_writes(
    source: Path, prepared: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    corpus = Corpus([source])
    prepare(corpus, tokenizer, tmp_path / "out", **SETTINGS | {"workers": 2})
    assert content(tmp_path / "out") == content(prepared)
    assert corpus.tally.lines() == ["read 60 files (60 .txt), each as one text"]


def test_an_error_of_a_process_is_the_users(
    source: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    bad = tmp_path / "texts"
    write_texts(bad, make_texts(60, seed=4))
    (bad / "055.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"055\.txt: invalid UTF-8"):
        prepare(Corpus([bad]), tokenizer, tmp_path / "out", **SETTINGS | {"workers": 2})
    assert not (tmp_path / "out").exists()


def _fails_or_goes_on(unit: Unit, tell: Callable[[Done], None]) -> Any:
    if unit.number == 0:
        raise UserError("the first is bad")
    for _ in range(600):  # groups of documents in a big file
        tell(Done())
        time.sleep(0.1)


def test_an_error_is_told_before_others_have_finished_their_files(source: Path) -> None:
    units, begin = cut(Corpus([source]).find(), 300), time.monotonic()
    with pytest.raises(UserError, match="the first is bad"):
        in_processes(_fails_or_goes_on, units, 2, lambda number, done: None)
    assert time.monotonic() - begin < 50


def _sleeps(*_: object, **__: object) -> Any:
    time.sleep(600)


def _tokenises(units: list[Unit]) -> None:
    in_processes(_sleeps, units, 2, lambda number, done: None)


def test_no_process_outlives_one_that_is_killed(source: Path) -> None:
    units = cut(Corpus([source]).find(), 300)
    whole = multiprocessing.get_context("spawn").Process(target=_tokenises, args=(units,))
    whole.start()
    its: list[psutil.Process] = []
    while len(its) < 2:
        its = psutil.Process(whole.pid).children()
        time.sleep(0.05)
    whole.kill()
    assert psutil.wait_procs(its, timeout=60)[1] == []


def _dies(*_: object, **__: object) -> Any:
    os._exit(9)


def test_a_process_that_is_killed_is_said(source: Path) -> None:
    units = cut(Corpus([source]).find(), 300)
    with pytest.raises(UserError, match=r"was killed, .* lower --workers"):
        in_processes(_dies, units, 2, lambda number, done: None)


def _hears_ctrl_c(*_: object, **__: object) -> Any:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    except KeyboardInterrupt:
        return True
    return False


def test_ctrl_c_is_heard_by_the_first_process_alone(source: Path) -> None:
    units = cut(Corpus([source]).find(), 300)[:1]
    # also if tests run in the background, where a shell makes processes ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert in_processes(_hears_ctrl_c, units, 1, lambda *_: None) == [False]
        assert _hears_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
