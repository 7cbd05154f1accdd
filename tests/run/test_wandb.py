"""What Weights & Biases is given, whatever happens to the run, to wandb and to its server."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from pretrain.config.load import dump
from pretrain.errors import UserError
from pretrain.exit_status import after_signal
from pretrain.run import wandb_log
from pretrain.run.scalars import scalars
from pretrain.trainer import train
from tests.marks import slow
from tests.run.conftest import MakeConfig
from tests.run.wandb_server import server
from tests.runs import interrupted

ROOT = Path(__file__).parents[2]
SOON = 60.0  # seconds
TRAIN = [{"kind": "train", "step": n, "tokens": 10 * n, "loss": 1 / (n + 1)} for n in range(1, 7)]

needs_wandb = pytest.mark.skipif(
    find_spec("wandb") is None, reason="needs wandb: pip install -e '.[wandb]'"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline, and without this machine's login; the writer is this tree's."""
    for name in os.environ:
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")


def online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")


class Start:
    """The writer of a run, and the trainer's part in it.

    Args:
        kept: how many of the rows in metrics.jsonl were there before this start.
    """

    def __init__(self, run: Path, kept: int = 0) -> None:
        run.mkdir(exist_ok=True)
        (run / "config.toml").write_text('[run]\nname = "x"\n')
        self.path = run / "metrics.jsonl"
        lines = self.path.read_bytes().splitlines(keepends=True) if kept else []
        self.path.write_bytes(b"".join(lines[:kept]))
        given = (str(run), "project", str(self.path.stat().st_size))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pretrain.run.wandb_writer", *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = [self.process.stdout.readline()]

    def write(self, *rows: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def end(self) -> list[str]:
        """Ends it; returns all that it has said."""
        out, _ = self.process.communicate(timeout=SOON)
        assert self.process.returncode == 0
        return [*self.said, *out.splitlines(keepends=True)]


def records(run: Path) -> Iterator[Any]:
    """The records of a run's .wandb files, from the first start to the last: 7 bytes, then blocks
    of 32 KiB of (checksum, length, kind, part of a record).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(run.glob("wandb/*run-*/*.wandb"), key=lambda path: path.parent.name):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # all, or the last part
                yield Record.FromString(whole)
                whole = b""


def history(run: Path) -> list[dict[str, Any]]:
    """The rows that wandb has on disk, without its own values."""
    rows = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records(run)
        if r.WhichOneof("record_type") == "history"
    ]
    return [own(row) for row in rows]


def own(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


def expected(run: Path) -> list[dict[str, Any]]:
    """What wandb should have of metrics.jsonl."""
    found, tokens = [], {0: 0}
    for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        kind, step = row.pop("kind"), row.pop("step")
        tokens |= {step: row["tokens"]} if "tokens" in row else {}
        texts = {f"{kind}/{key}": value for key, value in row.items() if isinstance(value, str)}
        known = {"tokens": tokens[step]} if step in tokens else {}
        found.append({"step": step} | known | dict(scalars(kind, row)) | texts)
    return found


def id_of(run: Path) -> str:
    return str(json.loads((run / "wandb/run.json").read_text())["id"])


def has(run: Path) -> int:
    """Bytes of metrics.jsonl that wandb is known to have."""
    path = run / "wandb/run.json"
    return int(json.loads(path.read_text())["bytes"]) if path.exists() else 0


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


@needs_wandb
def test_wandb_has_the_rows_of_a_resumed_run(
    depo: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = depo("logged")
    config.run.wandb = "project"
    run = train(interrupted(config))
    assert history(run) == expected(run) and len(expected(run)) == 9
    runs = [r.run for r in records(run) if r.WhichOneof("record_type") == "run"]
    assert [(r.run_id, r.project, r.resume) for r in runs] == 2 * [(id_of(run), "project", True)]
    assert runs[0].display_name == "logged" and not runs[0].HasField("git")
    given = {item.key: json.loads(item.value_json) for item in runs[1].config.update}
    resolved = tomllib.loads((run / "config.toml").read_text())
    assert {key: given[key] for key in resolved} == resolved
    axes = [r.metric for r in records(run) if r.WhichOneof("record_type") == "metric"]
    assert {(axis.glob_name, axis.step_metric) for axis in axes} == {("*", "step")}
    said = [line for line in capsys.readouterr().err.splitlines() if "Weights" in line]
    assert said == [f"Weights & Biases: offline; to upload it: wandb sync {run}/wandb"]
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    assert "wandb-core" not in names


@needs_wandb
def test_only_rows_that_wandb_lacks_are_logged(tmp_path: Path) -> None:
    """By a resumed run, by a copy under another name, and after wandb's own process has died."""
    run = tmp_path / "run"
    start = Start(run)
    start.write(*TRAIN[:2], {"kind": "warning", "step": 2, "message": "a"})
    until(lambda: has(run) == start.path.stat().st_size)
    assert history(run) == expected(run)
    (core,) = psutil.Process(start.process.pid).children()
    core.kill()
    start.write(TRAIN[2])
    _, warning = start.end()
    assert warning.startswith("warning: ") and warning.endswith("; the run goes on without it\n")
    assert len(history(run)) == 3
    start = Start(run, kept=4)
    start.write(TRAIN[3])
    assert len(start.end()) == 1
    assert history(run) == expected(run)
    start = Start(run, kept=3)  # back to the checkpoint of step 2
    start.write(TRAIN[2])
    start.end()
    assert [row["step"] for row in history(run)] == [1, 2, 2, 3, 4, 3]
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    Start(copy, kept=4).end()
    assert id_of(copy) != id_of(run) and history(copy)[-4:] == expected(copy)


@needs_wandb
def test_the_server_has_one_run_of_all_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with server() as (url, received):
        online(monkeypatch, url)
        for kept in (0, 2):
            start = Start(run, kept)
            start.write(*TRAIN[kept : kept + 2])
            assert start.end() == [f"Weights & Biases: {url}/me/project/runs/{id_of(run)}\n"]
    (rows,) = received.values()
    assert [own(row) for row in rows] == expected(run)
    assert [row["_step"] for row in rows] == list(range(4))


@needs_wandb
@pytest.mark.parametrize(
    ("key", "why"), [slow(40 * "a", "connection refused"), ("", "No API key configured")]
)
def test_without_a_server_or_a_key_the_run_is_logged_offline(
    key: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    run = tmp_path / "run"
    start = Start(run)
    start.write(*TRAIN)
    warning, where = start.end()
    assert warning.startswith("warning: Weights & Biases: ") and why in warning
    assert warning.endswith("; the run is logged offline\n") and "offline" in where
    assert history(run) == expected(run)


@needs_wandb
@pytest.mark.slow  # wandb has 25 s to upload
def test_what_could_not_be_uploaded_is_found_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server() as (url, _):
        online(monkeypatch, url)
        start = Start(tmp_path / "run")
    start.write(*TRAIN)
    *_, warning = start.end()
    assert warning.startswith("warning: Weights & Biases: not all is uploaded; ")
    _, command = warning.split("to upload it: ")
    dry = [sys.executable, "-m", *shlex.split(command), "--dry-run"]
    done = subprocess.run(dry, capture_output=True, text=True, timeout=SOON, check=True)
    assert "Would sync 1 run" in done.stderr


def test_without_the_package_nothing_is_built(
    depo: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_log, "find_spec", lambda name: None)
    config = depo("refused")
    config.run.wandb = "project"
    with pytest.raises(UserError, match="wandb is not installed; run `pip install -e"):
        train(config, progress=False)
    assert not (Path(config.run.dir) / "refused").exists()


@needs_wandb
@pytest.mark.slow  # four processes, each of which imports torch
def test_a_killed_and_a_stopped_run_continue_the_same_run(depo: MakeConfig, tmp_path: Path) -> None:
    config = depo("real", steps=2000, log_every=1, checkpoint_every=20)
    config.run.wandb = "project"
    (tmp_path / "real.toml").write_text(dump(config))
    run = tmp_path / "real"

    def start(*overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch", "train", str(tmp_path / "real.toml"), *overrides],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    ends = []
    for number, host in ((signal.SIGKILL, True), (signal.SIGKILL, False), (signal.SIGTERM, False)):
        before = len(history(run))
        process = start()
        until(lambda before=before: len(history(run)) > before + 30)
        writer = psutil.Process(process.pid).children()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(writer) == 1 and len(children) == 2
        for child in children * host:  # all at once, as when the host dies
            child.suspend()
        process.send_signal(number)
        for child in children * host:
            child.kill()
        _, said = process.communicate(timeout=SOON)
        ends.append(process.returncode)
        assert said.count("Weights & Biases") == 1, said
        until(lambda children=children: not any(child.is_running() for child in children))
    assert ends == [-signal.SIGKILL, -signal.SIGKILL, after_signal(signal.SIGTERM)]
    done = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    process = start(f"train.steps={done + 3}")
    _, said = process.communicate(timeout=SOON)
    assert process.returncode == 0, said
    assert {r.run.run_id for r in records(run) if r.HasField("run")} == {id_of(run)}
    logged = history(run)
    assert all(row in logged for row in expected(run))
    assert {row["step"] for row in logged} == set(range(done + 4))
