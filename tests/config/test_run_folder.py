"""A run's configuration after its folder has been moved, and the tokenizer in that folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.load import parse
from pretrain.config.run_folder import (
    TOKENIZER,
    check_data,
    check_tokenizer,
    configuration_of,
    keep_tokenizer,
    places,
)
from pretrain.config.schema import Config
from pretrain.errors import UserError

TEXT = ["data.train=[{path='a'},{path='b'}]", "data.heldout=h"]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given.model"
    path.write_bytes(b"\0one")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "runs/x/checkpoints").mkdir(parents=True)
    return tmp_path / "runs" / "x"


def config(given: Path, *overrides: str) -> Config:
    return parse("", overrides=[f"data.tokenizer={given}", *TEXT, *overrides])


def test_the_tokenizer_is_written_and_must_stay_the_same(given: Path, run: Path) -> None:
    own = run / TOKENIZER
    keep_tokenizer(run, config(given), resumes=False)
    assert own.read_bytes() == b"\0one"
    given.write_bytes(b"two")
    with pytest.raises(UserError, match=r"^data\.tokenizer = .*given\.model: is not this run's"):
        keep_tokenizer(run, config(given), resumes=True)
    assert own.read_bytes() == b"\0one"
    keep_tokenizer(run, config(own), resumes=True)
    keep_tokenizer(run, config(given), resumes=False)  # a run that starts anew
    assert own.read_bytes() == b"two"


def test_a_task_without_text_has_no_tokenizer(run: Path) -> None:
    keep_tokenizer(run, config(run / "nowhere", "data.task=depo"), resumes=False)
    assert not (run / TOKENIZER).exists()


def test_a_run_is_used_with_its_own_tokenizer(given: Path, run: Path) -> None:
    trained = config(given)
    used = configuration_of(run, trained)
    assert used.data.tokenizer == str(run / TOKENIZER)
    assert trained.data.tokenizer == str(given)
    with pytest.raises(UserError, match=r"x/tokenizer\.model: missing; copy the whole"):
        check_tokenizer(used)
    keep_tokenizer(run, trained, resumes=False)
    check_tokenizer(used)
    with pytest.raises(UserError, match=r"^data\.tokenizer: .* holds its own"):
        configuration_of(run, trained, ["data.tokenizer=other"])


def test_what_the_model_has_learnt_cannot_be_overridden(given: Path, run: Path) -> None:
    allowed = ["data.heldout=~/h", "train.eval_batches=8", "train.batch=2", "sleep.passes=7"]
    used = configuration_of(run, config(given), [*allowed, "data.windows=32"])
    assert (used.train.eval_batches, used.train.batch, used.sleep.passes) == (8, 2, 7)
    assert used.data.windows == 32
    assert used.data.heldout == str(Path.home() / "h")
    for refused, message in (
        ("model.d_model=8", r"^model\.d_model = 8: .*x was trained with 256; only settings that"),
        ("depo.max_hops=8", r'^depo\.max_hops = 8: data\.task = "text" does not use it: '),
        ("data.task=depo", r"^data\.task = 'depo': .*x was trained with 'text'; only"),
        ("sleep.passes=0", r"^sleep\.passes = 0: must be at least 1$"),
    ):
        with pytest.raises(UserError, match=message):
            configuration_of(run, config(given), [refused])


def test_data_that_are_not_there_are_named_with_their_setting(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for training, name, message in (
        (
            True,
            "a",
            rf'^data\.train\[0\]\.path = "a": does not exist in {tmp_path}; set its path: ',
        ),
        (True, "b", r'^data\.train\[1\]\.path = "b": .* data\.train=\[\{path="PATH"\}, \.\.\.\]$'),
        (True, "h", r'^data\.heldout = "h": does not exist in .*; set its path: data\.heldout='),
    ):
        with pytest.raises(UserError, match=message):
            check_data(config(given), training=training)
        (tmp_path / name).mkdir()
    check_data(config(given), training=True)
    given.unlink()
    with pytest.raises(
        UserError, match=r"^data\.tokenizer = .*given\.model\": does not exist; set"
    ):
        check_data(config(given), training=True)
    (tmp_path / "a").rmdir()
    check_data(config(given), training=False)
    sets = "data.heldout_sets=[{name='code',path='c'}]"
    with pytest.raises(
        UserError,
        match=r'^data\.heldout_sets\[0\]\.path = "c": .* its path: data\.heldo'
        r'ut_sets=\[\{name="NAME", path="PATH"\}\]$',
    ):
        check_data(config(given, sets), training=False)
    sets = sets.replace("]", ",{name='text',path='t'}]")
    with pytest.raises(UserError, match=r'\{name="NAME", path="PATH"\}, \.\.\.\]$'):
        check_data(config(given, sets), training=False)
    with pytest.raises(UserError, match=r'^stories\.path = "/s\.jsonl": does not exist; set its'):
        check_data(config(given, "data.task=stories", "stories.path=/s.jsonl"), training=False)
    asked = ["data.task=questions", "questions.path=/gone", f"questions.heldout={tmp_path}"]
    check_data(config(given, *asked), training=False)  # its own questions are enough
    with pytest.raises(UserError, match=r'^questions\.path = "/gone": does not exist; set its'):
        check_data(config(given, *asked[:2]), training=False)


def test_a_runs_own_configuration_is_found_by_its_folder(run: Path) -> None:
    own = run / "config.toml"
    assert places(own) == [f'run.dir="{run.parent}"', 'run.name="x"']
    (run / TOKENIZER).touch()
    assert places(own)[2:] == [f'data.tokenizer="{run / TOKENIZER}"']
    assert places(run.parent / "config.toml") == places(run / "x.toml") == []
    other = run.rename(run.with_name("\U0001f634"))
    assert parse("", overrides=places(other / "config.toml")).run.name == "\U0001f634"
