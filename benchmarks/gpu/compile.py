"""Compiles what the timed stages will run, on all cores and beside the tests.

    python -m benchmarks.gpu.compile

flash-linear-attention has some ninety variants of its kernels for each shape of heads, and lets the
first call compile and time them, one after the other: a minute or two. Here each of several
processes compiles its share of them; later calls find them in Triton's cache and only choose. The
models of the stages run once each, for the kernels of Inductor. On a CPU there is nothing to do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.record import device
from benchmarks.gpu.sizes import RULE110, SIZES
from benchmarks.gpu.variants import keep_variants
from parallel.delta_rule import delta_rule
from parallel.short_convolution import cuda_convolution
from pretrain.config.load import load
from pretrain.config.schema import ModelConfig

WORKERS = 8
ONCE = (
    ["benchmarks.gpu.speed", "1B", "--once"],
    ["benchmarks.gpu.speed", "100M", "--once"],
    ["benchmarks.gpu.graphs", "--once"],
)


def run_both(c: ModelConfig) -> None:
    """Forward and backward of the short convolution and of the delta rule as our blocks call it,
    and as transformers does.
    """
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    heads, T = c.delta_value_heads, 256
    shapes = [(c.delta_key_heads, c.delta_key_dim)] * 2 + [(heads, c.delta_value_dim)]
    q, k, v = (torch.randn(1, T, h, w, device="cuda", dtype=torch.bfloat16) for h, w in shapes)
    log_decay, beta = (torch.rand(1, T, heads, device="cuda") for _ in range(2))
    S = torch.zeros(1, heads, c.delta_key_dim, c.delta_value_dim, device="cuda")
    leaves = [t.requires_grad_() for t in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)]
    leaves += [(-log_decay).requires_grad_(), beta.requires_grad_(), S.requires_grad_()]
    o, state = delta_rule(*leaves)
    assert o is not None
    (o.float().sum() + state.sum()).backward()
    q, k, v, g, b, _ = leaves
    o, _ = chunk_gated_delta_rule(q, k, v, g, b.bfloat16(), use_qk_l2norm_in_kernel=True)
    o.float().sum().backward()
    for x in (k.flatten(2), v.flatten(2)):
        weight = torch.randn(x.shape[2], c.delta_conv_width, device="cuda", dtype=x.dtype)
        for tail in (None, x[:, 1 - c.delta_conv_width :]):
            cuda_convolution(x, tail, weight.requires_grad_(), None).sum().backward()


def compile_share(index: int) -> None:
    """One worker's part: every so-manieth variant of each kernel, at each stage's heads."""
    keep_variants(lambda all: all[index::WORKERS])
    rule110 = load(RULE110).model
    of_tests = replace(rule110, delta_key_heads=1, delta_value_heads=2)  # tests/gpu/test_training
    for config in (of_tests, SIZES["1B"].model(), SIZES["100M"].model(), rule110):
        run_both(config)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    share = parser.parse_args().share
    if device().type != "cuda":
        print("left out on a CPU: compiling kernels")
        return 0
    if share is not None:
        compile_share(share)
        return 0
    commands: list[Any] = [["benchmarks.gpu.compile", "--share", str(i)] for i in range(WORKERS)]
    settings = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "4"}
    workers = [
        subprocess.Popen([sys.executable, "-m", *command], env=settings)
        for command in [*ONCE, *commands]
    ]
    return max(abs(worker.wait()) for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
