"""A rank's part of several preflights, each with another fault; for `run_ranks`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unittest import mock

from launch.cli import main
from launch.preflight import check, folder, measure, rates, report, survey
from launch.world import find
from pretrain.config.schema import Config
from pretrain.errors import UserError

ROOT = Path(__file__).parents[2]


class Told(NamedTuple):
    """What a rank was told by one preflight."""

    error: str
    status: int
    said: list[str]
    kept: dict[str, Any]  # preflight.json


def fly(
    config: Config, hosts: Sequence[str], faults: Sequence[str], victims: Collection[int]
) -> list[Told]:
    """Runs this rank's preflights, one per fault; the victims have the fault.

    Args:
        hosts: one per rank.
    """
    rank = int(os.environ["RANK"])
    os.environ["SLURMD_NODENAME"] = hosts[rank]
    survey.REPORT_S, measure.MEASURE_S, folder.PATIENCE_S = 2.0, 2.0, 0.3
    measure.LONG_S = 0.5
    told = []
    for attempt, fault in enumerate(faults):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)  # its own keys in the store
        with _planted(fault if rank in victims else ""):
            told.append(_told(config))
    return told


def doctor(hosts: Sequence[str]) -> None:
    """Runs `hypnos doctor --ranks` on this rank."""
    os.environ["SLURMD_NODENAME"] = hosts[int(os.environ["RANK"])]
    assert main(["doctor", "--ranks", str(ROOT / "configs/depo-small.toml")]) == 0


def _told(config: Config) -> Told:
    said, error, status = list[str](), "", 0
    try:
        found = check(config, find(os.environ), said.append)
        said += found.lines() if found else ()
    except UserError as caught:
        error, status = str(caught), caught.status
    kept = {}
    with suppress(FileNotFoundError):  # rank 0 may be in its next attempt and have removed it
        kept = json.loads((Path(config.run.dir) / config.run.name / "preflight.json").read_text())
    return Told(error, status, said, kept)


def _planted(fault: str) -> AbstractContextManager[Any]:
    match fault:
        case "stale clone":
            return mock.patch("pretrain.run.facts.code_version", lambda: "stale")
        case "another disk":
            return mock.patch.object(folder.Meeting, "folder", lambda *_: Path("/mnt/own/tokens"))
        case "reports nothing":
            return mock.patch.object(report, "look", lambda *_: time.sleep(3600))
        case "hangs":
            return mock.patch.object(rates, "measure", _hangs)
        case "stops":
            return mock.patch.object(survey, "measure", _stops)
        case "breaks":
            return mock.patch.object(rates, "measure", _breaks)
    return mock.patch.dict(os.environ)


def _hangs(_: object, stage: Any) -> None:
    stage("summing a tensor over all ranks")
    time.sleep(3600)


def _stops(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _breaks(*_: object) -> NoReturn:
    raise RuntimeError("uncorrectable ECC error encountered")
