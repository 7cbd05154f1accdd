"""Runs started by the command, with DeepSpeed and NCCL: on the GPU, on the CPU, and moved from one
to the other.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pretrain.exit_status import after_signal

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "rule110.width=70", "rule110.rings=2", "rule110.steps=2", "sleep.window=70", "sleep.passes=2",
    "model.d_model=32", "model.mlp_width=64", "model.attention_heads=2",
    "model.attention_kv_heads=1", "model.attention_head_dim=32",
    "model.delta_key_heads=1", "model.delta_value_heads=2", "model.decay_init=[0.001,0.1]",
    "optimizer.warmup=0", "optimizer.decay=0", "optimizer.adamw_lr=1e-3",
    "train.batch=8", "train.log_every=1", "train.eval_every=100", "train.eval_batches=1",
    "train.checkpoint_every=2",
]  # fmt: skip
SECONDS = 240  # of one run; most of it is compiling


def start(folder: Path, name: str, *more: str, gpu: bool = True) -> subprocess.Popen[str]:
    """Starts or resumes a run."""
    command = [sys.executable, "-m", "launch", "train", str(ROOT / "configs/rule110.toml")]
    settings = {"OMP_NUM_THREADS": "1"} | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    return subprocess.Popen(
        [*command, *SETTINGS, f"run.dir={folder}", f"run.name={name}", *more],
        cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def finish(runs: Sequence[subprocess.Popen[str]]) -> None:
    """Waits for runs that were started together."""
    for run in runs:
        output, _ = run.communicate(timeout=SECONDS)
        assert run.returncode == 0, output[-4000:]


def losses(folder: Path, name: str) -> list[float]:
    """The loss of each step."""
    metrics = folder / name / "metrics.jsonl"
    rows = map(json.loads, metrics.read_text().splitlines() if metrics.exists() else ())
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.cuda
def test_a_run_moves_between_gpu_and_cpu(tmp_path: Path) -> None:
    """Six steps in fp32: on the GPU, on the CPU, and four on one then two on the other."""
    fp32, short, whole = "train.precision=fp32", "train.steps=4", "train.steps=6"
    finish(
        [
            start(tmp_path, "gpu", fp32, whole),
            start(tmp_path, "cpu", fp32, whole, gpu=False),
            start(tmp_path, "gpu-cpu", fp32, short),
            start(tmp_path, "cpu-gpu", fp32, short, gpu=False),
        ]
    )
    finish(
        [
            start(tmp_path, "gpu-cpu", fp32, whole, gpu=False),
            start(tmp_path, "cpu-gpu", fp32, whole),
        ]
    )
    expected = torch.tensor(losses(tmp_path, "cpu"))
    assert len(expected) == 6 and expected[-1] < expected[0]
    for name in ("gpu", "gpu-cpu", "cpu-gpu"):
        # Muon computes in bf16 on a GPU, so weights, but not gradients, differ by its rounding.
        found = torch.tensor(losses(tmp_path, name))
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0, msg=name)


@pytest.mark.cuda
def test_graphs_and_resuming_change_no_bit(tmp_path: Path) -> None:
    """In bf16, with kernels: without graphs, with graphs, and with graphs in two starts."""
    bf16, graphs = "train.precision=bf16", "parallel.cuda_graphs=true"
    finish(
        [
            start(tmp_path, "run", bf16, "train.steps=6"),
            start(tmp_path, "graphs", bf16, graphs, "train.steps=6", "train.log_every=6"),
            start(tmp_path, "resumed", bf16, graphs, "train.steps=4", "train.log_every=6"),
        ]
    )
    finish([start(tmp_path, "resumed", bf16, graphs, "train.steps=6", "train.log_every=6")])
    expected = losses(tmp_path, "run")[-1]
    assert losses(tmp_path, "graphs")[-1] == expected
    assert losses(tmp_path, "resumed")[-1] == expected


@pytest.mark.cuda
def test_every_zero_stage_trains_alike(tmp_path: Path) -> None:
    """In bf16, with kernels: ZeRO 0 to 3, optimiser state on the GPU and on the host, each policy
    of recomputation.
    """
    wide = "model.mlp_width=4096"  # matrices that ZeRO 3 does not keep whole because they are small
    of_run = {
        "0": ["parallel.zero=0"],
        "1": ["parallel.zero=1", "train.microbatches=2"],
        "2": ["parallel.zero=2", "train.microbatches=2", "parallel.recompute=none"],
        "3": ["parallel.zero=3", "train.microbatches=2", "parallel.recompute=block"],
        "1, offloaded": ["parallel.zero=1", "train.microbatches=2", "parallel.offload=true"],
        "3, offloaded": ["parallel.zero=3", "train.microbatches=2", "parallel.offload=true"],
    }
    common = ["train.precision=bf16", "train.steps=4", wide]
    finish([start(tmp_path, name, *common, *more) for name, more in of_run.items()])
    expected = torch.tensor(losses(tmp_path, "1"))
    assert len(expected) == 4
    for name in of_run:
        found = torch.tensor(losses(tmp_path, name))
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0, msg=name)


@pytest.mark.cuda
def test_a_signal_saves_what_is_on_the_gpu(tmp_path: Path) -> None:
    """A thread copies the weights to the host while the main thread goes on giving work to the
    GPU.
    """
    settings = ["train.precision=bf16", "train.checkpoint_every=100000"]
    run, deadline = start(tmp_path, "run", *settings), time.monotonic() + SECONDS
    while len(losses(tmp_path, "run")) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    run.terminate()
    output, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == after_signal(signal.SIGTERM), output[-4000:]
    saved = re.search(r"after step (\d+), which is saved", output)
    assert saved is not None and int(saved[1]) >= 3, output[-4000:]
    finish([start(tmp_path, "run", *settings, f"train.steps={int(saved[1]) + 2}")])
    assert len(losses(tmp_path, "run")) == int(saved[1]) + 2
