"""The CPU's peak rate, which utilisation is relative to."""

from __future__ import annotations

import torch

from pretrain.run.peak import peak


def test_the_peak_of_this_processor_is_plausible() -> None:
    measured = peak(torch.device("cpu"))
    assert measured is not None and 1e8 < measured < 1e14
