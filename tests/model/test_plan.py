"""One plan of a pass for all its users, the same on all ranks; stages do what one model does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from benchmarks.memory import Weight, counted
from parallel.block import MIXERS
from parallel.schedule import make_schedule
from parallel.simulator import simulate
from parallel.stages import Stage
from parallel.state import State
from pretrain.config.schema import SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.inference.decode import Decoder
from pretrain.inference.session import Session
from pretrain.model import plan
from pretrain.model.flops import step_flops
from pretrain.model.plan import WindowPlan, plan_passes, plan_windows
from pretrain.model.reader import Output, Reader
from pretrain.model.sleep import SleepLM
from pretrain.run.step import StageStream
from pretrain.study.block_work import BlockBytes
from tests.marks import slow
from tests.model.tiny import MODEL, L, build, change, gradients, sequences

LAYERS = ["attention", "delta", "attention", "attention"]  # a dead end of two blocks


@pytest.mark.parametrize("kind", MIXERS)
def test_a_block_whose_memory_outlives_the_window_is_run_to_write_it(kind: str) -> None:
    config = replace(MODEL, layers=[kind])
    (left,) = build(config=config).empty_state(1).end_window(0, L).blocks
    outlives = any(tensor.numel() for tensor in left)
    assert bool(plan.until_last_write(range(1), config, change())) is outlives


# ---- one plan for all users


def seen(sleep: SleepConfig) -> dict[str, object]:
    """What each user of the plan does with a window that is only slept over and one predicted."""
    config = replace(MODEL, layers=LAYERS)
    model, batch = build(sleep, config), sequences(2 * L, unscored={0: [0], 1: [0]})
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    always = build(replace(sleep, when="always"), config)  # a session predicts all that it reads
    for block in (*model.blocks.values(), *always.blocks.values()):
        block.mlp.register_forward_hook(count)
    found: dict[str, object] = {}
    model(batch)
    found["loop"], calls = calls, 0
    session = Session(Decoder(always))
    session.read(batch.tokens[0, :L])
    session.sleep()
    found["session"] = calls
    found["FLOPs"] = step_flops(batch, config, sleep).forward
    stages = Stage(0, (0, 1, 2, 3, 4))
    windows = plan_windows(batch, sleep)
    passes = tuple(p for w in windows for p in plan_passes(w, config, sleep, stages))
    schedule = make_schedule([passes], 4)
    spans = simulate(schedule, [passes], 4).spans
    found["schedule"] = tuple(map(len, spans))
    whole = tuple(p for w in windows for p in plan_passes(w, config, sleep, Stage.only(4)))
    (spans_of_one,) = simulate(make_schedule([whole], 1), [whole], 1).spans
    weight = Weight(BlockBytes(h=1, S=1, kept=10), write_only=BlockBytes(h=1, S=1, kept=5))
    found["memory"] = counted("none", whole, spans_of_one, dict.fromkeys(range(4), weight))
    return found


def test_one_change_reaches_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """If blocks run to the end even where nothing reads the output, every user changes."""
    sleep = change(passes=3, when="context")
    before = seen(sleep)
    monkeypatch.setattr(plan, "until_last_write", lambda blocks, *_: blocks)
    after = seen(sleep)
    unchanged = [name for name in before if before[name] == after[name]]
    assert not unchanged, unchanged


# ---- the same on all ranks


def rows_of_a_rank(seed: int) -> Batch:
    """Rows that at random are predicted, padded, begin documents and continue."""
    g = torch.Generator().manual_seed(seed)
    batch, W = sequences(3 * L, rows=2), 3

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g) < 0.3

    batch.targets[chance(2, W).repeat_interleave(L, dim=1)] = IGNORE
    batch.starts[:, 1:] = chance(2, W - 1)
    batch.carries[:] = chance(2)
    if chance(1):
        batch.valid[0, -2:] = False
        batch.targets[0, -2:] = IGNORE
    return batch


def agreed(*ask: Callable[[Callable[[Tensor], Tensor]], object]) -> list:
    """What each rank gets once all of them have agreed."""
    said: list[Tensor] = []

    def listen(values: Tensor) -> Tensor:
        said.append(values)
        raise InterruptedError

    for one in ask:
        with pytest.raises(InterruptedError):
            one(listen)
    most = torch.stack(said).amax(dim=0)
    return [one(lambda _: most) for one in ask]


def graph(loss: Tensor) -> list[str]:
    """The operations that a loss depends on, in the order in which they were recorded."""
    nodes, ahead = {}, [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in nodes:
            nodes[node] = True
            ahead += [following for following, _ in node.next_functions]
    recorded = [n for n in nodes if "AccumulateGrad" not in n.name()]
    return [n.name() for n in sorted(recorded, key=lambda n: n._sequence_nr())]


@pytest.mark.parametrize("seed", [0, 1, slow(2), slow(3)])
@pytest.mark.parametrize(
    "sleep",
    [
        change(passes=3, when="context", coda=1),
        change(passes=2, when="context", eviction="sliding"),
        change(passes=3, eviction="sliding", prelude=1, truncate_passes=1),
        change(passes=2, truncate_windows=2),
    ],
    ids=str,
)
def test_all_ranks_record_the_same_operations(sleep: SleepConfig, seed: int) -> None:
    """Whatever their own rows contain, in two successive batches."""
    model, states = build(sleep), [None, None]
    for step in range(2):
        batches = [rows_of_a_rank(4 * seed + 2 * step + rank) for rank in range(2)]
        for batch in batches:
            batch.starts[:, 0] = step == 0
        alone = [model(b, s) for b, s in zip(batches, states, strict=True)]

        def of(rank: int, states: list = states, batches: list = batches) -> Callable:
            return lambda agree: model(batches[rank], states[rank], agree=agree)

        outputs = agreed(of(0), of(1))
        if outputs[0].loss.requires_grad:
            assert graph(outputs[0].loss) == graph(outputs[1].loss)
        for one, together in zip(alone, outputs, strict=True):
            torch.testing.assert_close(one.window_loss, together.window_loss)
        states = [out.state for out in outputs]


@pytest.mark.parametrize("when", ["context", "always"])
def test_what_is_agreed_is_all_that_decides(when: str) -> None:
    """Two ranks differ in every row; all fields are equal but those meant to be a rank's own, and
    say what is true of the rows of both.
    """
    sleep = change(passes=2, when=when)
    batches = [rows_of_a_rank(seed) for seed in (1, 2)]
    one, other = batches
    planned = agreed(
        lambda agree: plan_windows(one, sleep, agree=agree),
        lambda agree: plan_windows(other, sleep, agree=agree, past=3),
    )
    own = {"starts", "has_tokens", "has_targets", "sleeps", "scored_index"}
    for a, b in zip(*planned, strict=True):
        for field in {f.name for f in fields(WindowPlan)} - own:
            assert getattr(a, field) == getattr(b, field), field
        sleeps, scored, starts = (
            torch.cat([getattr(w, field) for w in (a, b)])
            for field in ("sleeps", "has_targets", "starts")
        )
        assert (a.n_passes, a.some_stay_awake) == (1 + int(sleeps.any()), not sleeps.all())
        assert (a.any_scored, a.all_scored) == (scored.any(), scored.all())
        assert a.has_starts == starts.any()


# ---- on stages


def by_stages(models: list[SleepLM], batch: Batch, state: list[State | None]) -> list[Output]:
    """A batch read by the pipeline's stages, one unit after the other, without a pipeline."""
    streams = [
        StageStream(Reader.of(model, batch, s), s) for model, s in zip(models, state, strict=True)
    ]
    losses = {}
    h = None
    for n, p in enumerate(streams[0].passes):
        x = h if p.number > 1 else None
        for s in range(p.first_stage, p.last_stage + 1):
            output = streams[s].forward(n, x)
            x = output.h if s < p.core_end else output.y
            h = output.h if s == p.core_end else h
            if output.loss is not None:
                losses[p.window] = output.loss
    outputs = [stream.output() for stream in streams]
    total = torch.stack(list(losses.values())).sum()
    return [*outputs[:-1], outputs[-1]._replace(loss=total)]


SPLITS = [
    (0, *cuts, 4) for n in (1, 2, 3) for cuts in itertools.combinations(range(1, 4), n)
]  # all possible ones


@pytest.mark.parametrize("bounds", SPLITS, ids=str)
@pytest.mark.parametrize(
    "sleep",
    [
        change(passes=1, when="context"),  # window 1 does not reach the stages after the delta
        change(passes=3, when="context", coda=1),
        change(passes=2, prelude=2, eviction="sliding", when="context"),
    ],
    ids=str,
)
def test_any_split_of_the_layers(bounds: tuple[int, ...], sleep: SleepConfig) -> None:
    """Losses, gradients and carried state are those of the whole model, bit for bit."""
    layers = ["delta", "attention", "delta", "attention"] if sleep.prelude else LAYERS
    config = replace(MODEL, layers=layers)
    whole = SleepLM(config, sleep).initialize(0)
    models = [
        SleepLM(config, sleep, Stage(s, bounds)).initialize(0) for s in range(len(bounds) - 1)
    ]
    batch = sequences(3 * L, unscored={0: [0], 1: [0, 1]})
    batch.carries[:] = True
    expected = whole(batch)
    outputs = by_stages(models, batch, [None] * len(models))
    assert torch.equal(outputs[-1].loss, expected.loss)
    outputs[-1].loss.backward()
    found = {name: p.grad for model in models for name, p in model.named_parameters()}
    for name, gradient in gradients(whole, expected.loss).items():
        mine = torch.zeros_like(gradient) if found[name] is None else found[name]
        assert torch.equal(mine, gradient), name
    for model, output in zip(models, outputs, strict=True):
        assert output.state is not None and expected.state is not None
        assert torch.equal(output.state.position, expected.state.position)
        own = output.state.named_tensors(model.stage.blocks.start)
        for name, tensor in own.items():
            if name.endswith((".S", ".k", ".v")):
                assert torch.equal(tensor, expected.state.named_tensors()[name]), name
