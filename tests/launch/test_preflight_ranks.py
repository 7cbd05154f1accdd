"""Preflights of real ranks: what differs, hangs or breaks is named by rank and host, on all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.preflight.seat import FILE
from pretrain.config.schema import Config, DataConfig, RunConfig
from pretrain.exit_status import UNFIT
from tests.launch.flight import Told, doctor, fly
from tests.ranks import Ranks, run_ranks

HOSTS = ["n0", "n0", "n1", "n1"]


def make(folder: Path) -> Config:
    return Config(run=RunConfig(name="run", dir=str(folder)), data=DataConfig(task="depo"))


@pytest.mark.smoke
def test_what_differs_is_told_to_all_and_a_sound_job_goes_on(tmp_path: Path) -> None:
    faults = ["stale clone", "another disk", ""]
    ranks = run_ranks(4, fly, make(tmp_path), HOSTS, faults, {2, 3})
    for number, what in (
        (0, "ranks 2-3 on n1: the version of Hypnos (a hash of its sources) is "),
        (1, "ranks 2-3 on n1: /mnt/own is not the folder that rank 0 sees"),
    ):
        told = [rank[number] for rank in ranks]
        assert len({each.error for each in told}) == 1
        assert told[0].error.startswith(f"preflight: {what}"), told[0].error
        assert {each.status for each in told} == {UNFIT}
        assert told[0].kept["bad_hosts"] == ["n1"]
        assert told[0].kept["problems"][0].startswith(what)
    sound = [rank[2] for rank in ranks]
    assert [each.error for each in sound] == [""] * 4
    assert sound[0].said[-1].startswith("preflight: 4 ranks on 2 hosts, ")
    assert not any(each.said for each in sound[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert not (tmp_path / "run" / FILE).exists()


def test_the_doctor_shows_a_table_of_the_hosts(tmp_path: Path) -> None:
    ranks = Ranks(2, doctor, ["n0", "n1"], folder=tmp_path)
    try:
        ranks.finish(40)
    finally:
        ranks.kill()
    lines = ranks.output(0).splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("  n")] == [
        ["n0", "0", "cpu"],
        ["n1", "1", "cpu"],
    ]
    assert lines[-1].startswith("preflight: 2 ranks on 2 hosts, ") and not ranks.output(1)


def test_a_rank_that_reports_nothing_is_named(tmp_path: Path) -> None:
    told = end(tmp_path, "reports nothing", victims={2}, alive=[0, 1, 3])
    for each in told:
        assert each[0].error.startswith(
            "preflight: rank 2 on n1: connected, but has not reported in 2 s"
        )
        assert each[0].kept["bad_hosts"] == ["n1"]


def test_a_rank_that_breaks_is_named(tmp_path: Path) -> None:
    """Not the ranks whose connections it closes."""
    for each in end(tmp_path, "breaks", victims={2}, alive=[0, 1, 2, 3]):
        line = "rank 2 on n1: failed while joining the process group: uncorrectable ECC error"
        assert each[0].error.startswith(f"preflight: {line}"), each[0].error


def test_a_rank_that_hangs_is_named_and_all_end(tmp_path: Path) -> None:
    """Also ranks inside a collective: their own threads end them."""
    ranks = Ranks(4, fly, make(tmp_path), HOSTS, ["hangs"], {2}, folder=tmp_path)
    try:
        statuses = ranks.wait(40)
    finally:
        ranks.kill()
    assert statuses == [UNFIT] * 4, ranks.log()
    for rank in range(4):
        line = "rank 2 on n1: is still summing a tensor over all ranks after 2 s"
        assert f"hypnos: error: preflight: {line}" in ranks.output(rank)
    assert json.loads((tmp_path / "run" / FILE).read_text())["bad_hosts"] == ["n1"]


def test_a_rank_that_stops_is_named(tmp_path: Path) -> None:
    """It no longer reports anything, and the others end without it."""
    ranks = Ranks(4, fly, make(tmp_path), HOSTS, ["stops"], {2}, folder=tmp_path)
    try:
        for rank in (0, 1, 3):
            ranks.processes[rank].join(60)
            assert ranks.processes[rank].exitcode == UNFIT, ranks.log()
            line = "rank 2 on n1: has reported no progress for 2 s; its process is stopped"
            assert f"hypnos: error: preflight: {line}" in ranks.output(rank)
    finally:
        ranks.kill()


def end(folder: Path, fault: str, victims: set[int], alive: list[int]) -> list[list[Told]]:
    """What the ranks that end by themselves were told."""
    ranks = Ranks(4, fly, make(folder), HOSTS, [fault], victims, folder=folder)
    try:
        for rank in alive:
            ranks.processes[rank].join(40)
        return [ranks.result(rank) for rank in alive]
    finally:
        ranks.kill()
