"""Silences what third-party packages say on import, by name: anything else is still heard."""

from __future__ import annotations

import logging
import os

import parallel  # noqa: F401  (it filters Megatron's warnings, if it is imported before Megatron)

# Where the rank that keeps the launcher's store has gone, torch prints stacks of C++ frames for
# every connection.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# DeepSpeed's logger says this on every machine without a GPU.
EXPECTED = ("Setting accelerator to CPU",)


def quiet() -> None:
    """Call before DeepSpeed is imported: a filter outlives the logger's own set-up."""
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: not record.getMessage().startswith(EXPECTED)
    )
