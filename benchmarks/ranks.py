"""Runs a module on several ranks of this machine, and returns what they have measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def on_ranks(ranks: int, module: str, *arguments: str, returns_freed: bool) -> Any:
    """Starts MODULE ARGUMENTS... FILE on each rank; returns the JSON that rank 0 writes to FILE.

    Args:
        returns_freed: glibc returns freed tensors at once, so that resident memory equals what is
            held; this costs time.
    """
    settings = {"OMP_NUM_THREADS": "1"}
    if returns_freed:
        settings["MALLOC_MMAP_THRESHOLD_"] = "65536"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", module, *arguments]
    with tempfile.NamedTemporaryFile("r", suffix=".json") as found:
        root, environment = Path(__file__).parents[1], os.environ | settings
        subprocess.run([*command, found.name], check=True, env=environment, cwd=root)
        return json.load(found)
