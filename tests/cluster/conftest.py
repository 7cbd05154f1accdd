"""The cluster, and undisturbed runs which all others must equal; only under tests/cluster/run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.run_of import Run, arguments, hypnos, logs
from tests.cluster.slurm import Cluster

ROOT = Path(__file__).parents[2]
ROOMS = ("launch", "pretrain", "parallel", "tokenizer")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """n2 differs: it does not see runs/not-on-n2, and its clone of our code is stale. Each pytest
    process has a cluster of its own.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    with tempfile.TemporaryDirectory(prefix="hc-", dir="/tmp") as name:
        folder = Path(name)
        for clone in ("clone", "stale"):
            for room in ROOMS:
                shutil.copytree(ROOT / room, folder / clone / room)
        with (folder / "stale/pretrain/trainer.py").open("a") as file:
            file.write("# as of last week\n")
        hidden = folder / "runs/not-on-n2"
        hidden.mkdir(parents=True)
        view = f"mount -t tmpfs none {hidden}; mount --bind {folder}/stale {folder}/clone"
        with Cluster(folder, {"n2": view}, number) as made:
            yield made


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two ranks on this host."""
    return _alone(tmp_path_factory.mktemp("runs") / "two-ranks", 2)


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four ranks."""
    return _alone(tmp_path_factory.mktemp("runs") / "four-ranks", 4)


def _alone(run: Path, ranks: int) -> Path:
    hypnos("launch", "local", *arguments(run), "--ranks", str(ranks))
    return run


@pytest.fixture(autouse=True)
def shown() -> Iterator[None]:
    """Shows the output of a test's ranks if it fails."""
    Run.touched.clear()
    yield
    for run in Run.touched:
        print(logs(run))
