"""What each setting declares: its check, its description, and whether a resume may change it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from parallel.setting import setting
from pretrain.config.fields import check, values
from pretrain.config.load import parse
from pretrain.config.reference import WIDTH, page, section, text
from pretrain.config.resume import changes, check_unchanged
from pretrain.config.schema import Config, CorpusConfig
from pretrain.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sleep.passes=0", "sleep.passes = 0: must be at least 1"),
        ("rule110.width=2", "rule110.width = 2: must be at least 3"),
        ("run.seed=-1", "run.seed = -1: must be at least 0"),
        ("optimizer.clip=0", "optimizer.clip = 0.0: must be more than 0"),
        ("optimizer.clip=-1", "optimizer.clip = -1.0: must be more than 0"),
        ("optimizer.clip=1e16", "optimizer.clip = 1e+16: must be at most 1e+15"),
        ("guard.spike=-2", "guard.spike = -2.0: must be at least 0"),
        ("optimizer.momentum=1", "optimizer.momentum = 1.0: must be at least 0 and less than 1"),
        ("optimizer.final_lr=1.5", "optimizer.final_lr = 1.5: must be at least 0 and at most 1"),
        ("model.rotary_fraction=0", "model.rotary_fraction = 0.0: must be more than 0 and at most"),
        ("optimizer.betas=[0.9,1]", "optimizer.betas[1] = 1.0: must be at least 0 and less than 1"),
        ("model.decay_init=[0,0.1]", "model.decay_init[0] = 0.0: must be more than 0"),
        ("parallel.stages=[4,0]", "parallel.stages[1] = 0: must be at least 1"),
        ("parallel.timeout=1e10", "parallel.timeout = 10000000000.0: must be more than 0 and at m"),
        ("data.train=[{path='a'},{path='b',weight=0}]", "data.train[1].weight = 0.0: must be at l"),
        ("data.train=[{path='a',weight=1e9}]", "data.train[0].weight = 1000000000.0: must be at l"),
        ("sleep.eviction=soft", 'sleep.eviction = "soft": must be "hard" or "sliding"'),
        ("parallel.zero=7", "parallel.zero = 7: must be 0 or 1 or 2 or 3"),
        ("model.layers=['delta','mamba']", 'model.layers[1] = "mamba": must be "attention" or "d'),
        ("run.dir=a\x85b", "run.dir = 'a\\x85b': holds a control character: remove it"),
        ("data.tokenizer=\udcff", "data.tokenizer = '\\udcff': holds a control character: remove"),
        ("data.train=[{path='a\u2028'}]", "data.train[0].path = 'a\\u2028': holds a control chara"),
    ],
)
def test_a_value_that_its_field_does_not_allow_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(parse("", overrides=[override]))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "override",
    [
        "sleep.passes=1",
        "model.delta_conv_width=2",
        "run.seed=9223372036854775807",
        "model.rotary_fraction=1",
        "optimizer.momentum=0",
        "optimizer.final_lr=0",
        "optimizer.weight_decay=0",
        "data.train=[{path='a',weight=1e-6}]",
        "parallel.zero=0",
    ],
)
def test_a_bound_itself_is_allowed(override: str) -> None:
    check(parse("", overrides=[override]))


# Repeats what the fields declare, so that neither can change without the other.
CHANGEABLE = {
    "run.name", "run.dir", "run.wandb",
    "data.train", "data.heldout", "data.heldout_sets", "data.tokenizer",
    "stories.path", "questions.path", "questions.heldout", "questions.group",
    "data.cache", "data.cache_gb", "data.retry",
    "parallel.tp", "parallel.cp", "parallel.cp_delta", "parallel.pp", "parallel.stages",
    "parallel.sequence_parallel", "parallel.zero", "parallel.offload", "parallel.recompute",
    "parallel.cuda_graphs", "parallel.timeout",
    "train.steps", "train.microbatches", "train.log_every", "train.eval_every",
    "train.eval_batches", "train.checkpoint_every", "train.keep", "train.keep_every",
    "train.profile", "guard.limit", "guard.then", "guard.rollbacks", "optimizer.decay",
    "optimizer.decay_shape",
}  # fmt: skip


@pytest.mark.parametrize("place", [place for place, _, _ in values(Config())])
def test_what_a_run_that_goes_on_may_change(place: str) -> None:
    before, now = Config(), Config()
    section, name = place.split(".")
    setattr(getattr(now, section), name, "another value")
    if place in CHANGEABLE:
        check_unchanged(Path("step-3"), before, now, "a fix")
        return
    with pytest.raises(UserError) as error:
        check_unchanged(Path("step-3"), before, now, "a fix")
    said = f'step-3 cannot be used with {place} = "another value" (was '
    assert str(error.value).startswith(said) and str(error.value).endswith(": a fix")


def test_what_has_changed_is_said_as_it_is_written() -> None:
    """Also tables; of long values only what differs."""
    before, now = Config(), Config()
    before.train.precision, now.train.precision = "fp32", "bf16"
    before.data.train, now.data.train = (
        [CorpusConfig(path="web", weight=w), CorpusConfig(path="books")] for w in (0.5, 0.25)
    )
    assert changes(before, now) == (
        'data.train = [{path = "web", weight = 0.25}, {path = "books", weight = 1.0}] '
        '(was [{path = "web", weight = 0.5}, {path = "books", weight = 1.0}]), '
        'train.precision = "bf16" (was "fp32")'
    )
    now.train.precision = "fp32"
    for config, name in ((before, "books"), (now, "code")):
        names = [*(f"corpus-{i}" for i in range(20)), name, *(f"more-{i}" for i in range(20))]
        config.data.train = [CorpusConfig(path=each) for each in names]
    said = changes(before, now)
    assert said.startswith("data.train = ...")
    assert 'path = "code", weight' in said and 'path = "books", weight' in said
    assert "corpus-19" in said and "corpus-18" not in said and len(said) < 250
    now.data.train = now.data.train[:1]  # only one of the two is long
    assert changes(before, now).startswith('data.train = [{path = "corpus-0", weight = 1.0}] (was')


def test_the_reference_is_a_configuration_of_every_default() -> None:
    assert parse(text()) == Config()
    assert {f"{s}.{k}" for s, table in tomllib.loads(text()).items() for k in table} == {
        place for place, _, _ in values(Config())
    }


def test_the_reference_says_all_that_stands_with_a_setting() -> None:
    said = text()
    assert "# N, all passes over a window; 1 is the plain hybrid with eviction\npasses = 4" in said
    assert 'when = "always"  # "always", "context", "awake"\n' in said
    assert "steps = 1000  # whole number, at least 1; may change on resume\n" in said
    assert 'dir = "runs"  # path; may change on resume\n' in said
    assert "#     weight = 1.0: share of the tokens drawn from it, relative to the others" in said
    assert max(map(len, said.splitlines())) <= WIDTH


@dataclass
class Coins:
    """What was paid."""

    coin: Literal["florin", "guilder", "groschen", "heller", "kreuzer", "pfennig", "taler"] = (
        setting("florin", "the largest", changes=True)
    )


def test_values_that_do_not_fit_behind_their_setting_are_above_it() -> None:
    lines = section("coins", Coins).splitlines()
    assert lines[3] == "# the largest" and lines[-1] == 'coin = "florin"'
    assert max(map(len, lines)) <= WIDTH
    above = " ".join(line.removeprefix("# ") for line in lines[4:-1])
    assert above.startswith('"florin", ') and above.endswith('"taler"; may change on resume')


def test_the_page_of_settings_is_what_the_fields_say() -> None:
    """If it fails: python -m pretrain.config.reference > docs/settings.md"""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page()
