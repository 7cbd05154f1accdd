"""One process, one thread, a world of one; which tests are slow; and a small corpus."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parallel import mesh
from tests.data.small import make_corpus
from tests.data.texts import make_texts
from tokenizer.encode import Tokenizer
from tokenizer.train import train

TESTS = Path(__file__).parent
# Folders and files of tests that start several processes: `make test` runs only their smoke tests.
SLOW = (
    "layouts", "resume", "run/test_ranks.py", "run/test_wrong_numbers.py",
    "launch/test_preflight_ranks.py", "server/test_kills.py", "inference/test_ranks.py",
    "convert/test_import_ranks.py", "data/test_processes.py", "fuzz/test_processes.py",
    "study/test_branch.py", "study/test_scale_runs.py",
    "study/test_recipes.py", "data/test_object_store.py",
)  # fmt: skip

# Tests that need more than `make setup` installs: root and Slurm (tests/cluster/run), a browser
# (`make test-browser`).
NEEDS = {"cluster": "HYPNOS_CLUSTER", "browser": "HYPNOS_BROWSER"}
collect_ignore = [folder for folder, given in NEEDS.items() if not os.environ.get(given)]

# Failed assertions in helpers show values, as those in tests do.
pytest.register_assert_rewrite("tests.cluster", "tests.resume")

torch.set_num_threads(1)  # tensors are tiny: more threads would only wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what SLOW names, except what is marked as smoke."""
    for item in items:
        slow = any(item.path.is_relative_to(TESTS / place) for place in SLOW)
        if slow and not item.get_closest_marker("smoke"):
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def _world_of_one() -> Iterator[None]:
    mesh.initialize()
    yield
    mesh.shutdown()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train(make_texts(60, seed=9), path, vocab_size=320)
    return path


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and shards; half of the documents are many sequences long."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))
