"""Depo against a reader that parses the tokens back and walks the cycle step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pretrain.config.schema import DepoConfig
from pretrain.data.batch import IGNORE, Batch
from pretrain.errors import UserError
from pretrain.tasks import Depo

SMALL = DepoConfig(nodes=8, max_hops=4, context=16, queries=8, name_tokens=(1, 1))
LONG = DepoConfig(
    nodes=20, min_nodes=10, max_hops=16, context=128, queries=5, vocabulary=30, name_tokens=(1, 3)
)


def read_names(tokens: list[int], first: int, last: int, multiple: bool) -> list[tuple[int, ...]]:
    """Cuts tokens into names: a name ends with a token of the last set, first <= last-set token."""
    names, name = [], ()
    for token in tokens:
        assert first <= token
        name += (token,)
        if not multiple or token >= last:
            names.append(name)
            name = ()
    assert name == ()
    return names


def solve(config: DepoConfig, batch: Batch, row: int) -> list[tuple[int, tuple[int, ...], bool]]:
    """For each query: (k, the answer found by walking, whether the targets are exactly it)."""
    multiple = config.name_tokens[1] > 1
    first = 2 + config.max_hops
    last = first + config.vocabulary if multiple else first
    tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
    context, rest = tokens[: config.context], tokens[config.context :]
    assert targets[: config.context] == [IGNORE] * config.context
    pads = next(i for i, t in enumerate(context) if t != 0) if 0 in context else 0
    names = read_names(context[pads:], first, last, multiple)
    follows = dict(zip(names[::2], names[1::2], strict=True))
    assert len(follows) == len(names) // 2 == len(set(follows.values()))

    solved, starts, place = [], [], 0
    while place < len(rest) and rest[place] != 0:
        k = rest[place] - 1
        assert 1 <= k <= config.max_hops
        mark = rest.index(1, place)
        (start,) = read_names(rest[place + 1 : mark], first, last, multiple)
        node = start
        for _ in range(k):
            node = follows[node]
        stop = mark + 1 + len(node)
        here = targets[config.context + place : config.context + stop]
        wanted = [IGNORE] * (mark - place) + list(node) + [IGNORE]
        solved.append((k, node, tuple(rest[mark + 1 : stop]) == node and here == wanted))
        starts.append(start)
        place = stop
    assert len(set(starts)) == len(starts) == config.queries
    assert all(t == 0 for t in rest[place:]) and targets[config.context + place :] == [IGNORE] * (
        len(rest) - place
    )
    edge_valid = [not config.mask_pad] * pads + [True] * (config.context - pads)
    assert batch.valid[row].tolist() == edge_valid + [True] * place + [False] * (len(rest) - place)
    # One cycle, not several: walking from anywhere visits every node.
    node, seen = start, set()
    while node not in seen:
        seen.add(node)
        node = follows[node]
    assert len(seen) == len(follows)
    return solved


@pytest.mark.parametrize(
    "config", [SMALL, LONG, replace(LONG, mask_pad=True)], ids=["small", "long", "masked"]
)
def test_every_answer_is_the_node_that_a_walk_reaches(config: DepoConfig) -> None:
    task = Depo(config, 16 if config is SMALL else 64)
    for batch in (task.sample(7, 1000, 40), task.test(7, 40)):
        for row in range(40):
            assert all(right for _, _, right in solve(config, batch, row))


def test_rows_do_not_depend_on_how_they_are_grouped() -> None:
    task = Depo(LONG, 64)
    whole, parts = task.sample(3, 0, 8), [task.sample(3, 0, 4), task.sample(3, 4, 4)]
    for name in ("tokens", "targets", "valid", "starts"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts])), name
    assert not torch.equal(whole.tokens, task.sample(4, 0, 8).tokens)
    assert not torch.equal(whole.tokens, task.sample(3, 8, 8).tokens)
    assert not torch.equal(whole.tokens, task.test(3, 8).tokens)


def test_sizes_and_hops_follow_their_laws() -> None:
    config = replace(LONG, queries=1, min_nodes=1, name_tokens=(1, 1))
    batch = Depo(config, 16).sample(0, 0, 20_000)
    n = (batch.tokens[:, : config.context] != 0).sum(dim=1) // 2
    weight = torch.tensor([1 / (20**0.5 + i) for i in range(1, 21)])
    share = torch.bincount(n, minlength=21)[1:] / 20_000
    assert (share - weight / weight.sum()).abs().max() < 0.006  # 3 standard deviations
    k = torch.bincount(batch.tokens[:, config.context] - 1, minlength=17)[1:] / 20_000
    assert (k - 1 / 16).abs().max() < 0.006


def test_held_out_rows_are_largest_and_ask_powers_of_two() -> None:
    batch = Depo(LONG, 64).test(0, 10)
    hops = [k for row in range(10) for k, _, _ in solve(LONG, batch, row)]
    assert sorted(set(hops)) == [1, 2, 4, 8, 16] and hops.count(1) == hops.count(16) == 10
    assert all(len(names_of(batch, row)) == LONG.nodes for row in range(10))


def names_of(batch: Batch, row: int) -> set[tuple[int, ...]]:
    last = 2 + LONG.max_hops + LONG.vocabulary
    context = [t for t in batch.tokens[row, : LONG.context].tolist() if t != 0]
    return set(read_names(context, 2 + LONG.max_hops, last, True))


def test_score_counts_whole_answers_by_hops() -> None:
    task = Depo(LONG, 64)
    batch = task.test(1, 10)
    assert task.score(batch.targets, batch) == {f"hops_{k}": 1.0 for k in (1, 2, 4, 8, 16)}
    # Corrupt one token of row 0's last answer (k = 16), which must cost one of the ten queries of
    # that k.
    best = batch.targets.clone()
    best[0, (best[0] != IGNORE).nonzero()[-1]] += 1
    assert solve(LONG, batch, 0)[-1][0] == 16
    assert task.score(best, batch) == {
        "hops_1": 1.0,
        "hops_2": 1.0,
        "hops_4": 1.0,
        "hops_8": 1.0,
        "hops_16": 0.9,
    }
    assert set(task.score(torch.zeros_like(best), batch).values()) == {0.0}


def test_the_papers_layout() -> None:
    task = Depo(DepoConfig(), 75)
    batch = task.sample(0, 0, 2)
    assert (
        batch.size == (2, 360) and batch.starts.shape == (2, 5) and task.vocab_size == 2 + 16 + 100
    )
    assert task.test_hops == [1, 2, 4, 8, 16]
    assert (
        batch.starts.tolist() == [[True, False, False, False, False]] * 2
        and not batch.carries.any()
    )
    names = read_names([t for t in batch.tokens[0, :300].tolist() if t], 18, 68, True)
    assert {len(name) for name in names} == {1, 2}


def test_more_names_of_one_token_than_there_are_become_longer() -> None:
    config = DepoConfig(
        nodes=60, vocabulary=8, name_tokens=(1, 2), context=240, queries=2, max_hops=2
    )
    batch = Depo(config, 16).test(0, 4)
    assert all(right for row in range(4) for _, _, right in solve(config, batch, row))


@pytest.mark.parametrize(
    ("change", "window", "message"),
    [
        (
            {"context": 20},
            16,
            "depo.context is 20 tokens, which is not a multiple of sleep.window = 16",
        ),
        ({"context": 14}, 14, "does not hold 8 edges"),
        ({"context": 24}, 12, None),
        ({"context": 18}, 6, "lower depo.queries to 1, or take names of one length"),
        ({"context": 18}, 3, "by its boundary; take names of one length"),
        ({"queries": 9}, 16, "queries <= min_nodes <= nodes"),
        ({"min_nodes": 9}, 16, "queries <= min_nodes <= nodes"),
        ({"vocabulary": 7}, 16, "depo.vocabulary = 7"),
        ({"name_tokens": (1, 2), "context": 32}, 16, "names of one length"),
        ({"name_tokens": (1, 2), "context": 96}, 48, None),
        ({"name_tokens": (0, 1)}, 16, r"depo\.name_tokens = \[0, 1\]: must be two numbers from 1"),
        ({"name_tokens": (2, 1)}, 16, r"depo\.name_tokens = \[2, 1\]"),
    ],
)
def test_settings_that_cannot_be_asked_are_refused(
    change: dict, window: int, message: str | None
) -> None:
    if message is None:
        Depo(replace(SMALL, **change), window)
        return
    with pytest.raises(UserError, match=message):
        Depo(replace(SMALL, **change), window)


def test_a_test_too_small_for_every_hop_is_refused() -> None:
    config = replace(SMALL, queries=2)
    task = Depo(config, 16)
    batch = task.test(0, 2)
    assert set(task.score(batch.targets, batch)) == {"hops_1", "hops_2", "hops_4"}
    with pytest.raises(UserError, match=r"set train\.batch to at least 2"):
        task.test(0, 1)


def cycles(config: DepoConfig, batch: Batch) -> set[tuple[int, ...]]:
    """The cycles of rows whose names have one token, each from its smallest name on."""
    found = set()
    for row in batch.tokens[:, : config.context].tolist():
        names = [token for token in row if token]
        follows = dict(zip(names[::2], names[1::2], strict=True))
        walk = [min(follows)]
        while len(walk) < len(follows):
            walk.append(follows[walk[-1]])
        found.add(tuple(walk))
    return found


def test_cycles_that_are_kept_for_the_test_are_never_read() -> None:
    """Of the 120 cycles of six nodes with six names, all others are read."""
    config = replace(SMALL, nodes=6, queries=6, vocabulary=6, kept=8)
    task = Depo(config, 16)
    read = set().union(*(cycles(config, task.sample(0, 1000 * i, 1000)) for i in range(3)))
    tested = cycles(config, task.test(0, 1000))
    assert 5 <= len(tested) <= 25 and len(read) + len(tested) == 120 and not read & tested
    with pytest.raises(UserError, match=r"depo\.kept = 1 keeps all for the test; set it to 8"):
        Depo(replace(config, kept=1), 16)


def test_cycles_of_several_sizes_can_be_kept() -> None:
    config = replace(SMALL, min_nodes=5, queries=5, vocabulary=8, kept=4)
    task = Depo(config, 16)
    tested = cycles(config, task.test(0, 2000))
    read = cycles(config, task.sample(0, 0, 4000))
    assert {len(cycle) for cycle in read} == {5, 6, 7, 8} and not read & tested


def test_too_few_cycles_to_keep_some_are_refused() -> None:
    config = replace(SMALL, nodes=2, queries=2, vocabulary=2, kept=8)
    with pytest.raises(UserError, match="all or none are kept; set kept = 0"):
        Depo(config, 16).test(0, 8)
        Depo(config, 16).sample(0, 0, 8)
