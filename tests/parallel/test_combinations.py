"""Refusals name the combination, and the documentation lists the same ones."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from parallel.combinations import REFUSALS, Layout, Refusal, refusal, table
from tests.layouts.cases import Case, everything

REFUSED = [
    Layout(pp=2, zero=0),
    Layout(pp=2, zero=2),
    Layout(pp=4, zero=3),
    Layout(zero=0, precision="bf16", microbatches=2),
    Layout(zero=0, offload=True),
    Layout(pp=2, offload=True, precision="bf16"),
    Layout(sequence_parallel=True),
    Layout(cp_delta="tokens"),
    Layout(cuda_graphs=True, recompute="block"),
    Layout(cuda_graphs=True, tp=2),
    Layout(cuda_graphs=True, cp=2),
    Layout(cuda_graphs=True, zero=3),
]


@pytest.mark.parametrize("layout", REFUSED, ids=str)
def test_refused(layout: Layout) -> None:
    (rule,) = (rule for rule in REFUSALS if rule.applies(layout))
    assert refusal(layout) == f"{rule.refused}: {rule.why}; {rule.fix}"


def test_every_rule_is_of_use() -> None:
    def applies(rule: Refusal) -> bool:
        return any(rule.applies(layout) for layout in REFUSED)

    assert all(applies(rule) for rule in REFUSALS)


def layout_of(case: Case) -> Layout:
    x = case.layout
    return Layout(
        x.tp, x.pp, x.sequence_parallel, x.zero, x.offload, case.problem.precision, x.microbatches,
        cp=x.cp, cp_delta="tokens" if x.by_tokens else "heads",
    )  # fmt: skip


def test_all_that_is_allowed_is_compared_with_one_process() -> None:
    compared = {layout_of(case) for case in everything()}
    assert all(refusal(layout) is None for layout in compared)
    for asked in product((1, 2), (1, 2), (1, 2, 4), range(4), ("fp32", "bf16")):
        tp, cp, pp, zero, precision = asked
        layout = Layout(tp, pp, False, zero, False, precision, cp=cp)
        assert cp * pp > 4 or (refusal(layout) is None) == any(
            (x.tp, x.cp, x.pp, x.zero, x.precision) == asked for x in compared
        )


def test_the_documentation_prints_the_table() -> None:
    assert table() in (Path(__file__).parents[2] / "docs/parallelism.md").read_text(
        encoding="utf-8"
    )
