"""The data of these runs, and the server that their ranks are forked from."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.data.small import make_corpus
from tests.layouts.processes import ROOT
from tests.resume import job  # noqa: F401  (says what the server is to import)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and a tokenizer."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session", autouse=True)
def _server() -> Iterator[None]:
    """Starts it with the environment that all ranks inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command does before it imports torch
        patch.setenv("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed looks around, and says so
        forkserver.ensure_running()
    yield
