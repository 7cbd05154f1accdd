"""What runs on a GPU is compared with the CPU. Tests that need CUDA are left out, by name, without.

`benchmarks/gpu.sh tests` runs them; so does `pytest tests/gpu`, on a CPU as far as possible.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.kernels import use_fastest

HERE = Path(__file__).parent
LEFT_OUT = pytest.StashKey[list[str]]()

if torch.cuda.is_available():
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # there are enough processes
    use_fastest(Path(tempfile.mkdtemp()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks all as slow; with CUDA, puts the longest first; without, leaves out those marked cuda.

    Warnings are not errors here: torch.compile raises some, and only keeps them from being shown.
    """
    here = [item for item in items if item.path.is_relative_to(HERE)]
    for item in here:
        item.add_marker("slow")
        item.add_marker(pytest.mark.filterwarnings("default"))
    if torch.cuda.is_available():
        # xdist hands out two at a time: the longest begin at once, each in a worker of its own
        longest = [item for item in here if item.path.name == "test_training.py"]
        for place, item in enumerate(longest):
            items.remove(item)
            items.insert(2 * place, item)
        return
    out = [item for item in here if item.get_closest_marker("cuda")]
    config.stash[LEFT_OUT] = sorted({item.nodeid.partition("[")[0] for item in out})
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names what was left out."""
    for name in terminalreporter.config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(f"left out on a CPU: {name}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; without one the CPU, which is then compared with itself."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
