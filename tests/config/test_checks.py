"""Every refusal of a combination of settings, with its fix; and what must not be refused."""

from __future__ import annotations

import pytest

from pretrain.config.checks import validate
from pretrain.config.load import parse
from pretrain.config.schema import Config
from pretrain.errors import UserError

DEPO = ["data.task=depo"]
TEXT = ["data.task=text", "data.tokenizer=t.model", "data.train=[{path='train'}]"]
TEXT += ["data.heldout=heldout"]
STORIES = ["data.task=stories", "data.tokenizer=t.model"]
RULE110 = ["data.task=rule110"]


def config(*overrides: str) -> Config:
    return parse("", overrides=overrides)


@pytest.mark.parametrize("base", [DEPO, TEXT, STORIES, RULE110], ids=lambda base: base[0])
def test_the_defaults_are_valid(base: list[str]) -> None:
    validate(config(*base))


REFUSED = {
    "run.name=": 'run.name = "": must be the name of a folder, without slashes; run.dir says where',
    "run.name=a/b": 'run.name = "a/b": must be the name of a folder',
    "run.name=..": 'run.name = "..": must be the name of a folder',
    "run.init_moments=true": "run.init_moments = true: name the run that has them: set run.",
    "model.attention_heads=6": "model.attention_heads = 6: must be a multiple of "
    "model.attention_kv_heads = 4",
    "model.delta_value_heads=6": "model.delta_value_heads = 6: must be a multiple of "
    "model.delta_key_heads = 4",
    "model.attention_head_dim=12": "model.rotary_fraction = 0.25: rotates 3 of "
    "model.attention_head_dim = 12: must be an even number, at least 2",
    "model.attention_head_dim=4": "model.rotary_fraction = 0.25: rotates 1 of model.attention",
    "model.attention_head_dim=2": "model.rotary_fraction = 0.25: rotates 0 of model.attention",
    "model.decay_init=[0.2,0.1]": "model.decay_init = [0.2, 0.1]: must have the smaller number "
    "first",
    "model.layers=[]": 'model.layers = []: name at least one block, "attention" or "delta"',
    "sleep.prelude=3 sleep.coda=2": "sleep.prelude = 3 and sleep.coda = 2 are more than the 4 b",
    "model.layers=['attention']": 'sleep.passes = 4 needs a "delta" block between sleep.prelude',
    "sleep.prelude=2 sleep.coda=1": 'sleep.passes = 4 needs a "delta" block between',
    "sleep.prelude=4": 'sleep.passes = 4 needs a "delta" block between',
    "sleep.truncate_passes=5": "sleep.truncate_passes = 5: must be at most sleep.passes = 4; 0 ",
    "parallel.pp=2 parallel.zero=0": "parallel.pp > 1 with parallel.zero = 0: ",
    "parallel.tp=4 model.attention_kv_heads=2": "model.attention_kv_heads = 2: is not divisible",
    "parallel.tp=4 model.delta_key_heads=2": "model.delta_key_heads = 2: is not divisible by para",
    "parallel.cp=4 model.delta_key_heads=2": "model.delta_key_heads = 2: is not divisible by para"
    "llel.tp = 1 x parallel.cp = 4; make it a multiple of 4, or lower parallel.cp",
    "parallel.tp=4 model.mlp_width=6": "model.mlp_width = 6: is not divisible by parallel.tp = 4; "
    "make it 8, or lower parallel.tp",
    "parallel.tp=2 model.vocab_size=7": "model.vocab_size = 7: is not divisible by parallel.tp = 2",
    "parallel.pp=5": "parallel.pp = 5: at most one stage for each of the 4 blocks of model.layers",
    "parallel.pp=2 parallel.stages=[4]": "parallel.stages = [4]: must be parallel.pp = 2 numbers",
    "parallel.pp=2 parallel.stages=[1,2]": "parallel.stages = [1, 2]: must be parallel.pp = 2 ",
    "guard.spike=1": "guard.spike = 1.0: must be more than 1 (times the running mean), or 0 ",
    "train.microbatches=5": "train.batch = 32: must be a multiple of train.microbatches = 5",
    "train.batch=1048576": "train.batch = 1048576: makes 377487360 tokens, 360 per sequence; ",
    "train.eval_batches=1048576": "train.eval_batches = 1048576: makes 12079595520 tokens, 360 p",
    "data.task=s5 s5.length=8192 train.batch=32768": "train.batch = 32768: makes 536870912 tokens, "
    "16384 per sequence",
    "data.task=text": 'data.tokenizer = "": name the file that `hypnos tokenizer',
    "data.task=stories": 'data.tokenizer = "": name the file that `hypnos tokenizer',
    "data.task=questions data.tokenizer=t.model": 'questions.path = "": name a .jsonl file with',
    "data.task=questions data.tokenizer=t questions.path=q data.repeats=2": "data.repeats = 2: "
    "repeats the context of a generated task",
}  # fmt: skip

REFUSED_OF_TEXT = {
    "data.train=[]": "data.train = []: name a folder that `hypnos data prepare` wrote, as [{path",
    "data.train=[{path=''}]": 'data.train[0].path = "": name a folder that `hypnos data prepare`',
    "data.heldout=": 'data.heldout = "": name the folder of held-out shards',
    "data.heldout_sets=[{name='a',path=''}]": 'data.heldout_sets[0].path = "": name the folder of',
    "data.heldout_sets=[{name='a/b',path='x'}]": 'data.heldout_sets[0].name = "a/b": may hold lett',
    "data.heldout_sets=[{name='a',path='x'},{name='a',path='y'}]": "data.heldout_sets[1].name = "
    '"a": is also the name of another set',
    "data.heldout_sets=[{name='a',path='s3://b/h'}] data.retry=600": "data.retry = 600.0: must be",
    "sleep.when=context": 'sleep.when = "context": every window of text has targets',
    "data.heldout=s3://b/h data.retry=600": "data.retry = 600.0: must be less than parallel",
}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [([*DEPO, *changes.split(" ")], message) for changes, message in REFUSED.items()]
    + [([*TEXT, *changes.split()], message) for changes, message in REFUSED_OF_TEXT.items()]
    + [([*STORIES, "stories.min_ops=9"], "stories.max_ops = 8: must be at least stories.min_ops")],
    ids=str,
)
def test_a_combination_that_cannot_be_trained_is_refused(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        validate(config(*overrides))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sleep.passes=1", 'model.layers=["attention"]'],  # the plain transformer baseline
        ["sleep.passes=1", "sleep.prelude=2", "sleep.coda=2"],
        ["sleep.prelude=1", "sleep.coda=2"],
        ["sleep.truncate_passes=4", "sleep.truncate_windows=9"],
        ["train.microbatches=32"],
        ["optimizer.warmup=600", "optimizer.decay=400"],
        ["train.steps=5"],  # less than the default warm-up
        ["guard.spike=0"],
        [*TEXT, "sleep.when=context", "sleep.passes=1"],
    ],
    ids=str,
)
def test_what_can_be_trained_is_not_refused(overrides: list[str]) -> None:
    validate(config(*DEPO, *overrides))
