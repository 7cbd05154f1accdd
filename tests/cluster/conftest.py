"""The cluster, and an undisturbed run that all others must equal; only under tests/cluster/run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.run_of import Run
from tests.cluster.slurm import Cluster

ROOT = Path(__file__).parents[2]
ROOMS = ("launch", "pretrain", "parallel", "tokenizer")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """n2 differs: it does not see runs/not-on-n2, and its clone of our code is a stale one."""
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
        with Cluster(folder, {"n2": view}) as made:
            yield made


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster) -> Run:
    """Two ranks on two nodes, from the beginning to the end."""
    run = Run(cluster, "undisturbed")
    run.submit()
    run.until_over("COMPLETED")
    return run
