"""A rank that dies, hangs, raises or reads other rows soon ends the whole job, and the message
says where.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pretrain.exit_status import PEER_GONE, USER_ERROR
from tests.layouts import broken
from tests.ranks import ROOT, Ranks, free_port

CONFIG = str(ROOT / "configs/depo-small.toml")
SLACK = 30.0  # seconds that two ranks may take to start on a busy machine
TIMEOUT = 8  # seconds; a step would take one. Only for cases that ranks notice by their timeout
SETTINGS = [
    "parallel.recompute=none", "sleep.when=always",
    "model.d_model=16", "train.batch=8", "train.microbatches=2", "train.steps=50",
    "train.log_every=50", "train.eval_every=50", "train.eval_batches=1",
    "optimizer.warmup=0", "optimizer.decay=0",
]  # fmt: skip
FIRST, LAST = (
    rf"rank {r} on \S+ \(stage {r} of 2, tp 0 of 1, cp 0 of 1, dp 0 of 1\)" for r in (0, 1)
)
SECOND = r"rank 1 on \S+ \(stage 0 of 1, tp 0 of 1, cp 0 of 1, dp 1 of 2\)"
UNIT = ", computing forward of microbatch 0, window 1, pass 2"


@pytest.mark.parametrize(
    ("how", "pp", "seconds", "messages"),
    [
        # Its neighbour sees that the connection is closed.
        ("dies", 2, 0, [FIRST + ", .*microbatch"]),
        # It reports itself, and its neighbour says what it waits for.
        ("hangs", 2, TIMEOUT, [LAST + UNIT + ": no progress for", FIRST + ", .*: no progress for"]),
        (
            "hangs",
            1,
            TIMEOUT,
            [SECOND + ", in the forward of microbatch 0, window 1 pass 2: no pro"],
        ),
        # It cannot report anything, so its neighbour says what it waits for.
        ("stops", 2, TIMEOUT, [FIRST + ", waiting for the inputs of .*microbatch"]),
        ("raises", 2, 0, ["RuntimeError: a cosmic ray", LAST + UNIT]),
        (
            "loses rows",
            2,
            0,
            [LAST + ": rank 1 reads other rows than rank 0, .* 2 x 2 x 48 against 2 x 4 x 48 "],
        ),
    ],
)
def test_a_broken_rank_ends_the_job(
    how: str, pp: int, seconds: float, messages: list[str], tmp_path: Path
) -> None:
    timeout = [f"parallel.timeout={seconds}"] if seconds else []
    arguments = [CONFIG, f"run.dir={tmp_path}", f"parallel.pp={pp}", *timeout, *SETTINGS]
    ranks = Ranks(2, broken.train, how, *arguments, folder=tmp_path)
    try:
        if how == "stops":  # a launcher would kill it once the others have ended
            ranks.processes[0].join(seconds + SLACK)
            ranks.kill([1])
        statuses = ranks.wait(seconds + SLACK)
    finally:
        ranks.kill()
    assert None not in statuses and 0 not in statuses, ranks.log()
    for message in messages:
        assert re.search(message, ranks.log()), ranks.log()


def test_a_first_rank_that_verifies_for_long_is_waited_for(tmp_path: Path) -> None:
    """For longer than twice the timeout, which is the limit for a collective."""
    timeout = f"parallel.timeout={TIMEOUT}"
    arguments = [CONFIG, f"run.dir={tmp_path}", timeout, *SETTINGS, "train.steps=1"]
    Ranks(2, broken.train, "verifies slowly", *arguments, folder=tmp_path).finish(18 + SLACK)


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """`torchrun -m launch train configs/depo-small.toml ARGUMENTS` on two ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "launch", "train", CONFIG, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_torchrun_ends_a_job_of_which_a_rank_has_died(tmp_path: Path) -> None:
    folder = f"run.dir={tmp_path}"

    def ranks() -> list[psutil.Process]:
        found = [p for p in psutil.process_iter(["cmdline"]) if folder in (p.info["cmdline"] or [])]
        return [p for p in found if p.pid != job.pid]

    with torchrun(folder, "parallel.pp=2", *SETTINGS) as job:
        metrics = tmp_path / "depo-small/metrics.jsonl"
        while job.poll() is None and not (metrics.exists() and "train" in metrics.read_text()):
            time.sleep(0.05)
        last = ranks()[-1:]
        for rank in last:
            rank.kill()
        _, said = job.communicate(timeout=120)
    assert last, said[-5000:]
    assert job.returncode != 0 and "Signal 9" in said, said[-5000:]
    assert not ranks(), "processes were left behind"


@pytest.mark.parametrize(
    ("flags", "told", "status"),
    [
        ([], "preflight: rank 1 of 2 did not connect in 1 s: see their logs", USER_ERROR),
        (
            ["--no-preflight"],
            r"rank 0 on \S+, joining the other ranks, .*: another rank is gone",
            PEER_GONE,
        ),
    ],
)
def test_a_rank_that_never_comes_is_missed(
    flags: list[str], told: str, status: int, tmp_path: Path
) -> None:
    alone = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "launch",
        "train",
        ROOT / "configs/depo-small.toml",
        "parallel.timeout=1",
        *flags,
    ]
    done = subprocess.run(
        command, env=os.environ | alone, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    *slow, line = done.stderr.splitlines()  # slow: messages about what takes more than two seconds
    assert all(said.endswith(" ...") for said in slow)
    assert re.match(f"hypnos: error: {told}", line), line
    assert done.returncode == status


def test_sequences_that_cannot_be_split_are_refused_at_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    settings = [
        "parallel.tp=2", "parallel.sequence_parallel=true", "train.batch=1",
        "sleep.window=17", "depo.context=17", "depo.queries=4",
    ]  # fmt: skip
    ranks = Ranks(2, broken.train, "whole", CONFIG, f"run.dir={runs}", *settings, folder=tmp_path)
    assert ranks.wait(SLACK) == [USER_ERROR] * 2, ranks.log()
    message = "a microbatch has windows of 1 x 17 tokens, which parallel.tp = 2 does not divide"
    assert message in ranks.log() and "AssertionError" not in ranks.log()
    assert not runs.exists(), "something was made before"
