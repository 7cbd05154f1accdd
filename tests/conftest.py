"""One process, one thread, a world of one."""

from collections.abc import Iterator

import pytest
import torch

from parallel import mesh

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session", autouse=True)
def _world_of_one() -> Iterator[None]:
    mesh.initialize()
    yield
    mesh.shutdown()
