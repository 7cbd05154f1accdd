"""The errors of planted_errors.py can be planted: each text occurs once in the file it names."""

from __future__ import annotations

from tests.planted_errors import ROOT, missing


def test_planted_errors_are_up_to_date() -> None:
    assert not missing(ROOT), "mend tests/planted_errors.py"
