"""No task leaks: questions after the eviction cannot be answered without the memory S. And all name
their scores as tables and plots expect.
"""

from __future__ import annotations

import dataclasses
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.config import checks
from pretrain.config.load import parse
from pretrain.config.schema import Config, ModelConfig, SleepConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.logged import DEPTHS
from pretrain.model.plan import WindowPlan
from pretrain.model.sleep import SleepLM
from pretrain.study.ladder import read_study
from pretrain.tasks import make_task
from pretrain.tasks.rule110 import evolve

CONFIGS = Path(__file__).parents[2] / "configs"
QUESTIONS = Path(__file__).parent / "data/questions.jsonl"
TASKS = {
    "rule110": "[rule110]\nwidth = 16\nrings = 2\nsteps = 5\nmin_steps = 1\n[sleep]\nwindow = 16",
    "depo": "[depo]\nnodes = 8\nqueries = 4\ncontext = 16\nname_tokens = [1, 1]\nvocabulary = 8\n"
    "max_hops = 4\n[sleep]\nwindow = 16",
    "mqar": "[mqar]\npairs = 8\nqueries = 4\n[sleep]\nwindow = 16",
    "s5": "[s5]\nsymbols = 4\nlength = 16\n[sleep]\nwindow = 16",
    "brevo": "[brevo]\nnodes = 8\nmax_depth = 3\ncontext = 32\n[sleep]\nwindow = 16",
    "stories": "[stories]\nmax_ops = 2\ncontext = 512\n[sleep]\nwindow = 512",
    "recall": "[recall]\ncontext = 512\n[sleep]\nwindow = 128",
    "questions": f"[questions]\npath = '{QUESTIONS}'\nheldout = '{QUESTIONS}'\ncontext = 128\n"
    "[sleep]\nwindow = 128",
}
MODEL = ModelConfig(
    d_model=16, attention_heads=2, attention_kv_heads=2, attention_head_dim=8, rotary_fraction=0.5,
    delta_key_heads=2, delta_value_heads=2, delta_key_dim=8, delta_value_dim=8, mlp_width=16,
    embedding_std=1.0, init_std=0.3,
)  # fmt: skip


def config(task: str, model: Path) -> Config:
    data = f'[data]\ntask = "{task}"\ntokenizer = "{model}"\n'
    return parse(data + TASKS[task] + "\npasses = 2\nwhen = 'context'\n")


def predicted(model: SleepLM, batch: Batch) -> torch.Tensor:
    """[n, vocabulary] logits of all scored positions."""
    said: list[torch.Tensor] = []

    def head(_: WindowPlan, y: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        said.append(model.logits(y))
        return model.losses(y, targets)

    with torch.no_grad():
        model(batch, head=head)
    return torch.cat(said)


@pytest.mark.parametrize("task", [task for task in checks.TASKS if task != "text"])
def test_attention_alone_knows_nothing_of_an_evicted_context(task: str, model: Path) -> None:
    """With other contexts before the same questions, its output stays bit-identical; with S it does
    not.

    So whatever it learns, it can know only the questions, and the answers to earlier ones in the
    same window.
    """
    settings = config(task, model)
    made = make_task(settings, settings.sleep.window)
    batch = made.test(0, 8)
    first = int((batch.targets != IGNORE).any(dim=0).int().argmax())
    context = first // settings.sleep.window * settings.sleep.window
    other = dataclasses.replace(batch, tokens=batch.tokens.clone(), valid=batch.valid.clone())
    for a in (other.tokens, other.valid):
        a[:, :context] = a[:, :context].roll(1, dims=0)
    shape = dataclasses.replace(MODEL, vocab_size=made.vocab_size)
    for layers, sees in ((["attention"] * 2, False), (["attention", "delta"], True)):
        passes = 2 if sees else 1
        sleep = dataclasses.replace(settings.sleep, passes=passes)
        reader = SleepLM(dataclasses.replace(shape, layers=layers), sleep).initialize(0)
        same = torch.equal(predicted(reader, batch), predicted(reader, other))
        assert same is not sees


@pytest.mark.parametrize("task", TASKS)
def test_scores_have_a_known_depth_or_begin_with_the_strictest(task: str, model: Path) -> None:
    settings = config(task, model)
    made = make_task(settings, settings.sleep.window)
    batch = made.test(0, 8)
    assert set(made.score(batch.targets, batch).values()) == {1.0}
    best = batch.targets.clone()
    best[::2] = 0
    found = made.score(best, batch)
    by_depth = [name for name in found if name.rpartition("_")[2].isdigit()]
    assert {name.rpartition("_")[0] for name in by_depth} <= set(DEPTHS)
    others = [share for name, share in found.items() if name not in by_depth]
    assert others == sorted(others)


@pytest.mark.parametrize(
    ("task", "measure", "chance"),
    [
        ("rule110", "steps_5", 0.267),
        ("mqar", "value", 1 / 64),
        ("s5", "length_16", 1 / 24),
        ("depo", "hops_4", 1 / 7),  # for a row's first question: no node is its own 4th successor
        ("brevo", "depth_3", 0.0),
        ("recall", "hops_0", 0.0),
        ("stories", "op_2", 0.1),
    ],
)
def test_an_untrained_model_is_at_chance_or_below(
    task: str, measure: str, chance: float, model: Path
) -> None:
    settings = config(task, model)
    made = make_task(settings, settings.sleep.window)
    shape = dataclasses.replace(MODEL, vocab_size=made.vocab_size)
    batch = made.test(0, 16 if task in ("stories", "recall") else 300)
    best = torch.full(batch.size, IGNORE)
    said = predicted(SleepLM(shape, SleepConfig(**vars(settings.sleep))).initialize(0), batch)
    best[batch.targets != IGNORE] = said.argmax(dim=1)
    assert made.score(best, batch)[measure] <= chance + 0.1


def test_guessing_of_rule110() -> None:
    """docs/results.md: both labels right, for two rings of 16, by guessing the likelier bit."""
    rings = (np.arange(1 << 16)[:, None] >> np.arange(16) & 1).astype(np.uint8)  # all rings
    right, bits = [], []
    for _ in range(5):
        rings = evolve(rings, 1)
        bits.append(rings[:, 0])
        share = bits[-1].mean()
        right.append(round(100 * max(share, 1 - share) ** 2, 1))
    assert right == [39.1, 28.2, 26.6, 28.6, 26.7]
    # after 4 steps, given the first ring's bit after 5, the last answer that is read before these
    together = np.bincount(2 * bits[4] + bits[3], minlength=4).reshape(2, 2) / len(rings)
    assert together.max(axis=1).sum() * bits[3].mean() == pytest.approx(0.325, abs=5e-4)
    # docs/scaling.md, whose law of accuracy begins there: one ring, after 4 steps
    study = read_study(CONFIGS / "scale/rule110.toml")
    assert study.ladder.chance == pytest.approx(0.286**0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("nodes", "asked", "together", "known"),
    [
        (8, 8, 8, {1: 48, 2: 49, 4: 52}),
        (8, 8, 4, {1: 20, 2: 21, 4: 23}),
        (6, 3, 3, {1: 28, 2: 28}),  # docs/scaling.md
    ],
)
def test_guessing_of_depo_from_answers_that_were_given_before(
    nodes: int, asked: int, together: int, known: dict[int, int]
) -> None:
    """docs/results.md: hops that can be guessed without the edges.

    The best guess among all cycles consistent with the answers to the row's earlier questions, or
    to those in the same window: a node answers few questions, and four hops may lead back.
    """
    cycles = np.array([(0, *others) for others in permutations(range(1, nodes))])
    place = np.argsort(cycles, axis=1)  # the place of each node
    rng, hops = np.random.default_rng(0), np.resize(list(known), (512 // asked, asked))
    right = np.zeros(hops.shape)
    for row in range(len(hops)):
        cycle, starts = cycles[rng.integers(len(cycles))], rng.permutation(nodes)
        for q in range(asked):
            if q % together == 0:
                fits = np.ones(len(cycles), dtype=bool)
            ends = cycles[np.arange(len(cycles)), (place[:, starts[q]] + hops[row, q]) % nodes]
            right[row, q] = np.bincount(ends[fits]).max() / fits.sum()
            end = cycle[(np.argsort(cycle)[starts[q]] + hops[row, q]) % nodes]
            fits &= ends == end
    for k, share in known.items():
        assert 100 * right[hops == k].mean() == pytest.approx(share, abs=3)
