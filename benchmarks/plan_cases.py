"""The measurements that `hypnos plan` is compared with: runs of this project and published ones.

Of published runs only sizes, layout and the result are known; how their computation differs is
noted with each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.sizes import SIZES
from benchmarks.memory import MIB, Plan
from benchmarks.stage import microbatches
from pretrain.config.checks import layout_of
from pretrain.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    SleepConfig,
    TrainConfig,
)  # fmt: skip
from pretrain.model.plan import plan_windows
from pretrain.study.block_work import BlockCounter
from pretrain.study.estimate import Estimator, estimate, example
from pretrain.study.hardware import DeviceSpec, Hardware, NodeSpec, load_hardware
from pretrain.study.stage_times import StageTimes
from pretrain.study.stage_units import StageUnits

DOCS = Path(__file__).parents[1] / "docs"


class Compared(NamedTuple):
    """One measured figure and the plan's."""

    what: str
    unit: str
    measured: float
    planned: float

    @property
    def error(self) -> float:
        """The plan's relative error."""
        return self.planned / self.measured - 1


# ---- memory of training steps on a CPU: docs/memory.md


def memory_rows() -> Iterator[Compared]:
    """All rows of docs/memory.md: MiB of activations on the stage that holds most."""
    p, hardware = Plan(), _cpu()
    row = microbatches(p)[0].rows(0, 1)
    text = (DOCS / "memory.md").read_text()
    for policy, N, P, peaks in re.findall(
        r"^\| (\w+) \| (\d+) \| (\d) \| ([\d /]+) \|", text, re.M
    ):
        model = ModelConfig(
            d_model=p.width, layers=list(p.layers), vocab_size=p.vocabulary, mlp_width=4 * p.width
        )
        config = Config(
            model=model,
            sleep=SleepConfig(window=p.window, when="context", passes=int(N)),
            train=TrainConfig(batch=p.rows * p.microbatches, microbatches=p.microbatches),
            parallel=ParallelConfig(pp=int(P), recompute=policy, stages=[4 // int(P)] * int(P)),
        )
        units = StageUnits(config, int(P), plan_windows(row, config.sleep))
        times = StageTimes(config, hardware, BlockCounter(model), layout_of(config), 1, units)
        planned = max(times.activations(s, p.microbatches) for s in range(int(P))) / MIB
        measured = max(map(int, peaks.split("/")))
        yield Compared(f"{policy}, N = {N}, {P} stages", "MiB", measured, planned)


def _cpu() -> Hardware:
    """A CPU whose rates do not matter."""
    device = DeviceSpec(
        name="", kind="cpu", memory_gib=1.0, bf16_tflops=1.0, fp32_tflops=1.0, product_share=1.0,
        attention_share=1.0, delta_share=1.0, memory_gbs=1.0, launch_s=0.0,
    )  # fmt: skip
    return Hardware(
        device=device, node=NodeSpec(devices=2, link_gbs=1.0, latency_s=0.0, host_gbs=1.0)
    )


# ---- one H200: docs/gpu.md

GPU_SPEED = [  # N, recomputation, seconds of forward and backward at 1B
    (1, "none", 0.446), (1, "unit", 0.616), (4, "unit", 1.523),
]  # fmt: skip


def gpu_rows() -> Iterator[Compared]:
    """The rows of docs/gpu.md without CUDA graphs: units run kernel by kernel."""
    for N, recompute, measured in GPU_SPEED:
        what = f"1B, N = {N}, recompute {recompute}"
        yield Compared(what, "s", measured, _gpu("1B", N, recompute, load_hardware("h200")))


def _gpu(name: str, passes: int, recompute: str, hardware: Hardware) -> float:
    """The plan's seconds for a forward and backward."""
    size = SIZES[name]
    config = Config(
        model=size.model(),
        sleep=size.sleep(passes),
        data=DataConfig(windows=size.windows, carry=False),
        train=TrainConfig(batch=size.rows, precision="bf16"),
        parallel=ParallelConfig(recompute=recompute),
    )
    found = Estimator(config, 1, hardware, example(config)).estimate(layout_of(config))
    return found.seconds - found.exchange_s - found.update_s  # the optimiser was not run


# ---- published runs


class Published(NamedTuple):
    """A run of another system."""

    what: str
    gpus: int
    hardware: str
    config: Config
    tflops: float  # per GPU
    source: str
    differs: str


def published() -> list[Published]:
    """Dense transformers and a hybrid, N = 1."""
    olmo = ModelConfig(
        d_model=4096, layers=["delta", "delta", "delta", "attention"] * 8, mlp_width=11008,
        attention_heads=32, attention_kv_heads=32, attention_head_dim=128, delta_key_heads=32,
        delta_value_heads=32, delta_key_dim=96, delta_value_dim=192, vocab_size=100352,
    )  # fmt: skip
    gpt = ModelConfig(
        d_model=12288, layers=["attention"] * 96, attention_heads=96, attention_kv_heads=96,
        attention_head_dim=128, mlp_width=32768, vocab_size=51200,
    )  # fmt: skip
    llama = ModelConfig(
        d_model=4096, layers=["attention"] * 32, attention_heads=32, attention_kv_heads=8,
        attention_head_dim=128, mlp_width=14336, vocab_size=128256,
    )  # fmt: skip
    fsdp = (
        ("nothing recomputed", ParallelConfig(zero=3, recompute="none")),
        ("blocks recomputed", ParallelConfig(zero=3, recompute="block")),
    )
    return [
        *[
            Published(
                f"OLMo Hybrid 7B, 512 B200, {what}", 512, "b200",
                _dense(olmo, 8192, 512, parallel), 0.0, "OLMo Hybrid (3T tokens in 6.19 days)",
                "heads and keys of the published configuration; FSDP planned as ZeRO 3, "
                "twice, because we do not know what it recomputes",
            )
            for what, parallel in fsdp
        ],
        Published(
            "GPT-3 175B in Megatron, 512 H100, tp 4, pp 8", 512, "h100",
            _dense(
                gpt, 2048, 1536,
                ParallelConfig(tp=4, pp=8, sequence_parallel=True, recompute="none"), 96,
            ),
            390.0, "GPT-3 (Megatron Core's benchmarks, second-hand)",
            "Megatron interleaves stages, overlaps messages and gradients, and fuses more; its MLP "
            "of two matrices is counted as our three of the same size",
        ),
        *[
            Published(
                f"Llama 3 8B, GH200, {what}", 64, "h100",
                _dense(llama, 8192, 512, parallel, 8), 421.0,
                "Llama 3 (swiss-ai, 413 to 430 TFLOP/s)",
                "planned for 64 H100, as ZeRO 3; attention here has a gate",
            )
            for what, parallel in fsdp
        ],
    ]  # fmt: skip


def _dense(
    model: ModelConfig, window: int, batch: int, parallel: ParallelConfig, microbatches: int = 1
) -> Config:
    return Config(
        model=model,
        sleep=SleepConfig(passes=1, window=window),
        data=DataConfig(windows=1),
        train=TrainConfig(batch=batch, microbatches=microbatches, precision="bf16"),
        parallel=parallel,
        optimizer=OptimizerConfig(name="adamw"),
    )


def published_rows() -> Iterator[tuple[Compared, Published]]:
    """Their figures beside the plan's, for the same sizes and layout."""
    for run in published():
        hardware = load_hardware(run.hardware)
        found = estimate(run.config, run.gpus, hardware)
        assert found.memory.total <= hardware.usable_bytes, (run.what, found.memory.total)
        if run.tflops:
            flops = found.work.flops / found.seconds / run.gpus
            yield Compared(run.what, "TFLOP/s a GPU", run.tflops, flops / 1e12), run
        else:
            yield Compared(run.what, "tokens/s a GPU", 10_900, found.tokens_per_s / run.gpus), run
