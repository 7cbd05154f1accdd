"""The tests' own way to start ranks: what they return, and what is said when one of them fails."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel import mesh
from tests.marks import slow
from tests.ranks import Ranks, run_ranks


def sum_over_ranks(value: float) -> tuple[int, torch.Tensor]:
    mesh.initialize()
    total = torch.tensor([value + dist.get_rank()])
    dist.all_reduce(total)
    return dist.get_rank(), total


def wait_for_rank_1(fail: str) -> None:
    mesh.initialize()
    if dist.get_rank() == 1:
        if fail == "raises":
            raise ValueError("of rank 1")
        if fail == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    dist.barrier()


def test_each_rank_returns_its_value() -> None:
    found = run_ranks(2, sum_over_ranks, 2.0)
    assert found == [(0, torch.tensor([5.0])), (1, torch.tensor([5.0]))]


def test_environment() -> None:
    assert run_ranks(1, os.getenv, "OF_THIS_TEST", env={"OF_THIS_TEST": "here"}) == ["here"]


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("raises", "--- rank 1, status 1:\n(.*\n)*ValueError: of rank 1"),
        slow("dies", "--- rank 1, status -9"),
    ],
)
def test_what_a_rank_fails_with_is_told(fail: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        run_ranks(2, wait_for_rank_1, fail)


@pytest.mark.slow
def test_ranks_that_do_not_end_say_where_they_stand(tmp_path: Path) -> None:
    ranks = Ranks(2, wait_for_rank_1, "sleeps", folder=tmp_path)
    with pytest.raises(AssertionError, match=r"status -6(.*\n)*.*in wait_for_rank_1"):
        ranks.finish(3)
    assert not ranks.alive
