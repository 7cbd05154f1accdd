"""Data that change with the step: a pure function of the step, on any rank and after any stop."""

import itertools
import json

import pytest
import torch

from pretrain import evaluate
from pretrain.config.load import parse
from pretrain.config.schema import DepoConfig, Rule110Config
from pretrain.data.batch import IGNORE
from pretrain.errors import UserError
from pretrain.model.draw import draw_passes
from pretrain.tasks import Depo, Rule110, TaskSource
from pretrain.tasks.repeated import Repeated
from pretrain.tasks.task import TEST_SEED
from tests.model.tiny import MODEL, build, change

DEPO = Depo(
    DepoConfig(
        nodes=6, max_hops=4, context=12, queries=3, vocabulary=8, name_tokens=(1, 1), min_nodes=6
    ),
    12,
)


def hops(source: TaskSource) -> set[int]:
    asked = source.next().tokens[:, 12::4] - 1
    return set(asked.flatten().tolist())


def test_depth_rises_step_by_step_and_stays() -> None:
    source = TaskSource(DEPO, 64, seed=0, curriculum=8)
    seen = [hops(source) for _ in range(10)]
    state = json.loads(json.dumps(source.state_dict()))
    assert seen == [set(range(1, k + 1)) for k in (1, 1, 2, 2, 3, 3, 4, 4, 4, 4)]
    plain = DEPO.sample(0, 640, 64).tokens
    assert torch.equal(source.next().tokens, plain)
    again = TaskSource(DEPO, 64, seed=0, curriculum=8)
    again.load_state_dict(state | {"rows": 2 * 64})
    assert hops(again) == {1, 2}
    for each in (source, again):
        each.close()


def test_other_tasks_are_as_deep_as_they_are_told() -> None:
    rule = Rule110(Rule110Config(width=8, rings=1, steps=4), 8)
    half = Rule110(Rule110Config(width=8, rings=1, steps=2), 8)
    assert torch.equal(rule.sample_up_to(1, 5, 9, 0.5).targets, half.sample(1, 5, 9).targets)
    assert torch.equal(rule.sample_up_to(1, 5, 9, 1.0).targets, rule.sample(1, 5, 9).targets)
    none = Rule110(Rule110Config(width=8, rings=1, steps=0), 8)
    assert torch.equal(none.sample_up_to(1, 5, 9, 0.5).targets, none.sample(1, 5, 9).targets)
    once, twice = Depo(DEPO.config, 12), Repeated(DEPO, 2, 24)
    a, b = once.sample_up_to(0, 3, 5, 0.5), twice.sample_up_to(0, 3, 5, 0.5)
    assert torch.equal(a.tokens[:, 12:], b.tokens[:, 24:])


def test_states_are_passed_to_the_same_rows_on_any_ranks() -> None:
    whole = TaskSource(DEPO, 8, seed=3, state_passing=0.5)
    ranks = [TaskSource(DEPO, 8, seed=3, rank=r, ranks=2, state_passing=0.5) for r in (0, 1)]
    batches = [whole.next() for _ in range(40)]
    assert batches[0].starts[:, 0].all()  # there is no earlier state yet
    for before, after in itertools.pairwise(batches):
        assert torch.equal(before.carries, ~after.starts[:, 0]) and not after.starts[:, 1:].any()
    assert 0.4 < torch.stack([b.carries for b in batches]).double().mean() < 0.6
    for batch in batches:
        parts = [source.next() for source in ranks]
        assert torch.equal(torch.cat([p.starts for p in parts]), batch.starts)
        assert torch.equal(torch.cat([p.carries for p in parts]), batch.carries)
    ranks[0].load_state_dict(json.loads(json.dumps({**whole.state_dict(), "rows": 7 * 8})))
    assert torch.equal(ranks[0].next().carries, batches[7].carries[:4])
    for each in (whole, *ranks):
        each.close()


def test_n_rises_and_stays() -> None:
    config = parse("[sleep]\npasses = 4\ncurriculum = 8\n")
    drawn = [draw_passes(config, step) for step in range(12)]
    assert drawn == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4]
    config = parse("[sleep]\npasses = 4\nmin_passes = 3\ncurriculum = 4\n")
    assert [draw_passes(config, step) for step in range(6)] == [3, 3, 4, 4, 4, 4]


def test_rows_after_other_rows_begin_with_their_state() -> None:
    """Equal to one long row, read batch by batch, that keeps its state in between."""
    model = build(change(when="context", window=12), MODEL, dtype=torch.float32)
    rows = [DEPO.test(TEST_SEED + i, 3) for i in (-2, -1, 0)]
    evaluation = evaluate.Evaluation([rows[-1]], 12, 1, DEPO)
    alone, after = evaluation.run(model), evaluation.run(model, after=2)
    state = None
    for i, batch in enumerate(reversed(rows[:2])):
        batch.starts[:, 0], batch.carries[:] = i == 0, True
        state = model(batch, state).state
    rows[-1].starts[:, 0] = False
    with torch.no_grad():
        loss = float(model(rows[-1], state).loss / (rows[-1].targets != IGNORE).sum())
    assert after["after"] == 2 and after["loss"] == pytest.approx(loss, rel=1e-5)
    assert abs(after["loss"] - alone["loss"]) > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.task=mqar data.curriculum=5", 'data.task = "mqar" has no depth'),
        ("data.task=rule110 rule110.min_steps=1 data.curriculum=5", "set one of the two to 0"),
        ("data.state_passing=0.5", "use data.carry"),
        ("data.task=depo data.state_passing=0.5 sleep.eviction=sliding", "would also pass on keys"),
    ],
)
def test_what_cannot_be_is_refused(settings: str, message: str) -> None:
    from pretrain.config.checks import validate
    from pretrain.config.load import override

    with pytest.raises(UserError, match=message):
        validate(override(parse(""), settings.split()))
