"""Marks of single parameters."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Parameters of a test that `make test` leaves out, since others are much like them."""
    return pytest.param(*values, marks=pytest.mark.slow)
