"""A pytest mark for single parameters of a test."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Parameters of a test that `make test` leaves out, as others are much like them."""
    return pytest.param(*values, marks=pytest.mark.slow)
