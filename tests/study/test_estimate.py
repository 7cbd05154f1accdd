"""Estimated memory and time of a step: against autograd, the simulator, and by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stage import weigh
from parallel.block import MIXERS, Block
from parallel.critical_path import CriticalPath
from parallel.passes import Pass
from parallel.schedule import Action, make_schedule
from parallel.simulator import simulate
from pretrain.config.load import load, override
from pretrain.config.schema import Config, ModelConfig
from pretrain.data.batch import IGNORE
from pretrain.model.flops import parameters, step_flops
from pretrain.model.sleep import SleepLM
from pretrain.run.newton_schulz import newton_schulz
from pretrain.run.optimizer import MUON, role
from pretrain.run.prepare import make_source
from pretrain.study.block_work import BlockCounter, Rows
from pretrain.study.controls import flops_per_step
from pretrain.study.estimate import UPDATED, Estimator, estimate, example, layout_of
from pretrain.study.hardware import load_hardware
from tests.parallel.test_schedule import window


@pytest.mark.parametrize(
    "sizes",
    [
        {"delta_key_heads": 2, "delta_key_dim": 32, "delta_value_dim": 48, "delta_chunk": 16},
        {"attention_kv_heads": 2, "attention_head_dim": 40, "mlp_width": 600},
    ],
)
def test_blocks_keep_what_autograd_saves(sizes: dict[str, int]) -> None:
    model = ModelConfig(d_model=128, vocab_size=64, **sizes)  # type: ignore[arg-type]
    counter = BlockCounter(model)
    for kind in MIXERS:
        whole, written = weigh(Block(model, kind), 3, 64)
        work = counter.work(Rows(kind, 3, 64))
        assert work.bytes.kept == pytest.approx(whole.kept, rel=0.02)
        assert work.bytes.S == whole.S
        if kind == "delta":
            only = counter.work(Rows(kind, 3, 64, write_only=True))
            assert only.bytes.kept == pytest.approx(written.kept, rel=0.02)


@pytest.mark.parametrize("P", [2, 4])
def test_critical_path_is_the_simulators(P: int) -> None:
    one: list[Pass] = [*window(0, 3, P, False), *window(1, 1, P, True)]
    passes = [one] * (2 * P + 1)

    def duration(action: Action, s: int) -> float:
        return (1 + action.backward * 1.7) * (1 + 0.3 * s + 0.1 * action.unit)

    schedule = make_schedule(passes, P)
    path = CriticalPath(schedule)
    assert path.seconds(duration) == simulate(schedule, passes, P, duration).makespan
    assert [len(each) for each in path.actions] == [2 * 4 * (2 * P + 1)] * P


def small(**train: object) -> Config:
    config = load("configs/recipes/1B.toml", ["train.batch=16"])
    return replace(config, train=replace(config.train, **train))


def test_what_goes_on_in_the_next_batch_sleeps_in_the_plan_too(corpus: Path) -> None:
    text = load(
        "configs/text-tiny.toml",
        [
            f"data.tokenizer={corpus / 'small.model'}",
            f'data.train=[{{path="{corpus / "shards"}"}}]',
            *("data.windows=2", "sleep.window=8", "sleep.passes=3", "train.batch=8"),
        ],
    )
    depo = load("configs/depo-small.toml", ["data.state_passing=0.5", 'sleep.when="always"'])
    for config, off in ((text, "data.carry=false"), (depo, "data.state_passing=0")):
        source = make_source(config)
        model = replace(config.model, vocab_size=source.vocab_size)
        trained = fmean(step_flops(source.next(), model, config.sleep).flops for _ in range(20))
        source.close()
        assert flops_per_step(config) == pytest.approx(trained, rel=0.02)
        assert flops_per_step(override(config, [off])) < 0.95 * trained


def test_one_row_is_read_as_far_as_its_batch(model: Path, tmp_path: Path) -> None:
    """One question of eight is longer than a window, whichever comes first."""
    short = {"context": "Ann is in the attic.", "question": "Where is Ann?", "answer": " attic"}
    long = short | {"question": "Where, I ask you, is Ann? " * 4}
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*[short] * 7, long]))
    settings = [
        "data.task=questions", f"data.tokenizer={model}", f"questions.path={path}",
        f"questions.heldout={path}", "questions.context=64", "questions.answer=192",
        "sleep.window=64", "sleep.when=context", "train.batch=8",
    ]  # fmt: skip
    for seed in range(3):
        config = override(Config(), [*settings, f"run.seed={seed}"])
        assert int(example(config).targets.ne(IGNORE).nonzero()[-1, 1]) >= 64 + 64


def test_time_and_flops() -> None:
    h100 = load_hardware("h100")
    one = estimate(small(), 1, h100)
    N = 2 * parameters(small().model)
    assert one.work.forward == pytest.approx(N * (one.work.wake + one.work.sleep), rel=0.2)
    assert 0.05 < one.mfu < 0.6 and one.bubble == 0
    assert one.recomputed == pytest.approx(one.work.forward, rel=0.15)
    two = estimate(small(), 2, h100)
    assert two.seconds == pytest.approx(one.seconds / 2, rel=0.05)
    assert two.memory.optimizer == pytest.approx(one.memory.optimizer / 2)
    assert two.update_s == pytest.approx(one.update_s / 2)
    # each sends half: gradients in fp32, weights in bf16; Muon's matrices in fp32, there and back
    whole, matrices = sizes(small())
    sent = ((4 + 2) * whole + 2 * 4 * elements(matrices)) / 2
    assert two.exchange_s == pytest.approx(sent / (1e9 * h100.node.link_gbs), rel=0.01)
    sixteen = estimate(small(), 16, h100)  # on two hosts
    assert one.exchange_s == 0 == sixteen.bubble
    assert sixteen.mfu * sixteen.seconds * 16 == pytest.approx(one.mfu * one.seconds)
    flops = 0
    for shape, count in matrices.items():
        with FlopCounterMode(display=False) as counter:
            newton_schulz(torch.empty(count, *shape, device="meta"))
        flops += counter.get_total_flops()
    device = h100.device
    expected = flops / (h100.peak("bf16") * device.product_share)
    assert one.update_s - UPDATED * whole / device.bandwidth == pytest.approx(expected, rel=1e-4)


def sizes(config: Config) -> tuple[int, Counter[torch.Size]]:
    """The parameters of a model, and how many matrices of each shape Muon updates."""
    with torch.device("meta"):
        named = dict(SleepLM(config.model, config.sleep).named_parameters())
    matrices = (p.shape for name, p in named.items() if role(name, p.shape, "muon") == MUON)
    return sum(p.numel() for p in named.values()), Counter(matrices)


def elements(matrices: Counter[torch.Size]) -> int:
    return sum(count * shape.numel() for shape, count in matrices.items())


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_the_ranks_of_a_model_hold_it_once(tp: int, pp: int) -> None:
    estimator = Estimator(small(), 8, load_hardware("h100"), example(small()))
    held = estimator.parameters(tp, pp)
    whole, matrices = sizes(small())
    assert len(held) == pp and sum(p.all for p in held) * tp == pytest.approx(whole, rel=1e-5)
    assert sum(p.matrices for p in held) * tp == pytest.approx(elements(matrices))


def test_pipeline_idles_and_recomputation_saves() -> None:
    h100 = load_hardware("h100")
    estimator = Estimator(small(), 4, h100, example(small()))
    x = replace(layout_of(small()), pp=4, microbatches=8)
    unit, none = estimator.estimate(x), estimator.estimate(replace(x, recompute="none"))
    assert 0.05 < unit.bubble < 0.4
    assert none.memory.activations > 2 * unit.memory.activations
    assert none.seconds < unit.seconds
    quick = estimator.estimate(x, simulated=False)
    assert quick.seconds < unit.seconds
    assert quick.memory.activations < unit.memory.activations
