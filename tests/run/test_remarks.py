"""What a run remarks on in its settings: a warm-up it does not finish, a decay that moves, ..."""

from __future__ import annotations

import pytest

from pretrain.config.load import parse
from pretrain.config.schema import Config
from pretrain.run.remarks import remarks


def config(*overrides: str) -> Config:
    return parse("", overrides=["optimizer.warmup=20", "optimizer.decay=100", *overrides])


def test_a_run_shorter_than_its_warm_up_says_so() -> None:
    assert list(remarks(config("train.steps=5"), None, 0)) == [
        "optimizer.warmup = 20 and optimizer.decay = 100 add up to more than train.steps = 5: "
        "the learning rate does not reach its peak"
    ]
    assert not list(remarks(config("train.steps=120"), None, 0))


def test_checkpoints_that_would_not_be_kept_are_said() -> None:
    (line,) = remarks(config("train.keep_every=500", "train.checkpoint_every=200"), None, 0)
    assert line.endswith("= 200: checkpoints are kept for good every 1000 steps")
    assert not list(remarks(config("train.keep_every=600", "train.checkpoint_every=200"), None, 0))


def test_sleep_that_no_gradient_reaches_is_said() -> None:
    text = ["data.tokenizer=t", 'data.train=[{path="a"}]', "data.heldout=h", "train.steps=300"]
    said = "data.windows = 1: no gradient reaches what sleep.passes = 4 write"
    assert any(line.startswith(said) for line in remarks(config(*text, "data.windows=1"), None, 0))
    for fine in ("data.windows=2", "sleep.passes=1", "sleep.when=awake"):
        lines = remarks(config(*text, "data.windows=1", fine), None, 0)
        assert not any("no gradient" in line for line in lines)


@pytest.mark.parametrize("name", ["sleep.curriculum", "data.curriculum"])
def test_a_curriculum_that_does_not_come_to_its_end_is_said(name: str) -> None:
    (line,) = remarks(config("train.steps=300", f"{name}=301"), None, 0)
    assert line.startswith(f"{name} = 301 is more than train.steps = 300: no")
    assert not list(remarks(config("train.steps=300", f"{name}=300"), None, 0))


def test_a_trace_of_no_step_is_said() -> None:
    traced = config("train.steps=300", "train.profile=[290, 310]")
    beyond, past = config("train.steps=300", "train.profile=[301, 310]"), 310
    (line,) = remarks(beyond, None, 0)
    assert line == "train.profile = [301, 310]: not in steps 1 to 300: nothing is traced"
    more = config("train.steps=400", "train.profile=[301, 310]")
    assert "steps 311 to 400" in next(remarks(more, config("train.steps=400"), past))
    # those steps were traced when the run took them
    assert not list(remarks(more, more, past)) and not list(remarks(traced, None, 0))


@pytest.mark.parametrize(
    ("start", "before", "now", "factors"),
    [
        (300, 300, 400, ("0.991", "0.1")),  # after the decay: back up tenfold
        (250, 300, 400, ("1", "0.541")),  # in the middle of the decay
        (350, 400, 360, ("0.181", "0.541")),  # the decay begins earlier
    ],
)
def test_a_decay_that_moves_is_said(
    start: int, before: int, now: int, factors: tuple[str, str]
) -> None:
    old, new = config(f"train.steps={before}"), config(f"train.steps={now}")
    assert list(remarks(new, old, start)) == [
        f"train.steps = {now} (was {before}) moves the learning rate's decay: "
        f"it continues at {factors[0]} of its peak instead of {factors[1]}"
    ]


def test_held_out_losses_that_are_of_other_rows_are_said() -> None:
    old = config("train.steps=300")
    more = config("train.steps=300", "train.eval_batches=8")
    assert list(remarks(more, old, 100)) == [
        "train.eval_batches = 8 (was 4): from here on, held-out losses are measured on other rows "
        "than before"
    ]
    (line,) = remarks(config("train.steps=300", "data.heldout=h"), old, 100)
    assert line.startswith("data.heldout has another path: if its text is not")
    sets = "data.heldout_sets=[{name='a',path='x'},{name='b',path='%s'}]"
    two = config("train.steps=300", sets % "y")
    (line,) = remarks(config("train.steps=300", sets % "z"), two, 100)
    assert line.startswith("b of data.heldout_sets has another path: if its text is not")
    assert not list(remarks(two, old, 100)) and not list(remarks(old, two, 100))
    assert not list(remarks(more, more, 100))


def test_a_decay_of_another_shape_is_said() -> None:
    old = config("train.steps=300")
    new = config("train.steps=300", "optimizer.decay_shape=sqrt")
    assert not list(remarks(new, old, 199))  # before the decay
    assert list(remarks(new, old, 224)) == [
        'optimizer.decay_shape = "sqrt" (was "linear") moves the learning rate\'s decay: '
        "it continues at 0.55 of its peak instead of 0.775"
    ]


@pytest.mark.parametrize(("start", "before", "now"), [(100, 300, 400), (300, 300, 300)])
def test_a_rate_that_stays_is_not_worth_a_word(start: int, before: int, now: int) -> None:
    assert not list(remarks(config(f"train.steps={now}"), config(f"train.steps={before}"), start))


def test_a_shape_that_cannot_be_exported_says_so_at_the_beginning() -> None:
    odd = config("model.delta_key_dim=16", "model.delta_value_dim=32")
    assert [line for line in remarks(odd, None, 0) if "--to gguf` will refuse this model" in line]
    assert not list(remarks(odd, odd, 5)) and not list(remarks(config(), None, 0))
    odd.data.task = "depo"  # has no tokenizer: nobody expects a GGUF file
    assert not list(remarks(odd, None, 0))
    odd.model.attention_qk_norm = False
    (line,) = remarks(odd, None, 0)
    assert line.startswith("`hypnos export` will refuse this model: model.attention_qk_norm = f")


@pytest.mark.parametrize(
    ("small", "mended"),
    [("model.tie_embeddings=true", "tie_embeddings = false"),
     ("model.embedding_std=0.02", "embedding_std = 1")],
)  # fmt: skip
def test_an_embedding_too_small_for_sleep_says_so(small: str, mended: str) -> None:
    [line] = remarks(config(small, "sleep.passes=2"), None, 0)
    assert line.startswith("the embedding begins at 0.02: ") and f"model.{mended}" in line
    asked, once = config(small, "sleep.passes=2"), config(small, "sleep.passes=1")
    assert not list(remarks(asked, asked, 5)) and not list(remarks(once, None, 0))
    assert not list(remarks(config(small, "run.init_from=x"), None, 0))  # has its own scale
