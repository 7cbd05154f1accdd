"""The cluster, and an undisturbed run that all others must equal; only under tests/cluster/run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.run_of import Run
from tests.cluster.slurm import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="hc-", dir="/tmp") as folder,
        Cluster(Path(folder), {}) as made,
    ):
        yield made


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster) -> Run:
    """Two ranks on two nodes, from the beginning to the end."""
    run = Run(cluster, "undisturbed")
    run.submit()
    run.until_over("COMPLETED")
    return run
