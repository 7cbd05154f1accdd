"""The command as users see it: help with examples, one-line errors, exit statuses."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from launch import HYPNOS, __version__
from launch.cli import main, make_parser
from launch.commands.serve import _keys
from launch.commands.train import train
from pretrain.config.load import load, parse
from pretrain.config.schema import Config
from pretrain.errors import UserError

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.toml")),
]


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The command and all its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def examples(text: str) -> list[list[str]]:
    """The arguments of `hypnos` in every line that calls it, without pipes and redirections."""
    lines = text.replace("\\\n", " ")
    found = re.findall(
        r"^(?:.*\|)?[# ]*(?:torchrun \S+ --no-python |srun |mpirun [^|\n]*)?hypnos\b([^|\n]*)",
        lines,
        re.MULTILINE,
    )
    return [shlex.split(arguments, comments=True) for arguments in found]


def understand(arguments: list[str]) -> None:
    """Parses them as the command does: SystemExit or UserError if they are wrong."""
    chosen = make_parser().parse_args(arguments)
    if chosen.command is train:
        load(ROOT / chosen.config, chosen.overrides)


def hypnos(
    *arguments: str, text: bytes = b"", environment: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command in a process of its own."""
    command = [sys.executable, "-m", "launch", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, input=text, capture_output=True, env=os.environ | environment, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    "command", [p.prog.split()[1:] for p in parsers(make_parser())], ids=" ".join
)
def test_help_has_examples_that_the_command_understands(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    found = examples(capsys.readouterr().out.partition("example:\n")[2])
    assert found
    for arguments in found:
        assert arguments[: len(command)] == command
        understand(arguments)


def test_processes_of_the_command_run_nothing_of_the_folder_that_the_user_is_in(
    tmp_path: Path,
) -> None:
    """Otherwise a launch.py there would run as every rank, and a tokenizer.py would break them."""
    for name in ("launch.py", "tokenizer.py"):
        (tmp_path / name).write_text("print('the user's own')\n")
    asked, paths = [*HYPNOS, "--version"], {"PYTHONPATH": str(ROOT)}
    said = subprocess.check_output(asked, cwd=tmp_path, env=os.environ | paths, text=True)
    assert said == f"hypnos {__version__}\n"
    written = {
        path.name for path in ROOT.glob("launch/**/*.py") if '"-m", "launch"' in path.read_text()
    }
    assert written == {"__init__.py"}


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if examples(path.read_text())], ids=lambda path: path.name
)
def test_commands_in_documents_are_understood(path: Path) -> None:
    for arguments in examples(path.read_text()):
        understand(arguments)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [(["--help"], {"pretrain.config"}), (["train", "--help-settings"], set())],
    ids=str,
)
def test_help_imports_nothing_slow(arguments: list[str], settings: set[str]) -> None:
    """Nor the settings, unless they are printed."""
    code = "import sys; from launch.cli import main\n"
    code += f"try: main({arguments})\nexcept SystemExit: pass\n"
    heavy = {"torch", "deepspeed", "transformers", "sentencepiece", "rich", "numpy"}
    heavy |= settings
    check = f"assert not {heavy} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_tilde_is_the_users_folder_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"RUN", "FOLDER", "FILE", "MODEL", "SOURCE", "CONFIG"}
    actions = [action for page in parsers(make_parser()) for action in page._actions]
    paths = [action for action in actions if action.metavar in names]
    assert len(paths) > 10
    for action in paths:
        assert callable(action.type) and action.type("~/x") == tmp_path / "x", action


def test_every_setting_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help-settings"])
    assert ended.value.code == 0
    assert parse(capsys.readouterr().out) == Config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "configs/depo-small.toml", "sleep.pases=2"], "did you mean sleep.passes?"),
        (
            ["train", "configs/none.toml"],
            "configs/none.toml: cannot read the configuration: No such file or directory in ",
        ),
        (["train", "Makefile"], "Makefile: not valid TOML"),
        (["train"], "the following arguments are required: CONFIG (`hypnos train --help`"),
        (["tokenizer", "export"], "the following arguments are required: MODEL, FOLDER (`"),
        (["sleep"], "invalid choice: 'sleep'"),
        (["plan", "x.toml", "--gpus", "8", "--csv", "/nowhere/x.csv"], "/nowhere is not a folder"),
        (["eval", "runs/x", "--passes", "0"], "'0' is not a whole number from 1 (`"),
        (
            ["eval", "runs/x", "--passes", "1", "train.batch=2"],
            "'train.batch=2' is not a whole number from 1; settings go before the flags",
        ),
        (
            ["generate", "runs/x", "--prompt", "x", "--seed", str(1 << 63)],
            "is not a whole number from 0 to 2^63 - 1",
        ),
        (["generate", "runs/x", "--temperature", "hot"], "'hot' is not a number from 0"),
        (
            ["generate", "runs/x", "--promt", "a"],
            "--promt a; did you mean --prompt? (`hypnos generate --help` shows",
        ),
        (["serve", "runs/x", "--port", "70000"], "'70000' is not a port from 1 to 65535"),
        (
            ["data", "prepare", "--holdout", "x"],
            "argument --holdout: 'x' is not a share, from 0 to less than 1",
        ),
        (
            ["data", "prepare", "--holdout", "2"],
            "argument --holdout: '2' is not a share, from 0 to less than 1",
        ),
        (
            ["tokenizer", "train", "--out", "x.model"],
            "name the documents to read: either SOURCE ... or --python",
        ),
        (
            ["tokenizer", "train", "--python", "README.md", "--out", "x.model"],
            "either SOURCE ... or --python",
        ),
        (
            ["tokenizer", "train", "no-such-folder", "--out", "x.model"],
            "no-such-folder: no such file or folder",
        ),
        (["tokenizer", "encode", "no-such.model"], "no-such.model: cannot read the tokenizer"),
        (
            ["tokenizer", "encode", "Qwen/Qwen3-0.6B"],
            "download it first: hf download Qwen/Qwen3-0.6B --local-dir FOLDER\n",
        ),
        (
            ["tokenizer", "encode", "docs"],
            "docs: holds neither tokenizer.json (with tokenizer_config.json) nor tokenizer.model; ",
        ),
        (
            ["tokenizer", "train", "HuggingFaceFW/fineweb-edu", "--out", "x.model"],
            "first: hf download HuggingFaceFW/fineweb-edu --repo-type dataset --local-dir FOLDER\n",
        ),
        (["data", "stats", "no-such-folder"], "no-such-folder"),
        (["data", "verify", "no-such-folder"], "no-such-folder"),
        (["eval", "no-such-run"], "no-such-run"),
        (["doctor", "no-such-run"], "no-such-run: no checkpoints"),
        (["report", "no-such-run"], "no-such-run/metrics.jsonl: cannot read the run's metrics"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    try:
        status = main(arguments)
    except SystemExit as end:  # from argparse
        status = int(str(end))
    written, error = capsys.readouterr()
    assert (status, written) == (2, "")
    assert error.startswith("hypnos: error: ") and message in error
    assert error.count("\n") == 1 and error.endswith("\n")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("3", 0)])
def test_a_mistake_in_the_configuration_is_told_once_a_host(
    rank: str, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    try:
        status = main(["train", "nowhere.toml"])
    except SystemExit as end:
        status = int(str(end))
    assert status == 2 and len(capsys.readouterr().err.splitlines()) == lines


def test_one_process_is_enough_inside_a_launchers_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert main(["eval", str(tmp_path)]) == 2
    assert "neither a checkpoint nor a run that has one" in capsys.readouterr().err


def test_a_terminal_without_the_character_gets_its_escape() -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    status, _, error = hypnos(
        "data", "stats", "tab\N{LATIN SMALL LETTER E WITH ACUTE}", environment=ascii_only
    )
    assert status == 2 and "tab\\xe9" in error and "Traceback" not in error


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"hypnos {__version__}\n"


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "file")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and f"{tmp_path / 'file'}: File exists" in errors


def test_ctrl_c_ends_with_130_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pretrain.config.run_folder.load_run", interrupted)
    assert main(["train", "configs/depo-small.toml"]) == 130
    assert capsys.readouterr() == ("", "hypnos: interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("not the user's")

    monkeypatch.setattr("pretrain.config.run_folder.load_run", broken)
    with pytest.raises(ValueError, match="not the user's"):
        main(["train", "configs/depo-small.toml"])


def test_tokenizer_and_data_from_text_to_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands in the order in which a user with a folder of text runs them."""
    texts, model, shards = tmp_path / "texts", tmp_path / "t.model", tmp_path / "shards"
    texts.mkdir()
    for number in range(40):
        lines = [
            f"window {n} of text {number}: to sleep, perchance to dream {n * number}\n"
            for n in range(30)
        ]
        (texts / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    (texts / "latin.txt").write_bytes(b"caf\xe9")

    train = ["tokenizer", "train", str(texts), "--out", str(model), "--vocab-size", "400"]
    assert main(train) == 2
    assert "latin.txt: invalid UTF-8 at byte 3" in capsys.readouterr().err
    assert main([*train, "--skip-bad"]) == 0
    captured = capsys.readouterr()
    assert f"{model}: 400 pieces" in captured.out and "latin.txt" in captured.err
    before = model.read_bytes()
    assert main([*train[:-1], "420", "--skip-bad"]) == 2
    assert f"{model}: already exists; use it" in capsys.readouterr().err
    assert model.read_bytes() == before

    sample = tmp_path / "sample.txt"
    sample.write_text("to sleep, ↯ perchance", encoding="utf-8")
    assert main(["tokenizer", "encode", str(model), str(sample)]) == 0
    ids = [int(word) for word in capsys.readouterr().out.split()]
    from tokenizer.encode import Tokenizer

    assert Tokenizer.load(model).decode(ids) == "to sleep, ↯ perchance"

    assert main(["tokenizer", "export", str(model), str(tmp_path / "fast"), str(sample)]) == 0
    assert "identical" in capsys.readouterr().out
    assert (tmp_path / "fast" / "tokenizer.json").exists()

    prepare = [
        "data",
        "prepare",
        str(texts),
        "--skip-bad",
        "--tokenizer",
        str(model),
        "--out",
        str(shards),
    ]
    assert main([*prepare, "--holdout", "0.2"]) == 0
    written = capsys.readouterr().out
    assert f"{shards / 'train'}: " in written and f"{shards / 'heldout'}: " in written
    assert main([*prepare, "--holdout", "0.2"]) == 2
    assert "not empty" in capsys.readouterr().err

    assert main(["data", "stats", str(shards)]) == 0
    assert "heldout" in capsys.readouterr().out
    assert main(["data", "verify", str(shards)]) == 0
    tar = next((shards / "train").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1024])
    assert main(["data", "verify", str(shards)]) == 2
    assert str(tar) in capsys.readouterr().err


def test_encode_reads_standard_input_as_bytes(tmp_path: Path) -> None:
    status, _, error = hypnos("tokenizer", "encode", "no.model", text=b"\xff")
    assert status == 2 and "no.model" in error


@pytest.mark.parametrize(
    ("arguments", "slow", "said"),
    [
        (["doctor"], "launch.doctor.examine_machine", "loading torch, Megatron and DeepSpeed ..."),
        (["doctor", "x"], "launch.doctor.examine_run", "reading every byte of x ..."),
        (["data", "stats", "x"], "pretrain.data.shards.stats", "reading x ..."),
        (["tokenizer", "export", "x", "y"], "tokenizer.encode.Tokenizer.load", "exporting x ..."),
        (["serve", "."], "pretrain.inference.server.run.open_run", "opening . ..."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_takes_long_is_said_meanwhile(
    arguments: list[str],
    slow: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slowly(*_: object) -> None:
        time.sleep(0.5)
        raise UserError("enough")

    monkeypatch.setattr("pretrain.run.console.SLOW_S", 0.1)
    monkeypatch.setattr(slow, slowly)
    assert main(arguments) == 2
    assert f"{said}\nhypnos: error: enough\n" in capsys.readouterr().err


def test_serve_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "runs/first"]) == 2
    said = capsys.readouterr().err
    fix = "run `pip install -e '.[serve]'` in the clone"
    assert said == f"hypnos: error: hypnos serve needs fastapi: {fix}\n"


def test_serve_wants_keys_where_others_can_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HYPNOS_API_KEY", raising=False)
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "give --api-keys FILE" in capsys.readouterr().err
    keys = tmp_path / "keys"
    keys.write_text("\n")
    assert main(["serve", str(tmp_path), "--api-keys", str(keys)]) == 2
    assert capsys.readouterr().err.startswith(f"hypnos: error: {keys}: no key in it")


def test_keys_are_read_as_clients_can_send_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xef\xbb\xbfone\r\n two \r\n")  # as Notepad writes it
    assert _keys(keys) == {"one", "two"}
    monkeypatch.setenv("HYPNOS_API_KEY", "one \n")
    assert _keys(None) == {"one"}
    keys.write_text("schl\u00fcssel", encoding="utf-8")
    assert main(["serve", str(tmp_path), "--api-keys", str(keys)]) == 2
    assert capsys.readouterr().err.startswith(f"hypnos: error: {keys}: an HTTP header can")


def test_serve_wants_limits_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--max-tokens", "20", "--answer-limit", "10"]) == 2
    assert "--max-tokens 20 is above --answer-limit 10: lower" in capsys.readouterr().err


def test_a_store_is_no_place_for_a_local_folder(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["data", "prepare", "texts", "--tokenizer", "t.model", "--out", "s3://bucket/x"]
    with pytest.raises(SystemExit):
        main(asked)
    said = capsys.readouterr().err
    assert "--out: s3://bucket/x is not a local file or folder; use a local path" in said
