"""Where numbers come from: the machine, the commit, the day."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from pathlib import Path


def commit() -> str:
    """What is checked out, "-dirty" after it if files differ from that; empty without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return ""
    return told.stdout.strip()


def processor() -> str:
    """The model of this machine's."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = [line for line in lines if line.startswith("model name")]
    return model[0].partition(":")[2].strip() if model else platform.machine()


def machine() -> str:
    """ "2 cores of an Intel(R) Xeon(R) Processor", or the GPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores, {processor()}"


def origin() -> dict[str, str]:
    """What a result says of itself: "machine", "commit", "date"."""
    return {
        "machine": machine(),
        "commit": commit() or "unknown",
        "date": date.today().isoformat(),
    }
