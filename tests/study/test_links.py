"""Communication costs, measured between two real processes."""

from __future__ import annotations

import pytest

from pretrain.study.links import measured_links


@pytest.mark.slow
def test_two_processes_of_this_machine() -> None:
    """A message takes microseconds of CPU time, copies through the kernel run at less than one to
    some tens of GB/s: a wrong unit would be a factor of a thousand.
    """
    links = measured_links(cuda=False)
    assert 0.05 < links.gbs < 50 and 1e-6 < links.latency_s < 1e-2
