"""Where results come from: machine, commit and day.

RUN/origins.jsonl    a line per start of a run, so that results name where they were computed, not
                     where they were written
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from contextlib import suppress
from datetime import date
from pathlib import Path

from pretrain.files import append_line, parse_json

Origin = dict[str, str]  # "machine", "commit", "date"


def cores() -> int:
    """How many cores this process may use; on Linux those of its job, not all of the host's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The commit that is checked out, with "-dirty" if files have changed; empty without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except FileNotFoundError:
        return ""
    return told.stdout.strip()


def processor() -> str:
    """The model name of this machine's processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = [line for line in lines if line.startswith("model name")]
    return model[0].partition(":")[2].strip() if model else platform.machine()


def machine() -> str:
    """ "2 cores of an Intel(R) Xeon(R) Processor", or the GPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{cores()} core{'s' * (cores() > 1)}, {processor()}"


def origin() -> Origin:
    """The origin of a result that is computed here and now."""
    return {
        "machine": machine(),
        "commit": commit() or "unknown",
        "date": date.today().isoformat(),
    }


def add_origin(run: Path) -> None:
    """Records a start of the run in this folder, here and now."""
    append_line(run / "origins.jsonl", json.dumps(origin()))


def origin_of(run: Path) -> Origin:
    """The origin of a run: all machines and commits that have trained it, and the last day."""
    starts: list[Origin] = []
    for line in (run / "origins.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # cut short by a full disk
            starts.append(parse_json(line))
    starts = starts or [dict.fromkeys(("machine", "commit", "date"), "unknown")]
    each = {what: " and ".join(dict.fromkeys(s[what] for s in starts)) for what in starts[0]}
    return each | {"date": starts[-1]["date"]}
