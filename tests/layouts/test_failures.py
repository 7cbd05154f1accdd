"""A rank that dies, hangs, raises or reads other rows ends the whole job, soon, and the message
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

from tests.layouts.processes import ROOT, run

TIMEOUT = 8  # seconds, of a run that would take one a step
SETTINGS = [
    "parallel.recompute=none", f"parallel.timeout={TIMEOUT}", "sleep.when=always",
    "model.d_model=16", "train.batch=8", "train.microbatches=2", "train.steps=50", "train.log_every=50",
    "train.eval_every=50", "train.eval_batches=1", "optimizer.warmup=0", "optimizer.decay=0",
]  # fmt: skip
FIRST, LAST = (rf"rank {r} on \S+ \(stage {r} of 2, tp 0 of 1, dp 0 of 1\)" for r in (0, 1))
SECOND = r"rank 1 on \S+ \(stage 0 of 1, tp 0 of 1, dp 1 of 2\)"
UNIT = ", computes forward of microbatch 0, window 1, pass 2"


@pytest.mark.parametrize(
    ("how", "pp", "seconds", "messages"),
    [
        # Its neighbour sees the connection close.
        ("dies", 2, 0, [FIRST + ", .*microbatch", "Signal 9"]),
        # It names itself, and its neighbour says what it waits for.
        ("hangs", 2, TIMEOUT, [LAST + UNIT + ": no progress for", FIRST + ", .*: no headway for"]),
        ("hangs", 1, TIMEOUT, [SECOND + ", reads microbatch 0, window 1 pass 2: no progress for"]),
        # It cannot say anything, so its neighbour tells what it waits for. torchrun kills what will
        # not end in 30 s.
        ("stops", 2, TIMEOUT + 30, [FIRST + ", waits for what it needs in .*microbatch"]),
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
    config, folder = ROOT / "configs/depo-small.toml", f"run.dir={tmp_path}"
    begin = time.monotonic()
    done = run("tests/layouts/broken.py", 2, how, config, folder, f"parallel.pp={pp}", *SETTINGS)
    # starting two processes takes up to half of it on a busy machine
    assert time.monotonic() - begin < seconds + 45
    assert done.returncode != 0
    for message in messages:
        assert re.search(message, done.stderr), done.stderr[-5000:]
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if folder in (p.info["cmdline"] or [])]
    assert not left, "processes were left behind"


def test_a_first_rank_that_verifies_for_long_is_waited_for(tmp_path: Path) -> None:
    """For longer than twice its timeout, which is the limit of a collective."""
    config, folder = ROOT / "configs/depo-small.toml", f"run.dir={tmp_path}"
    done = run(
        "tests/layouts/broken.py", 2, "verifies slowly", config, folder, *SETTINGS, "train.steps=1"
    )
    assert done.returncode == 0, done.stderr[-5000:]


def test_a_rank_that_never_comes_is_missed(tmp_path: Path) -> None:
    alone = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "launch",
        "train",
        ROOT / "configs/depo-small.toml",
        "parallel.timeout=1",
    ]
    done = subprocess.run(
        command, env=os.environ | alone, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"hypnos: error: rank 0 on \S+, which joins the others, .*: another rank has gone", line
    )
    assert done.returncode == 1


def test_sequences_that_cannot_be_split_are_refused_at_once(tmp_path: Path) -> None:
    settings = [
        "parallel.tp=2",
        "parallel.sequence_parallel=true",
        "train.batch=1",
        "sleep.window=17",
    ]
    config, folder = ROOT / "configs/depo-small.toml", f"run.dir={tmp_path}"
    done = run(
        "launch/__main__.py",
        2,
        "train",
        config,
        folder,
        *settings,
        "depo.context=17",
        "depo.queries=4",
    )
    message = "a microbatch has windows of 1 x 17 tokens, which do not divide by parallel.tp = 2"
    assert message in done.stderr and "AssertionError" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir()), "something was made before"
