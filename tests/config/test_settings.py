"""Reading and writing configurations: strict, and exact in both directions."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.load import dump, load, override, parse
from pretrain.config.schema import Config, CorpusConfig
from pretrain.errors import UserError

FOLDER = Path(__file__).parents[2] / "configs"
OTHERS = ("sites", "scale", "hardware")  # not configurations of runs
CONFIGS = sorted(p for p in FOLDER.rglob("*.toml") if p.parent.name not in OTHERS)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a setting's type."""
    if dataclasses.is_dataclass(hint):
        fields = get_type_hints(hint)
        return st.builds(hint, **{name: values(inner) for name, inner in fields.items()})
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is list:
        return st.lists(values(get_args(hint)[0]), max_size=3)
    if get_origin(hint) is tuple:
        return st.tuples(*map(values, get_args(hint)))
    return {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(st.characters(codec="utf-8")),
    }[hint]


@given(values(Config))
@settings(deadline=None)
def test_a_dumped_configuration_reads_back_equal(config: Config) -> None:
    text = dump(config)
    assert parse(text) == config
    assert tomllib.loads(text)["train"]["steps"] == config.train.steps


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_is_valid_and_survives_a_dump(
    path: Path, tmp_path: Path
) -> None:
    config = load(path)
    copy = tmp_path / "config.toml"
    copy.write_text(dump(config), encoding="utf-8")
    assert load(copy) == config
    assert config.run.name == path.stem


def test_there_are_configurations() -> None:
    assert {path.stem for path in CONFIGS} >= {
        "text-tiny",
        "depo-small",
        "depo",
        "rule110",
        "stories",
    }


def test_text_of_every_kind_survives_a_dump() -> None:
    config = Config()
    config.run.name = "\x00\t\n\r\x7f\"\\'é\u2028😀"
    assert parse(dump(config)) == config


def test_an_empty_text_gives_the_defaults() -> None:
    assert parse("") == Config()


def test_numbers_keep_their_type() -> None:
    config = parse("[optimizer]\nclip = 2\n[train]\nsteps = 7\n")
    assert (config.optimizer.clip, type(config.optimizer.clip)) == (2.0, float)
    assert (config.train.steps, type(config.train.steps)) == (7, int)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("sleep.passes=2", "sleep.passes", 2),
        (" sleep.passes = 2 ", "sleep.passes", 2),
        ("optimizer.muon_lr=1e-3", "optimizer.muon_lr", 1e-3),
        ("optimizer.clip=3", "optimizer.clip", 3.0),
        ("data.carry=false", "data.carry", False),
        ("run.name=depo-n1", "run.name", "depo-n1"),
        ("run.name=2026", "run.name", "2026"),
        ("run.name=true", "run.name", "true"),
        ('run.name="two words"', "run.name", "two words"),
        ("data.tokenizer=/tmp/a=b.model", "data.tokenizer", "/tmp/a=b.model"),
        ("run.dir=", "run.dir", ""),
        ('model.layers=["delta"]', "model.layers", ["delta"]),
        ("model.decay_init=[0.001, 1]", "model.decay_init", (0.001, 1.0)),
        (
            'data.train=[{path="a"},{path="b",weight=2}]',
            "data.train",
            [CorpusConfig(path="a"), CorpusConfig(path="b", weight=2.0)],
        ),
    ],
)
def test_an_override_sets_one_value(override: str, place: str, value: Any) -> None:
    section, key = place.split(".")
    expected = Config()
    setattr(getattr(expected, section), key, value)
    assert parse("", overrides=[override]) == expected


def test_overrides_come_after_the_file_and_the_last_one_wins() -> None:
    config = parse(
        "[sleep]\npasses = 1\nwindow = 8\n", overrides=["sleep.passes=2", "sleep.passes=3"]
    )
    assert (config.sleep.passes, config.sleep.window) == (3, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sleep]\npases = 1", "unknown setting sleep.pases; did you mean sleep.passes?"),
        ("[slep]\npasses = 1", "unknown setting slep; did you mean sleep?"),
        ("passes = 1", "unknown setting passes; did you mean sleep.passes?"),
        ("steps = 1", "unknown setting steps; did you mean train.steps?"),
        ("[train]\npasses = 1", "unknown setting train.passes; did you mean sleep.passes?"),
        (
            "[train]\nxyzzyx = 1",
            "unknown setting train.xyzzyx; [train] has batch, checkpoint_every",
        ),
        (
            "[data]\ntrain = [{pth = 'a'}]",
            "unknown setting data.train[0].pth; did you mean data.train[0].path?",
        ),
        ("[data]\ntrain = [{path = 'a'}, {weight = 1.0}]", "data.train[1].path is missing"),
        ("sleep = 3", "sleep must be a table of settings, not 3"),
        ("[sleep]\npasses = 2.0", "sleep.passes must be a whole number, not 2.0"),
        ("[sleep]\npasses = true", "sleep.passes must be a whole number, not true"),
        ('[sleep]\npasses = "2"', 'sleep.passes must be a whole number, not "2"'),
        ("[sleep]\nwhen = 1", "sleep.when must be text in quotes, not 1"),
        ("[data]\ncarry = 1", "data.carry must be true or false, not 1"),
        (
            "[data]\ntrain = 'a'",
            'data.train must be a list of tables such as [{path = "..."}], not "a"',
        ),
        ("[data]\ntrain = ['a']", 'data.train[0] must be a table of settings, not "a"'),
        ("[optimizer]\nclip = nan", "optimizer.clip must be a finite number, not nan"),
        ("[optimizer]\nclip = inf", "optimizer.clip must be a finite number, not inf"),
        ("[optimizer]\nclip = false", "optimizer.clip must be a finite number, not false"),
        (
            "[optimizer]\nclip = 1979-05-27",
            "optimizer.clip must be a finite number, not 1979-05-27",
        ),
        (
            "[optimizer]\nbetas = [0.9]",
            "optimizer.betas must be a list of 2 values, each a finite number, not [0.9]",
        ),
        ("[depo]\nname_tokens = [1, 2.5]", "depo.name_tokens[1] must be a whole number, not 2.5"),
        ("[model]\nlayers = [1]", "model.layers[0] must be text in quotes, not 1"),
        (
            "[model]\nlayers = 'delta'",
            'model.layers must be a list, each text in quotes, not "delta"',
        ),
        ("[sleep\n", "not valid TOML"),
        ("[sleep]\npasses = 1\npasses = 2", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text, "run.toml")
    assert str(error.value).startswith(f"run.toml: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sleep.passes", "write it as section.key=value"),
        ("passes=4", "write it as section.key=value"),
        ("sleep=4", "write it as section.key=value"),
        (".passes=4", "unknown section"),
        ("slep.passes=4", "unknown section slep; did you mean sleep?"),
        ("sleep.pases=4", "unknown setting sleep.pases; did you mean sleep.passes?"),
        ("sleep.passes.n=4", "unknown setting sleep.passes.n; did you mean sleep.passes?"),
        ("sleep.passes=four", 'sleep.passes must be a whole number, not "four"'),
        ("sleep.passes=4\nsleep.window=2", "sleep.passes must be a whole number"),
        ("sleep.passes=", 'sleep.passes must be a whole number, not ""'),
        ("model.layers=[delta]", "not valid TOML; inside a list or table, text needs quotes"),
        (
            'data.train=[{path="a", weight=.5}]',
            "not valid TOML; inside a list or table, text needs quotes, and .5 is 0.5",
        ),
        (
            "data.train=runs/corpus",
            'data.train must be a list of tables such as [{path = "..."}], not "runs/corpus"',
        ),
        (
            "data.train=[{pth='a'}]",
            "unknown setting data.train[0].pth; did you mean data.train[0].path?",
        ),
    ],
)
def test_a_bad_override_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse("", overrides=[override])
    assert str(error.value).startswith(f"override {override!r}: {message}")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes('[run]\nname = "schläft"'.encode("latin-1"))
    for path, message in (
        (tmp_path / "none.toml", "cannot read the configuration: No such file"),
        (tmp_path, "cannot read the configuration: Is a directory"),
        (latin, "not UTF-8 text (byte 18); save it as UTF-8"),
    ):
        with pytest.raises(UserError) as error:
            load(path)
        assert str(error.value).startswith(f"{path}: {message}")


def test_a_run_in_the_place_of_its_configuration_is_told_the_file(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-2"
    checkpoint.mkdir(parents=True)
    own = tmp_path / "config.toml"
    for path in (own, checkpoint / "config.toml"):
        path.write_text("")
    for folder in (tmp_path, checkpoint):  # that of a checkpoint does not say where the run is now
        with pytest.raises(UserError, match=rf"Is a directory; to resume that run, name {own}$"):
            load(folder)


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=f"^none.toml: cannot read the configuration: .* in {tmp_path}$"
    ):
        load("none.toml")


def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "c.toml"
    path.write_text('[stories]\npath = "~/a"\n[data]\nheldout = "b/~"\n[run]\nname = "~"\n')
    paths = ["data.tokenizer=~/t.model", "run.dir=~", "data.train=[{path='~/c'}]"]
    config = load(path, ["data.task=stories", *paths])
    assert (config.stories.path, config.data.heldout) == ("/home/me/a", "b/~")
    assert (config.run.dir, config.run.name) == ("/home/me", "~")
    assert (config.data.tokenizer, config.data.train[0].path) == (
        "/home/me/t.model",
        "/home/me/c",
    )


def test_overrides_of_a_configuration_leave_it_as_it_is() -> None:
    config = parse("", overrides=["data.task=depo"])
    changed = override(config, ["sleep.passes=2", "data.heldout=~"])
    assert changed.sleep.passes == 2 and "~" not in changed.data.heldout
    assert config == parse("", overrides=["data.task=depo"])
    with pytest.raises(UserError, match=r"^sleep\.passes = 0: must be at least 1$"):
        override(config, ["sleep.passes=0"])


def test_load_validates_and_names_the_file() -> None:
    path = CONFIGS[0]
    with pytest.raises(UserError, match=f"^{path}: sleep.passes = 0: must be at least 1$"):
        load(path, ["sleep.passes=0"])


def test_a_value_that_is_no_number_is_never_dumped_as_one() -> None:
    """Infinity can be written in TOML, but `parse` refuses it; nothing in a valid configuration is
    infinite.
    """
    config = Config()
    config.optimizer.clip = math.inf
    with pytest.raises(UserError, match="finite"):
        parse(dump(config))
