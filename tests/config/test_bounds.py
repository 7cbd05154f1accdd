"""Every refusal of a setting or of a combination, each with its fix; and what must not be refused."""

from __future__ import annotations

import pytest

from pretrain.config.checks import AT_LEAST, AT_MOST, CHOICES, MAX, POSITIVE, validate
from pretrain.config.load import parse
from pretrain.config.schema import Config
from pretrain.errors import UserError

DEPO = ["data.task=depo"]
TEXT = ["data.tokenizer=t.model", "data.train=[{path='train'}]", "data.heldout=heldout"]
STORIES = ["data.task=stories", "data.tokenizer=t.model"]


def config(*overrides: str) -> Config:
    return parse("", overrides=overrides)


@pytest.mark.parametrize(
    "base", [DEPO, TEXT, STORIES, ["data.task=rule110"]], ids=["depo", "text", "stories", "rule110"]
)
def test_the_defaults_are_valid(base: list[str]) -> None:
    validate(config(*base))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["run.name="],
            'run.name = "": must be the name of a folder, without slashes; run.dir says where it is',
        ),
        (["run.name=a/b"], 'run.name = "a/b": must be the name of a folder'),
        (["run.name=.."], 'run.name = "..": must be the name of a folder'),
        (
            ["model.attention_heads=6"],
            "model.attention_heads = 6: must be a multiple of model.attention_kv_heads = 4",
        ),
        (
            ["model.delta_value_heads=6"],
            "model.delta_value_heads = 6: must be a multiple of model.delta_key_heads = 4",
        ),
        (
            ["model.rotary_fraction=0"],
            "model.rotary_fraction = 0.0: must be more than 0 and at most 1",
        ),
        (
            ["model.rotary_fraction=1.5"],
            "model.rotary_fraction = 1.5: must be more than 0 and at most 1",
        ),
        (
            ["model.attention_head_dim=12"],
            "model.rotary_fraction = 0.25: rotates 3 of model.attention_head_dim = 12",
        ),
        (
            ["model.attention_head_dim=4"],
            "model.rotary_fraction = 0.25: rotates 1 of model.attention_head_dim = 4",
        ),
        (
            ["model.attention_head_dim=2"],
            "model.rotary_fraction = 0.25: rotates 0 of model.attention_head_dim = 2",
        ),
        (
            ["model.decay_init=[0, 0.1]"],
            "model.decay_init = [0.0, 0.1]: must be two positive numbers, the smaller one first",
        ),
        (
            ["model.decay_init=[0.2, 0.1]"],
            "model.decay_init = [0.2, 0.1]: must be two positive numbers",
        ),
        (["model.layers=[]"], 'model.layers = []: name at least one block, "attention" or "delta"'),
        (
            ['model.layers=["delta", "mamba"]'],
            'model.layers[1] = "mamba": must be "attention" or "delta"',
        ),
        (
            ["sleep.prelude=3", "sleep.coda=2"],
            "sleep.prelude = 3 and sleep.coda = 2 are more than the 4 blocks",
        ),
        (
            ['model.layers=["attention"]'],
            'sleep.passes = 4 needs a "delta" block between sleep.prelude and sleep.coda',
        ),
        (["sleep.prelude=2", "sleep.coda=1"], 'sleep.passes = 4 needs a "delta" block between'),
        (["sleep.prelude=4"], 'sleep.passes = 4 needs a "delta" block between'),
        (
            ["sleep.truncate_passes=5"],
            "sleep.truncate_passes = 5: must be at most sleep.passes = 4; 0 backpropagates",
        ),
        (["parallel.pp=2", "parallel.zero=0"], "parallel.pp > 1 with parallel.zero = 0: "),
        (
            ["parallel.tp=4", "model.attention_kv_heads=2"],
            "model.attention_kv_heads = 2: does not divide by ",
        ),
        (
            ["parallel.tp=4", "model.delta_key_heads=2"],
            "model.delta_key_heads = 2: does not divide by parallel.tp",
        ),
        (
            ["parallel.tp=4", "model.mlp_width=6"],
            "model.mlp_width = 6: does not divide by parallel.tp = 4; make it 8",
        ),
        (
            ["parallel.tp=2", "model.vocab_size=7"],
            "model.vocab_size = 7: does not divide by parallel.tp = 2; make it",
        ),
        (
            ["parallel.pp=5"],
            "parallel.pp = 5: at most one stage for each of the 4 blocks of model.layers",
        ),
        (
            ["parallel.pp=2", "parallel.stages=[4]"],
            "parallel.stages = [4]: must be parallel.pp = 2 numbers",
        ),
        (
            ["parallel.pp=2", "parallel.stages=[4, 0]"],
            "parallel.stages = [4, 0]: must be parallel.pp = 2 numbers",
        ),
        (
            ["parallel.pp=2", "parallel.stages=[1, 2]"],
            "parallel.stages = [1, 2]: must be parallel.pp = 2 numbers",
        ),
        (["optimizer.momentum=1"], "optimizer.momentum = 1.0: must be at least 0 and less than 1"),
        (
            ["optimizer.momentum=-0.1"],
            "optimizer.momentum = -0.1: must be at least 0 and less than 1",
        ),
        (
            ["optimizer.betas=[0.9, 1.0]"],
            "optimizer.betas = [0.9, 1.0]: each must be at least 0 and less than 1",
        ),
        (
            ["optimizer.final_lr=1.5"],
            "optimizer.final_lr = 1.5: must be from 0 to 1, a share of the peak",
        ),
        (
            ["train.steps=99"],
            "optimizer.warmup = 100 and optimizer.decay = 0 are more than train.steps = 99: lower them",
        ),
        (
            ["guard.spike=1"],
            "guard.spike = 1.0: must be more than 1, so many times the running mean; 0 looks for none",
        ),
        (["guard.spike=-2"], "guard.spike = -2.0: must be more than 1"),
        (
            ["train.microbatches=5"],
            "train.batch = 32: must be a multiple of train.microbatches = 5",
        ),
        (
            ["data.task=text"],
            'data.tokenizer = "": name the sentencepiece model that `hypnos tokenizer train` wrote',
        ),
        (
            ["data.task=stories"],
            'data.tokenizer = "": name the sentencepiece model that `hypnos tokenizer train` wrote',
        ),
        (
            [*TEXT, "data.task=text", "data.train=[]"],
            "data.train = []: name a folder that `hypnos data prepare` wrote",
        ),
        (
            [*TEXT, "data.task=text", "data.train=[{path=''}]"],
            'data.train[0].path = "": name a folder',
        ),
        (
            [*TEXT, "data.task=text", "data.train=[{path='a'}, {path='b', weight=0}]"],
            "data.train[1].weight = 0.0: must be more than 0, or leave the corpus out",
        ),
        (
            [*TEXT, "data.task=text", "data.heldout="],
            'data.heldout = "": name the folder of held-out shards',
        ),
        (
            [*TEXT, "data.task=text", "sleep.when=context"],
            'sleep.when = "context": every window of text has targets',
        ),
        (
            [*TEXT, "data.task=text", "data.train=[{path='a', weight=1e9}]"],
            "data.train[0].weight = 1000000000.0: must be from 1e-06 to 1000000.0",
        ),
        (
            [
                *TEXT,
                "data.task=text",
                f"data.train=[{','.join(['{path=1}'.replace('1', chr(34) * 2)] * 4097)}]",
            ],
            "data.train names 4097 corpora: at most 4096; join some",
        ),
        ([f"model.layers={['delta'] * 4097}"], "model.layers names 4097 blocks: at most 4096"),
        (["run.dir=a\x85b"], "run.dir = 'a\\x85b': holds a control character: remove it"),
        (
            ["data.tokenizer=\udcff"],
            "data.tokenizer = '\\udcff': holds a control character: remove it",
        ),
        (["optimizer.clip=1e16"], "optimizer.clip = 1e+16: must be at most 1000000000000000"),
        (
            ["train.batch=1048576"],
            "train.batch = 1048576: makes 377487360 tokens, 360 a sequence; at most",
        ),
        (
            ["train.eval_batches=1048576"],
            "train.eval_batches = 1048576: makes 12079595520 tokens, 360 a sequence",
        ),
        (
            [*STORIES, "stories.min_ops=9"],
            "stories.max_ops = 8: must be at least stories.min_ops = 9",
        ),
    ],
)
def test_a_combination_that_cannot_be_trained_is_refused(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        validate(config(*DEPO, *overrides))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", AT_LEAST)
def test_the_least_value_is_allowed_and_one_less_is_not(place: str) -> None:
    least = AT_LEAST[place]
    with pytest.raises(
        UserError, match=rf"^{place} = {least - 1}(\.0)?: must be at least {least}$"
    ):
        validate(config(*DEPO, f"{place}={least - 1}"))
    try:
        validate(config(*DEPO, f"{place}={least}"))
    except UserError as error:  # another setting may need more, but not this bound
        assert "must be at least" not in str(error)


@pytest.mark.parametrize("place", sorted({*AT_LEAST, *AT_MOST} - {"optimizer.weight_decay"}))
def test_one_more_than_the_most_is_refused(place: str) -> None:
    most = AT_MOST.get(place, MAX)
    with pytest.raises(UserError, match=rf"{place} .*must (be at most {most}|fit in 64 bits)"):
        validate(config(*DEPO, f"{place}={most + 1}"))


@pytest.mark.parametrize("place", POSITIVE)
def test_zero_is_refused_where_a_number_must_be_positive(place: str) -> None:
    for value in ("0", "-1"):
        with pytest.raises(UserError, match=f"^{place} = {float(value)}: must be more than 0$"):
            validate(config(*DEPO, f"{place}={value}"))


@pytest.mark.parametrize("place", CHOICES)
def test_only_the_known_words_are_allowed(place: str) -> None:
    wrong = "7" if place == "parallel.zero" else "nothing"
    with pytest.raises(UserError, match=f"^{place} = .*: must be .* or ") as error:
        validate(config(*DEPO, f"{place}={wrong}"))
    for choice in CHOICES[place]:
        assert str(choice) in str(error.value)
    for choice in CHOICES[place]:
        if place != "data.task":
            validate(config(*DEPO, f"{place}={choice}"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["sleep.passes=1", 'model.layers=["attention"]'],  # the plain transformer, the baseline
        ["sleep.passes=1", "sleep.prelude=2", "sleep.coda=2"],
        ["sleep.prelude=1", "sleep.coda=2"],
        ["sleep.truncate_passes=4", "sleep.truncate_windows=9"],
        ["train.microbatches=32"],
        ["optimizer.warmup=600", "optimizer.decay=400"],
        [*TEXT, "data.task=text", "sleep.when=context", "sleep.passes=1"],
    ],
)
def test_what_can_be_trained_is_not_refused(overrides: list[str]) -> None:
    validate(config(*DEPO, *overrides))
