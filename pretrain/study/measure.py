"""Measures the current machine, in the terms of `pretrain.study.hardware`: about a minute.

The parts of blocks are timed separately, forward and backward: matrix products, attention, the
delta rule, elementwise work; then a block so small that only launches count; messages between two
processes (`pretrain.study.links`); and on a CPU, the slowdown of ranks that share cores
(`pretrain.study.crowding`). On a CPU, CPU time of one thread is measured, so that other work on the
machine does not matter. The network between hosts is not measured.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Literal, NamedTuple

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel import mesh
from parallel.delta_rule import delta_rule
from parallel.norms import l2_normalized
from pretrain.config.load import dump
from pretrain.config.schema import ModelConfig
from pretrain.model.flops import delta_rule_forward
from pretrain.origin import cores
from pretrain.run.peak import peak
from pretrain.study.block_work import BlockCounter, Rows
from pretrain.study.crowding import measured_crowding
from pretrain.study.hardware import GIB, DeviceSpec, Hardware, NodeSpec
from pretrain.study.links import Links, measured_links
from pretrain.study.one_block import one_block
from pretrain.study.stage_times import ATTENTION, ELEMENTWISE, PRODUCTS, RULE, RULE_KERNEL

SECONDS = 1.5  # of each measurement


def measured() -> Hardware:
    """This machine's GPU, or one core of it."""
    threads, in_a_world = torch.get_num_threads(), dist.is_initialized()
    mesh.initialize(alone=True)
    torch.set_num_threads(1)
    try:
        return _cuda() if mesh.device().type == "cuda" else _cpu()
    finally:
        torch.set_num_threads(threads)
        if not in_a_world:
            mesh.shutdown()


def written(hardware: Hardware) -> str:
    """The hardware as a TOML file."""
    what = (
        "Measured by `hypnos plan --measure`, except for the network between hosts and the price."
    )
    return f"# {what}\n\n{dump(hardware)}"


def _cpu() -> Hardware:
    memory = psutil.virtual_memory().total
    model = ModelConfig(
        d_model=256, mlp_width=1024, vocab_size=512, delta_key_dim=64, delta_value_dim=64
    )
    rates = _rates(model, 4, 128, torch.float32, RULE)
    best = rates.products  # there is no other peak
    name = f"one core of {platform.processor() or platform.machine()}"
    device = rates.device(name, "cpu", best=best, fp32=best, memory_gib=memory / GIB / cores())
    links = measured_links(cuda=False)
    node = NodeSpec(
        devices=cores(), shared=True, link_gbs=links.gbs, latency_s=links.latency_s,
        host_gbs=device.memory_gbs, crowding=measured_crowding(model, 4, 128),
    )  # fmt: skip
    return Hardware(device=device, node=node)


def _cuda() -> Hardware:
    properties = torch.cuda.get_device_properties(0)
    model = ModelConfig(
        d_model=2048, mlp_width=6144, vocab_size=512, attention_heads=16, attention_kv_heads=4,
        attention_head_dim=128, delta_key_heads=16, delta_value_heads=16, delta_key_dim=128,
        delta_value_dim=128,
    )  # fmt: skip
    rates = _rates(model, 4, 2048, torch.bfloat16, RULE_KERNEL)
    best = peak(torch.device("cuda", 0)) or 1.4 * rates.products
    device = rates.device(
        properties.name, "cuda", best=best, fp32=best / 15,
        memory_gib=properties.total_memory / GIB, reserved_gib=6.0,
    )  # fmt: skip
    devices = torch.cuda.device_count()
    links = measured_links(cuda=True) if devices > 1 else Links(25.0, 1e-5)
    node = NodeSpec(devices=devices, link_gbs=links.gbs, latency_s=links.latency_s, host_gbs=20.0)
    return Hardware(device=device, node=node)


class _Rates(NamedTuple):
    """The rates that are reached."""

    products: float  # FLOP/s, as the next two
    attention: float
    delta: float
    bandwidth: float  # bytes per second
    launch_s: float

    def device(
        self, name: str, kind: Literal["cuda", "cpu"], *, best: float, fp32: float,
        memory_gib: float, reserved_gib: float = 0.0,
    ) -> DeviceSpec:  # fmt: skip
        """What reaches them. best, fp32: its FLOP/s in bf16 and fp32 that MFU is a share of."""
        return DeviceSpec(
            name=name,
            kind=kind,
            fused=kind == "cuda",
            memory_gib=memory_gib,
            reserved_gib=reserved_gib,
            bf16_tflops=best / 1e12,
            fp32_tflops=fp32 / 1e12,
            product_share=self.products / best,
            attention_share=self.attention / best,
            delta_share=self.delta / best,
            memory_gbs=self.bandwidth / 1e9,
            launch_s=self.launch_s,
        )


def _rates(model: ModelConfig, rows: int, tokens: int, dtype: torch.dtype, rule: float) -> _Rates:
    """The rates of a model's blocks on so many rows of so many tokens."""
    n, D, width = rows * tokens, model.d_model, model.mlp_width

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, device=mesh.device(), dtype=dtype).requires_grad_()

    x, w = tensor(n, D), tensor(width, D)
    products = (1 + PRODUCTS) * 2 * n * D * width / _seconds(lambda: F.linear(x, w))

    H, d = model.attention_heads, model.attention_head_dim
    q, k, v = (tensor(rows, H, tokens, d) for _ in range(3))
    scores = (1 + ATTENTION) * 4 * n * H * d * tokens
    attention = scores / _seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))

    H, K, V = model.delta_value_heads, model.delta_key_dim, model.delta_value_dim
    keys, values = tensor(rows, tokens, H, K), tensor(rows, tokens, H, V)
    gate = torch.rand(rows, tokens, H, device=mesh.device())
    S = torch.zeros(rows, H, K, V, device=mesh.device()).requires_grad_()
    of_rule = n * delta_rule_forward(model, tokens)

    def write() -> Tensor:
        unit = l2_normalized(keys).to(dtype)
        o, after = delta_rule(unit, unit, values, -0.1 * gate, gate, S, model.delta_chunk)
        assert o is not None
        return o.sum() + after.sum()

    delta = (1 + rule) * of_rule / _seconds(write)

    # Large enough to exceed caches; but from 32 MiB on, glibc asks the kernel for new pages every
    # time, which halves the rate, and blocks have no such tensors.
    many = max(n, 4096)
    gates, up = tensor(many, width), tensor(many, width)
    moved = (1 + ELEMENTWISE) * 5 * gates.nbytes
    bandwidth = moved / _seconds(lambda: F.silu(gates) * up)
    return _Rates(products, attention, delta, bandwidth, _launch(dtype))


def _launch(dtype: torch.dtype) -> float:
    """Seconds per operation of a block with almost nothing to compute."""
    model = ModelConfig(
        d_model=16, mlp_width=16, attention_heads=1, attention_kv_heads=1, attention_head_dim=16,
        delta_key_heads=1, delta_value_heads=1, delta_key_dim=16, delta_value_dim=16,
    )  # fmt: skip
    cuda = mesh.device().type == "cuda"
    counter = BlockCounter(model, half=dtype != torch.float32, fused=cuda, kernel=cuda)
    took = launches = 0.0
    for kind in ("attention", "delta"):
        took += _seconds(one_block(model, kind, 1, 16, dtype))
        launches += (1 + ELEMENTWISE) * counter.work(Rows(kind, 1, 16)).launches
    return took / launches


def _seconds(forward: Callable[[], Tensor]) -> float:
    """Seconds of a forward and its backward, of the device or of CPU time: the median of several,
    since the speed of a shared core varies, in runs too.
    """
    cuda = mesh.device().type == "cuda"
    clock = time.perf_counter if cuda else time.process_time

    def once() -> float:
        if cuda:
            torch.cuda.synchronize()
        begin = clock()
        y = forward()
        y.backward(torch.ones_like(y))
        if cuda:
            torch.cuda.synchronize()
        return clock() - begin

    once()
    took, begin = [once()], time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        took.append(once())
    return median(took)
