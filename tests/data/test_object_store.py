"""Shards on a real S3 server, behind a network that delays, cuts off and refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from launch import cli
from parallel import mesh
from pretrain.config.load import dump
from pretrain.config.schema import Config, CorpusConfig, DataConfig
from pretrain.data import splits, store
from pretrain.data.index import read_index
from pretrain.data.store import StorePath, place
from pretrain.errors import StorageFailed, UserError
from pretrain.run.facts import facts
from pretrain.trainer import train
from tests.data.stores import ENVIRONMENT, Proxy, client, s3_server, upload
from tests.data.test_stream import open_stream, same, take
from tests.ranks import run_ranks
from tests.run.conftest import text_runs
from tests.runs import assert_same, rows, tensors

ROOT = Path(__file__).parents[2]
BUCKET, SHARDS = "corpus", "s3://corpus"
PIECE = 200  # bytes: documents span several
STEPS = 30


@dataclass
class There:
    """`corpus`'s shards on the server, at SHARDS."""

    proxy: Proxy
    port: int  # of the server itself


@pytest.fixture(scope="module")
def server(corpus: Path) -> Iterator[There]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as port:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        upload(port, corpus / "shards", BUCKET)
        proxy = Proxy(port)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setattr(splits, "PIECE", PIECE)
        patch.setattr(store, "FIRST_PAUSE_S", 0.02)
        patch.setattr(store, "QUIET_S", 0.0)
        yield There(proxy, port)
        proxy.close()


@pytest.fixture
def there(server: There) -> There:
    server.proxy.trouble = lambda request, number: ""
    server.proxy.requests.clear()
    StorePath._whole.clear()  # as in a new process
    return server


@pytest.fixture
def local(corpus: Path) -> DataConfig:
    return DataConfig(
        tokenizer=str(corpus / "small.model"),
        train=[CorpusConfig(path=str(corpus / "shards"))],
        heldout=str(corpus / "shards"),
        windows=2,
    )


@pytest.fixture
def stored(local: DataConfig, tmp_path: Path) -> DataConfig:
    """`local`, whose shards are on the server."""
    return on_server(local, tmp_path / "cache")


def on_server(data: DataConfig, cache: Path) -> DataConfig:
    return replace(
        data, train=[CorpusConfig(path=SHARDS)], heldout=SHARDS, cache=str(cache), retry=10
    )


@pytest.mark.smoke
def test_a_stream_from_s3_and_over_http_is_that_of_a_folder(
    there: There, local: DataConfig, stored: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = take(open_stream(local), 5)
    assert all(map(same, take(open_stream(stored), 5), expected))
    web = replace(stored, train=[CorpusConfig(path=f"{there.proxy.url}/{BUCKET}")])
    assert all(map(same, take(open_stream(replace(web, cache=stored.cache + "2")), 5), expected))
    there.proxy.trouble = lambda request, number: ("503", "cut", "0.1", "")[number % 4]
    shaken = replace(stored, cache=stored.cache + "3", retry=30)
    StorePath._whole.clear()
    assert all(map(same, take(open_stream(shaken), 5), expected))
    said = capsys.readouterr().err
    for why in (r"\(Slow down\)", r"\(Response payload is not completed: .*\)"):
        told = rf"{SHARDS}/train/\S+: attempt \d failed {why}; will retry for \d+ s"
        assert re.search(told, said)


def test_an_answer_that_does_not_come_is_asked_for_again(
    there: There,
    local: DataConfig,
    stored: DataConfig,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = take(open_stream(local), 5)
    monkeypatch.setattr(store, "ATTEMPT_S", 1.0)
    hung = list[str]()

    def hang(request: str, number: int) -> str:
        if not request.startswith("GET") or request in hung:
            return ""
        hung.append(request)
        return "20"

    there.proxy.trouble = hang
    began = time.monotonic()
    patient = replace(stored, cache=stored.cache + "4", retry=30)
    StorePath._whole.clear()
    assert all(map(same, take(open_stream(patient), 5), expected))
    assert len(hung) > 2 and time.monotonic() - began < 20
    assert re.search(r"attempt 1 failed \(.*\); will retry for \d+ s", capsys.readouterr().err)


def test_a_run_over_s3_that_is_killed_is_the_run_over_a_folder(
    there: There, corpus: Path, tmp_path: Path
) -> None:
    make = text_runs(corpus, tmp_path)
    whole = train(make("whole", steps=STEPS), progress=False)
    config = make("stored", steps=STEPS)
    config.data = replace(on_server(config.data, tmp_path / "cache"), retry=100)
    (tmp_path / "config.toml").write_text(dump(config))
    there.proxy.trouble = lambda request, number: ("503", "", "cut", "", "0.2", "")[number % 6]
    command = [sys.executable, "-m", "launch", "train", str(tmp_path / "config.toml")]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    run = tmp_path / "stored"
    deadline = time.monotonic() + 90
    while not list(run.glob("checkpoints/step-*")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert not list(run.glob(f"checkpoints/step-{STEPS}"))
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert_same(tensors(run, STEPS), tensors(whole, STEPS), 0.0)
    assert rows(run) == rows(whole)
    assert cli.main(["eval", str(run), "--passes", "1"]) == 0
    assert cli.main(["data", "verify", SHARDS]) == 0
    assert cli.main(["data", "stats", SHARDS]) == 0


def read_here(config: Config, piece: int) -> tuple[dict[str, str], list[list[int]]]:
    """A rank's part: returns what is compared before a run begins, and its rows."""
    splits.PIECE = piece
    mesh.initialize()
    stream = open_stream(config.data, rank=mesh.dp_rank(), ranks=mesh.dp_size())
    batches = take(stream, 4)
    return facts(config), [batch.tokens.flatten().tolist() for batch in batches]


def test_ranks_of_a_host_bring_each_piece_once_and_compare_what_they_read(
    there: There, local: DataConfig, stored: DataConfig, corpus: Path, tmp_path: Path
) -> None:
    config = text_runs(corpus, tmp_path)("ranks")
    config.data = stored
    there.proxy.trouble = lambda request, number: "0.1"  # so that both want what is being fetched
    env = {**ENVIRONMENT, "AWS_ENDPOINT_URL": there.proxy.url}
    (mine, first), (theirs, second) = run_ranks(2, read_here, config, PIECE, env=env)
    assert mine == theirs and len(mine["the train shards s3://corpus"]) == 12
    expected = take(open_stream(local), 4)
    assert [a + b for a, b in zip(first, second, strict=True)] == [
        batch.tokens.flatten().tolist() for batch in expected
    ]
    pieces = Counter(r for r in there.proxy.requests if "GET" in r and "bytes=" in r)
    assert len(pieces) > 10 and set(pieces.values()) == {1}


def test_an_object_that_vanishes_is_named_and_a_run_goes_on_when_it_is_back(
    there: There, local: DataConfig, stored: DataConfig, corpus: Path
) -> None:
    expected = take(open_stream(local), 30)
    stream = open_stream(replace(stored, retry=5))
    got = [stream.next()]
    fs, shard = client(there.port), f"{BUCKET}/train/shard-000000.tar"
    content = fs.cat(shard)
    fs.rm(shard)
    with pytest.raises(UserError) as caught:
        while len(got) < 30:
            got.append(stream.next())
    told = str(caught.value)
    assert re.match(rf"s3://{shard}: cannot be read: \d+ attempts? in \d+ s, the last: ", told)
    assert told.endswith("key does not exist.; put it back, or name another copy of these shards")
    state = stream.state_dict()
    stream.close()
    fs.pipe(shard, content)
    again = open_stream(stored)
    again.load_state_dict(state)
    got += take(again, 30 - len(got))
    assert all(map(same, got, expected))


def test_wrong_credentials_and_a_store_that_is_not_there_are_told(
    there: There, capsys: pytest.CaptureFixture[str]
) -> None:
    there.proxy.trouble = lambda request, number: "503"
    StorePath._whole.clear()
    with pytest.raises(StorageFailed, match="start again when the store answers") as failed:
        read_index(place(f"{SHARDS}/train", 1))
    assert failed.value.status == 74  # with which Slurm restarts the job
    there.proxy.trouble = lambda request, number: "403"
    assert cli.main(["data", "verify", SHARDS]) == 2
    assert f"{SHARDS}/index.json: cannot be read: 1 attempt in 0 s" in (
        told := capsys.readouterr().err
    )
    assert "check the credentials" in told
