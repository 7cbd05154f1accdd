"""Silences known messages of third-party packages on import; all others are still printed."""

from __future__ import annotations

import logging
import os

import parallel  # noqa: F401  (it filters Megatron's warnings, if it is imported before Megatron)

# When the rank that hosts the store has gone, torch prints a C++ stack trace for every connection.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# DeepSpeed's logger says this on every machine without a GPU.
EXPECTED = ("Setting accelerator to CPU",)


def quiet() -> None:
    """Call before DeepSpeed is imported: a filter outlives the logger's own set-up."""
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: not record.getMessage().startswith(EXPECTED)
    )
