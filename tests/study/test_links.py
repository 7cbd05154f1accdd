"""Communication costs between two processes: measured between two real ones."""

from __future__ import annotations

import pytest

from pretrain.study.links import measured_links


@pytest.mark.slow
def test_two_processes_of_this_machine() -> None:
    """A message takes the processor some microseconds, a copy through the kernel less than a GB/s
    to some tens: a slip of a unit is a thousand times.
    """
    links = measured_links(cuda=False)
    assert 0.05 < links.gbs < 50 and 1e-6 < links.latency_s < 1e-2
