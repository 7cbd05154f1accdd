"""A tiny run, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server.serving import Serving, make_run, serving


@pytest.fixture(scope="session")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(corpus, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server for all tests that do not change it."""
    with serving(run, tmp_path_factory.mktemp("store")) as found:
        yield found


@pytest.fixture(scope="session")
def client(served: Serving) -> openai.OpenAI:
    return served.client()
