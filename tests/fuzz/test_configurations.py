"""Configurations and overrides of every kind: each is trained, or refused in one line before it
uses resources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pretrain.config.load import MAX_BYTES, dump, load, parse
from pretrain.config.memory import check_memory
from pretrain.config.schema import Config, CorpusConfig, HeldoutConfig
from pretrain.evaluate import make_evaluation
from pretrain.run.prepare import make_source
from tests.fuzz.harness import damaged, fuzz, hypnos, refusal, tree

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    f"{section}.{key}": hint
    for section, cls in get_type_hints(Config).items()
    for key, hint in get_type_hints(cls).items()
}

# A run of one second, whose settings are then changed at random.
TINY = {
    "depo": {
        "model.d_model": 16,
        "model.mlp_width": 16,
        "model.attention_heads": 2,
        "model.attention_kv_heads": 2,
        "model.attention_head_dim": 8,
        "model.delta_key_heads": 2,
        "model.delta_value_heads": 2,
        "model.delta_key_dim": 8,
        "model.delta_value_dim": 8,
        "model.layers": ["delta"],
        "sleep.window": 16,
        "sleep.passes": 2,
        "sleep.when": "context",
        "data.task": "depo",
        "depo.nodes": 4,
        "depo.context": 16,
        "depo.queries": 4,
        "depo.max_hops": 2,
        "depo.name_tokens": [1, 1],
        "train.steps": 1,
        "train.batch": 2,
        "train.eval_batches": 1,
        "optimizer.warmup": 0,
    },
    "rule110": {
        "data.task": "rule110",
        "rule110.width": 8,
        "rule110.rings": 2,
        "rule110.steps": 3,
        "sleep.window": 8,
        "train.batch": 2,
        "train.eval_batches": 1,
    },
    "mqar": {"data.task": "mqar", "mqar.pairs": 8, "mqar.queries": 2, "sleep.window": 8},
    "s5": {"data.task": "s5", "s5.symbols": 3, "s5.length": 8, "sleep.window": 8},
    "brevo": {
        "data.task": "brevo",
        "brevo.nodes": 8,
        "brevo.context": 32,
        "sleep.window": 16,
        "train.batch": 2,
    },
    "recall": {
        "data.task": "recall",
        "recall.context": 512,
        "sleep.window": 128,
        "train.batch": 8,
    },
    "questions": {
        "data.task": "questions",
        "questions.path": str(ROOT / "tests/tasks/data/questions.jsonl"),
        "questions.context": 128,
        "sleep.window": 128,
        "train.batch": 8,
    },
    "stories": {
        "data.task": "stories",
        "stories.context": 512,
        "sleep.window": 512,
        "train.batch": 8,
    },
}

LARGE = [2**21, 2**31, 2**40, 2**62, 2**63 - 1]
INTEGERS = st.integers(-3, 64) | st.sampled_from([*LARGE, -1, 2**63, -(2**63), 2**64, 10**30])
FLOATS = st.sampled_from(
    [0.0, -0.0, -1.0, 0.5, 1.0, 5e-324, 1e-308, 1e-45, 1e39, 1e300, 1.7976931348623157e308, -1e308]
) | st.floats(-4, 4)
STRINGS = st.text(max_size=20) | st.sampled_from(
    [
        "",
        ".",
        "..",
        "../../x",
        "/tmp/x",
        "a/b",
        "~",
        "a" * 300,
        "x" * 50_000,
        "\0",
        "a\0b",
        "\n",
        "\x1b[2J",
        "\u2028",
    ]
    + ["muon", "delta", "/dev/zero", "/dev/null/x"]
)
TYPED: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    float: FLOATS,
    bool: st.booleans(),
    str: STRINGS,
}
TABLES: dict[Any, st.SearchStrategy[Any]] = {
    CorpusConfig: st.fixed_dictionaries({"path": STRINGS}, optional={"weight": FLOATS}),
    HeldoutConfig: st.fixed_dictionaries({"name": STRINGS, "path": STRINGS}),
}


def wild(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a setting's type that TOML can express."""
    if get_origin(hint) is Literal:
        return TYPED[type(get_args(hint)[0])] | st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        return st.tuples(*map(wild, get_args(hint))).map(list)
    if get_origin(hint) is list and get_args(hint)[0] in TABLES:
        return st.lists(TABLES[get_args(hint)[0]], max_size=3)
    if get_origin(hint) is list:
        return st.lists(wild(get_args(hint)[0]), max_size=5)
    return TYPED[hint]


# Invalid values, as written in TOML.
HARD = [
    "[" * 50_000,
    "{a=" * 50_000,
    "9" * 5000,
    "0x" + "f" * 5000,
    "1e99999",
    "nan",
    "-inf",
    "2024-13-45",
    "1979-05-27T07:32:00Z",
    "'" + "x" * 100_000,
    '"\\ud800"',
    '"\\U00110000"',
    "[[[1]]]",
    "{}",
    "[{}]",
    "[{path = 3}]",
    "1\n[train]\nsteps = 2",
    "",
    "\0",
    "=",
    "'''\n\n'''",
]


def line(place: str) -> st.SearchStrategy[tuple[str, str]]:
    """A setting and what is written for it: a value of its type, of another, or an invalid one."""
    any_type = st.sampled_from([*TYPED, list[int], list[str]]).flatmap(wild)
    written = wild(SETTINGS[place]) | any_type
    return st.tuples(st.just(place), written.map(literal) | st.sampled_from(HARD))


def literal(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {literal(v)}' for key, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str):
        return (
            '"'
            + "".join(f"\\U{ord(c):08x}" if c in '"\\' or not c.isprintable() else c for c in value)
            + '"'
        )
    return str(value).lower() if isinstance(value, bool) else repr(value)


LINES = st.lists(st.sampled_from(sorted(SETTINGS)).flatmap(line), min_size=1, max_size=3)


def check(content: bytes, overrides: list[str], path: Path) -> Config | None:
    """It loads or is refused by name; what loads can be written and read again."""
    path.write_bytes(content)
    loaded: list[Config] = []
    told = refusal(lambda: loaded.append(load(path, overrides)))
    assert (told is None) == bool(loaded)
    if told is not None:
        assert told.startswith((f"{path}: ", "override '", 'override "')), told
        return None
    assert parse(dump(loaded[0])) == loaded[0]
    return loaded[0]


@fuzz(300)
@given(lines=LINES)
@example(lines=[("optimizer.clip", "1" + "0" * 400)])  # an integer too large for a float
@example(lines=[("optimizer.clip", "0x" + "f" * 5000)])  # or to be printed
# nested tables, whose depth the parser does not limit
@example(lines=[("run.name" + ".a" * 3000, "1")])
@example(lines=[("train.steps", "9" * 5000)])
@example(lines=[("run.dir", '"\\u0000"')])
@example(lines=[("train." + "x" * 100_000, "1")])
def test_files_of_wild_settings(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    base = "data.task = 'depo'\n" if not any(place == "data.task" for place, _ in lines) else ""
    text = base + "".join(f"{place} = {value}\n" for place, value in lines)
    check(text.encode("utf-8", "surrogatepass"), [], tmp_path / "wild.toml")


@fuzz(200)
@given(lines=LINES)
@example(lines=[("train.steps", "1e99")])
@example(lines=[("run.name", "\udcff")])  # a byte of the command line that is not UTF-8
@example(lines=[("model.layers", "[" * 50_000)])
@example(lines=[("x" * 100_000, "")])
def test_wild_overrides(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    overrides = ["data.task=depo", *(f"{place}={value}" for place, value in lines)]
    check(b"", overrides, tmp_path / "wild.toml")


WHOLE = (ROOT / "configs" / "depo-small.toml").read_bytes()


@fuzz(150)
@given(content=damaged(WHOLE) | st.binary(max_size=100))
@example(content=b"\xff")
@example(content=b"[a" * 50_000)
@example(content=b"a." * (MAX_BYTES // 2 - 3) + b"a = 1")  # endlessly nested tables
@example(content=b"[" + b"a." * 4000 + b"a]\n" + b"".join(b"%d=1\n" % n for n in range(9000)))
@example(content=b"#" * (MAX_BYTES + 1))
@example(content=b"\xef\xbb\xbf" + WHOLE)
@example(content=WHOLE.decode().encode("utf-16"))
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    check(content, [], tmp_path / "damaged.toml")


def test_a_device_is_not_read_to_its_end() -> None:
    assert "/dev/zero: more than 64 KiB" in hypnos("train", "/dev/zero").error


def overrides_of(changes: dict[str, Any]) -> list[str]:
    return [f"{place}={literal(value)}" for place, value in changes.items()]


def changes(sections: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """One to three settings of these sections, arbitrary values of the right type."""
    chosen = [place for place in SETTINGS if place.startswith(sections)]
    one = st.sampled_from(chosen).flatmap(
        lambda place: st.tuples(st.just(place), wild(SETTINGS[place]))
    )
    return st.lists(one, min_size=1, max_size=3).map(dict)


@fuzz(100)
@given(
    task=st.sampled_from(sorted(TINY)),
    change=changes(
        (
            *(f"{task}." for task in TINY),
            "train.batch",
            "sleep.",
            "model.",
            "data.task",
        )
    ),
)
@example(  # more names than a machine word can count
    task="depo", change={"depo.name_tokens": [1, 12], "depo.context": 128, "sleep.window": 128}
)
@example(task="depo", change={"depo.name_tokens": [-1, 1]})
@example(task="depo", change={"depo.name_tokens": [1, 2**40]})
@example(task="rule110", change={"rule110.steps": 2**40})
@example(task="depo", change={"train.batch": 2**20, "train.eval_batches": 2**20})
@example(task="depo", change={"model.d_model": 2**20, "model.mlp_width": 2**20})
@example(task="depo", change={"model.delta_key_dim": 2**20, "model.delta_value_dim": 2**20})
def test_what_passes_can_be_laid_out(
    tmp_path: Path, model: Path, task: str, change: dict[str, Any]
) -> None:
    """The task's data fit its windows, and the model fits into memory."""
    settings = TINY[task] | {"data.tokenizer": str(model)} | change
    config = check(b"", overrides_of(settings), tmp_path / "c.toml")
    if config is None or config.data.task == "text":
        return

    def lay_out() -> None:
        source = make_source(config)
        try:
            check_memory(config)
            source.next()
            make_evaluation(config)
        finally:
            source.close()

    refusal(lay_out)


NAMES = ["../../x", "..", "/out", "a/../../b", "a" * 300, "\0", "\n", "-", "*", "\x1b[2J", " ", "é"]


def train(root: Path, change: dict[str, Any]) -> None:
    """Takes one step, which works or says in one line why not, and writes only into the run's
    folder.
    """
    settings = TINY["depo"] | {"run.dir": str(root / "runs"), "run.name": "r"} | change
    (root / "beside").mkdir(parents=True)
    (root / "beside" / "file").write_text("not to be touched")
    around = (root, root.parent, Path.cwd())
    write_config(root / "c.toml", settings)
    (root / "runs").mkdir()
    before = [
        tree(root / "beside"),
        *({path.name for path in folder.iterdir()} for folder in around),
    ]
    outcome = hypnos("train", root / "c.toml")
    assert outcome.status == 0 or outcome.error
    assert [path.name for path in (root / "runs").iterdir()] in ([], [settings["run.name"]])
    assert before == [
        tree(root / "beside"),
        *({path.name for path in folder.iterdir()} for folder in around),
    ]


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text("".join(f"{place} = {literal(value)}\n" for place, value in settings.items()))
    return path


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_runs(tmp_path: Path, name: str) -> None:
    name = f"{tmp_path}{name}" if name.startswith("/") else name  # absolute paths stay in tmp_path
    train(
        tmp_path / "in", {"run.name": name, "train.steps": 0 if name in ("-", "*", " ", "é") else 1}
    )


@fuzz(6)
@given(change=changes(("model.", "sleep.", "optimizer.", "train.", "run.seed", "parallel.")))
# more weights than fit on any machine
@example(change={"model.d_model": 2**20, "model.mlp_width": 2**20})
@example(change={"run.dir": "a\0b"})
def test_training(tmp_path_factory: pytest.TempPathFactory, change: dict[str, Any]) -> None:
    assume(change.get("sleep.passes", 0) <= 1000)  # millions take too long, but do not hang
    train(tmp_path_factory.mktemp("train"), change)
