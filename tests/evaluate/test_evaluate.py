"""An evaluation's sums against a plain forward; and the warning that sleep does not help."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from launch.cli import main
from launch.commands.evaluate import show
from pretrain import evaluate
from pretrain.data.batch import IGNORE
from tests.model.tiny import L, build, change, sequences


def test_json_has_null_where_a_number_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [{"passes": 1, "loss": math.nan, "loss_per_window": [None, math.inf, 2.0]}]
    monkeypatch.setattr(evaluate, "evaluate_run", lambda *_: found)
    assert main(["eval", "runs/x", "--json"]) == 0
    written = '{"passes": 1, "loss": null, "loss_per_window": [null, null, 2.0]}\n'
    assert capsys.readouterr().out == written


@pytest.mark.parametrize("microbatches", [1, 2])
def test_loss_by_window_and_by_place(microbatches: int) -> None:
    """The sums equal those of forward passes checked against transformers, however rows are split
    into parts.
    """
    model = build(change(passes=2), dtype=torch.float32)
    batches = [sequences(3 * L, rows=2, unscored={0: [1]}), sequences(3 * L, rows=2)]
    metrics = evaluate.Evaluation(batches, L, microbatches, None).run(model)
    with torch.no_grad():
        windows = sum(model(b).window_loss for b in batches)
    scored = sum((b.targets != IGNORE).view(2, 3, L).sum(dim=(0, 2)) for b in batches)
    assert metrics["loss_per_window"] == pytest.approx((windows / scored).tolist(), rel=1e-5)
    assert metrics["loss"] == pytest.approx(float(windows.sum() / scored.sum()), rel=1e-5)
    assert len(metrics["loss_per_position"]) == L
    counts = sum((b.targets != IGNORE).view(2, 3, L).sum(dim=(0, 1)) for b in batches)
    total = sum(m * int(n) for m, n in zip(metrics["loss_per_position"], counts, strict=True))
    assert total == pytest.approx(float(windows.sum()), rel=1e-5)


def test_predictions_stand_where_the_targets_are() -> None:
    """One window, one pass: predictions are the model's own logits, position by position."""
    model = build(change(passes=1), dtype=torch.float32)
    batch = sequences(L, rows=2)
    batch.targets[0, 2] = IGNORE
    said = evaluate.predict(model, [batch])
    with torch.no_grad():
        seen: list[torch.Tensor] = []
        model(
            batch,
            head=lambda plan, y, goal: (seen.append(model.logits(y)), model.losses(y, goal))[1],
        )
    scored = batch.targets != IGNORE
    assert (
        torch.equal(said.best[scored], seen[0].argmax(-1)) and (said.best[~scored] == IGNORE).all()
    )
    torch.testing.assert_close(
        said.loss[scored], F.cross_entropy(seen[0], batch.targets[scored], reduction="none")
    )
    assert (said.loss[~scored] == 0).all()


def test_windows_without_targets_are_none() -> None:
    model = build(change(passes=2, when="context"), dtype=torch.float32)
    batch = sequences(3 * L, unscored={0: [0, 1], 1: [0, 1]})
    by_window = evaluate.Evaluation([batch], L, 1, None).run(model)["loss_per_window"]
    assert by_window[:2] == [None, None] and by_window[2] > 0


def test_the_warning_that_sleep_changes_nothing() -> None:
    def warning(n: int, loss: float, alone: float, kept: float | None = 0.0) -> str | None:
        return evaluate.sleep_changes_nothing(
            {"passes": n, "loss": loss}, {"passes": 1, "loss": alone}, kept
        )

    assert "decay_init" in (warning(4, 2.0, 2.0 + 1e-7) or "")
    assert warning(4, 2.0, 2.001) is None
    assert warning(1, 2.0, 2.0) is None
    assert warning(4, 2.0, 2.0, 0.5) is warning(4, 2.0, 2.0, None) is None  # too early to say
    assert warning(4, math.nan, 2.0) is None  # diverged, which is another problem


def test_a_model_that_forgets_at_once_is_warned_of() -> None:
    """On a real model: if every head forgets within a token, N passes and one agree."""
    model = build(change(passes=3, when="context"), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.fill_(6.0)
    evaluation = evaluate.Evaluation(
        [sequences(3 * L, unscored={0: [0, 1], 1: [0, 1]})], L, 1, None
    )
    assert evaluate.sleep_changes_nothing(evaluation.run(model), evaluation.run(model, 1), 0.0)


def test_a_table_of_many_columns_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    """At 80 columns: every number whole, windows counted from 1 as in reports."""
    results = [
        {"passes": n, "loss": n + 0.1234, "loss_per_window": [None, n + 0.1234]}
        for n in range(1, 7)
    ]
    show(results + [results[-1] | {"until": 0.05, "passes_made": 4.56}])
    said = capsys.readouterr().out
    assert "window 2" in said and "window 1" not in said and max(map(len, said.splitlines())) <= 80
    assert all(f"{n}.1234" in said for n in range(1, 7)) and "4.56" in said and "N <= 6" in said
