"""Bad losses and gradients: who decides, what is recorded, and how a run continues; on two ranks:
test_wrong_numbers.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pretrain import trainer
from pretrain.checkpoint import steps
from pretrain.config.schema import Config, GuardConfig, RunConfig
from pretrain.data.batch import Batch
from pretrain.data.index import find_split
from pretrain.data.reader import Shards
from pretrain.data.stream import TextStream
from pretrain.errors import UserError
from pretrain.run import guard
from pretrain.run.guard import StepFilter, StepOutcome
from pretrain.run.stop import Stop
from pretrain.tasks import TaskSource, make_task
from pretrain.trainer import train
from tests.marks import slow
from tests.run.conftest import MakeConfig, text_runs
from tests.run.planted import NAN, planted
from tests.runs import assert_same, assert_same_run, interrupted, position, rows, tensors
from tokenizer.encode import Tokenizer

INF = math.inf


def numbers(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and moments at a checkpoint."""
    return {name: t for name, t in tensors(run, step).items() if not name.startswith("state/")}


# ---- the decision


def test_outcomes_follow_the_running_means() -> None:
    """Against the plain formula, over a history with every kind of bad step."""
    g = torch.Generator().manual_seed(0)
    history = [
        (2 + float(torch.rand((), generator=g)), 1 + float(torch.rand((), generator=g)))
        for _ in range(60)
    ]
    bad = {
        5: (NAN, 1.0),
        6: (2.0, INF),
        10: (9.0, 9.0),
        30: (2.0, 9.0),
        31: (9.0, 1.0),
        32: (NAN, NAN),
        59: (2.0, 5.0),
    }
    step_filter, seen, in_a_row = StepFilter(3.0, torch.device("cpu")), [], 0
    for step, (loss, norm) in enumerate([bad.get(s, x) for s, x in enumerate(history)]):
        n, accepted = len(seen), bool(step_filter(torch.tensor(loss), torch.tensor(norm)))
        weights = [
            (1 - guard.DECAY) * guard.DECAY ** (n - i) / (1 - guard.DECAY**n)
            for i in range(1, n + 1)
        ]
        means = (
            [sum(w * s[j] for w, s in zip(weights, seen, strict=True)) for j in (0, 1)]
            if n
            else [NAN, NAN]
        )
        in_a_row = 0 if accepted else in_a_row + 1
        got = StepOutcome.read(step_filter.outcome)
        # 10: too early to know the usual values
        assert accepted == (step not in bad or step == 10), step
        assert got[:2] == (accepted, in_a_row)
        assert got[2:] == pytest.approx((loss, norm, *means), rel=1e-6, nan_ok=True)
        seen += [(loss, norm)] if accepted else []


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ((NAN, 1.0), "loss is nan"),
        ((INF, INF), "loss is inf, grad_norm is not finite"),
        ((2.0, NAN), "grad_norm is not finite"),
        ((9.0, 1.0), "loss is 4.5 times its mean"),
        ((2.0, 7.0), "grad_norm is 7 times its mean"),
        ((NAN, 7.0), "loss is nan, grad_norm is 7 times its mean"),
    ],
)
def test_why_names_what_was_wrong(seen: tuple[float, float], why: str) -> None:
    assert StepOutcome(False, 1, *seen, 2.0, 1.0).why(4.0) == why


# ---- a skipped step


def test_a_skipped_step_changes_nothing_and_is_recorded(
    depo: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with planted({2, 5}):
        config = depo("skips", checkpoint_every=1, keep=9)
        run = train(config)
    for step in range(1, 7):
        before, after = (
            (position(run, s)["optimizer"] for s in (step - 1, step)) if step > 1 else ({}, {})
        )
        if step in (3, 6):
            assert_same(numbers(run, step), numbers(run, step - 1), 0.0)
            assert (after["adam_steps"], after["skipped"]) == (
                before["adam_steps"],
                before["skipped"] + 1,
            )
        elif step > 1:
            old, new = numbers(run, step - 1), numbers(run, step)
            assert not any(torch.equal(v, new[n]) for n, v in old.items())
    found = rows(run, "skipped")
    assert [(row["step"], row["loss"], row["why"]) for row in found] == [
        (step, None, "loss is nan, grad_norm is not finite") for step in (3, 6)
    ]
    assert found[1]["samples"] == {"seed": 0, "rows": [20, 24]}
    assert "step 3 skipped: loss is nan, grad_norm is not finite\n" in capsys.readouterr().err


def trained_on(make: MakeConfig, source: type) -> tuple[Config, Any, Batch]:
    """A run whose third step is skipped: its configuration, the samples in its record, and the
    batch that it read.
    """
    config, seen = make("samples", steps=3), []
    with planted({2}):
        take = source.next
        with mock.patch.object(source, "next", lambda self: seen.append(take(self)) or seen[-1]):
            (row,) = rows(train(config, progress=False), "skipped")
    return config, row["samples"], seen[2]


def test_samples_of_text_are_found_again(text: MakeConfig) -> None:
    config, samples, batch = trained_on(text, TextStream)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    for lane, spans in enumerate(samples):
        read = []
        for span in spans:
            shards = Shards(find_split(span["corpus"], "train"), tokenizer)
            ids = [*shards.document(span["document"]).tolist(), tokenizer.eos]
            read += ids[span["first"] :][: span["tokens"]]
        assert read == batch.tokens[lane][batch.valid[lane]].tolist()


def test_samples_of_a_task_are_found_again(depo: MakeConfig) -> None:
    config, samples, batch = trained_on(depo, TaskSource)
    first, stop = samples["rows"]
    again = make_task(config, config.sleep.window).sample(samples["seed"], first, stop - first)
    assert torch.equal(again.tokens, batch.tokens)


def test_spikes_are_skipped_and_a_resumed_run_decides_the_same(
    text: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "WARMUP_STEPS", 1)

    def make(name: str) -> Config:
        return replace(
            text(name, checkpoint_every=1, log_every=1, eval_every=1, keep=9),
            guard=GuardConfig(spike=4.0),
        )

    with planted({2, 4}, factor=9.0):
        expected = train(make("whole"), progress=False)
        assert_same_run(train(interrupted(make("parts")), progress=False), expected)
    found = rows(expected, "skipped")
    assert [row["step"] for row in found] == [3, 5]
    assert all(
        re.fullmatch(r"loss is 8\.\S+ times its mean, grad_norm is \S+ times its mean", r["why"])
        for r in found
    )
    calm = train(replace(make("calm"), guard=GuardConfig()), progress=False)
    assert not rows(calm, "skipped")


def test_what_is_usual_is_learnt_anew_if_moments_come_from_another_run(
    depo: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their steps count for Adam alone, also once the new run is resumed."""
    monkeypatch.setattr(guard, "WARMUP_STEPS", 2)
    spikes = {"guard": GuardConfig(spike=8.0)}
    first = replace(depo("first", steps=3), **spikes)
    start = str(train(first, progress=False))
    begins = RunConfig(name="along", dir=first.run.dir, init_from=start, init_moments=True)
    along = replace(depo("along", steps=4), run=begins, **spikes)
    with planted({3}, factor=99.0):
        run = train(interrupted(along, 2), progress=False)
    assert position(run, 4)["optimizer"] == {"adam_steps": 6, "skipped": 1, "in_a_row": 1}
    (skipped,) = rows(run, "skipped")
    assert skipped["step"] == 4
    assert re.match(r"loss is (9\d|10\d) times its mean", skipped["why"]), skipped["why"]


def test_a_spoilt_memory_is_not_carried_on(text: MakeConfig) -> None:
    """Documents of the skipped step continue with zero fast weights, and without kept keys."""
    with planted({2}, "embedded"):
        run = train(text("memory", eviction="sliding", steps=4, log_every=1), progress=False)
    lanes = {name: t for name, t in tensors(run, 3).items() if name.startswith("state/lanes.b")}
    assert any(name.endswith(".S") for name in lanes) and any(name.endswith(".k") for name in lanes)
    assert not any(t.any() for t in lanes.values())
    assert [row["step"] for row in rows(run, "skipped")] == [3]
    assert all(row["loss"] is not None for row in rows(run, "train") if row["step"] != 3)


# ---- too many bad steps


def guarded(config: Config, then: str = "rollback", limit: int = 2, **changes: Any) -> Config:
    return replace(config, guard=GuardConfig(then=then, limit=limit, **changes))


def test_too_many_in_a_row_stop_the_run_with_an_explanation(depo: MakeConfig) -> None:
    with planted({1, 3, 4, 5}):
        config = guarded(depo("stops", steps=8, checkpoint_every=9), "stop")
        with pytest.raises(UserError) as error:
            train(config, progress=False)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "steps 4 to 6 were all skipped (guard.limit = 2), "
        "the last because loss is nan, grad_norm is not finite",
        "metrics.jsonl",
        'guard.then = "stop"',
        'set guard.then = "rollback"',
        "its loss is nan (the mean was ",
    ):
        assert part in message, message
    run = Path(config.run.dir) / "stops"
    # including the step that was already running
    assert [row["step"] for row in rows(run, "skipped")] == [2, 4, 5, 6]


def jumping(at: int, to: int) -> Any:
    """A text stream that gives batch `to` in place of batch `at`, with every document starting
    anew there.
    """
    take = TextStream.next

    def next_batch(self: TextStream) -> Any:
        jumps = self.state_dict()["steps"] == at
        for _ in range(to - at if jumps else 0):
            take(self)
        batch = take(self)
        if jumps:
            assert not batch.starts[:, 0].all(), "some document must be in its middle"
            batch.starts[:, 0] = True
        return batch

    return mock.patch.object(TextStream, "next", next_batch)


TROUBLE = {4, 5}  # batches of steps 5 and 6; the checkpoint of step 6 makes the host look at once


def test_a_rollback_goes_on_with_the_data_after_the_trouble(
    text: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is that of a run that never saw those data, and whose open documents then begin
    with S = 0.
    """
    changes = {"steps": 8, "checkpoint_every": 2, "log_every": 1, "eval_every": 8, "keep": 9}
    with jumping(at=4, to=6):
        expected = train(text("never", **changes), progress=False)
    with planted(TROUBLE, "embedded") as taken:
        run = train(guarded(text("back", **changes)))
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    for step in (6, 8):
        assert_same(tensors(run, step), tensors(expected, step), 0.0)
    clean = [row for row in rows(run) if row["kind"] not in ("skipped", "rollback")]
    assert clean == rows(expected)
    assert [(row["step"], row["rollbacks"]) for row in rows(run, "skipped")] == [(5, 0), (6, 0)]
    assert rows(run, "rollback") == [{"kind": "rollback", "step": 4, "from": 6, "rollbacks": 1}]
    assert "continuing from step 4 with the data after them" in capsys.readouterr().err


@pytest.mark.parametrize("every", [slow(1), 2])
def test_a_batch_that_a_rollback_undoes_comes_again(depo: MakeConfig, every: int) -> None:
    """If no checkpoint is due, a bad streak is noticed one step late. That step was good: its rows
    must not be lost.
    """
    with planted({3, 4}) as taken:
        run = train(guarded(depo("again", checkpoint_every=every, keep=9)), progress=False)
    last_good = 3 if every == 1 else 2
    assert [(row["step"], row["from"]) for row in rows(run, "rollback")] == [(last_good, 5)]
    assert taken == [0, 1, 2, 3, 4, *([5] if every == 2 else []), *range(5, 5 + 6 - last_good)]


AROUND = {"steps": 8, "checkpoint_every": 4, "log_every": 1}


@pytest.fixture(scope="module")
def went_back(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run that meets the bad batches and rolls back."""
    make = text_runs(corpus, tmp_path_factory.mktemp("whole"))
    with planted(TROUBLE, "embedded"):
        return train(guarded(make("whole", **AROUND)), progress=False)


@pytest.mark.parametrize("killed_before", [slow(6), 7, slow(8)])
def test_a_run_that_was_killed_around_a_rollback_is_the_same_run(
    text: MakeConfig, went_back: Path, killed_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before batch 6, a run is in the bad streak; before 7 or 8, it has rolled back and
    continued with batch 6.
    """
    with planted(TROUBLE, "embedded"):
        config, take = guarded(text("killed", **AROUND)), TextStream.next

        def dies(self: TextStream) -> Any:
            if self.state_dict()["steps"] == killed_before:
                raise KeyboardInterrupt
            return take(self)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TextStream, "next", dies)
            train(config, progress=False)
    with planted(TROUBLE, "embedded") as taken:
        run = train(config, progress=False)
    assert taken[0] == (4 if killed_before < 7 else 6)  # a completed rollback is not repeated
    assert_same(tensors(run, 8), tensors(went_back, 8), 0.0)
    assert position(run, 8) == position(went_back, 8)
    assert rows(run) == rows(went_back)


@pytest.mark.parametrize(
    ("then", "at"),
    [slow("rollback", 5), slow("rollback", 6), slow("stop", 6)],
)
def test_a_run_that_was_stopped_around_trouble_is_the_same_run(
    text: MakeConfig, went_back: Path, then: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 5 or 6, whose outcomes have not been read: the resumed run must notice the
    bad streak too.
    """

    class Stopped(Stop):
        @contextmanager
        def update(self, step: int) -> Iterator[None]:
            with super().update(step):
                yield
            if step == at:
                with suppress(UserError):
                    self._save()
                raise KeyboardInterrupt

    def outcome(config: Config) -> Path | str:
        with planted(TROUBLE, "embedded"):
            try:
                return train(config, progress=False)
            except UserError as error:
                return str(error)

    expected = went_back if then == "rollback" else outcome(guarded(text("whole", **AROUND), then))
    config = guarded(text("stopped", **AROUND), then)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "Stop", Stopped)
        outcome(config)
    got = outcome(config)
    if isinstance(expected, str):
        assert got == expected
    else:
        assert isinstance(got, Path)
        assert_same(tensors(got, 8), tensors(expected, 8), 0.0)
        assert position(got, 8) == position(expected, 8)
        assert rows(got) == rows(expected)


def test_it_goes_back_to_a_checkpoint_from_before_the_trouble(depo: MakeConfig) -> None:
    """The checkpoints of steps 3 and 4 were saved during the bad streak."""
    with planted({2, 3, 4}) as taken:
        run = train(guarded(depo("amid", checkpoint_every=1, keep=9), limit=3), progress=False)
    with planted({2, 3, 4}):  # a run that is interrupted there continues counting
        parts = train(
            interrupted(guarded(depo("parts", checkpoint_every=1, keep=9), limit=3)), progress=False
        )
    assert_same_run(parts, run)
    assert [row["step"] for row in rows(run, "rollback")] == [2]
    assert taken == list(range(9))
    assert position(run)["optimizer"] == {"adam_steps": 6, "skipped": 0, "in_a_row": 0}
    assert position(run)["rollbacks"] == {"total": 1, "here": 0}
    assert position(run, 2)["rollbacks"] == {"total": 1, "here": 1}


def test_a_checkpoint_amid_trouble_does_not_replace_the_one_to_go_back_to(depo: MakeConfig) -> None:
    with planted({2, 3, 4}):
        config = guarded(depo("replaced", checkpoint_every=1, keep=1), limit=3)
        run = train(config, progress=False)
    assert [row["step"] for row in rows(run, "rollback")] == [2]
    assert steps(run) == [6]  # after the bad streak, no more are kept than usual


def test_it_stops_when_going_back_does_not_help(depo: MakeConfig) -> None:
    with planted(range(3, 99)) as taken:
        config = guarded(depo("hopeless", steps=9), rollbacks=2)
        with pytest.raises(
            UserError, match=r"steps 4 to 6 .* already gone back 2 times to step 3.*\.rollbacks = 2"
        ):
            train(config, progress=False)
        # three times two steps and the one already running
        assert taken == [0, 1, 2] + list(range(3, 12))
    run = Path(config.run.dir) / "hopeless"
    assert [(r["kind"], r["step"], r["rollbacks"]) for r in rows(run) if "rollbacks" in r] == [
        *[("skipped", s, 0) for s in (4, 5, 6)], ("rollback", 3, 1),
        *[("skipped", s, 1) for s in (4, 5, 6)], ("rollback", 3, 2),
        *[("skipped", s, 2) for s in (4, 5, 6)],
    ]  # fmt: skip
    assert json.loads((run / "checkpoints/step-3/state.json").read_text())["rollbacks"] == {
        "total": 2,
        "here": 2,
    }


def test_it_stops_where_there_is_nothing_to_go_back_to(depo: MakeConfig) -> None:
    """There are checkpoints, but all were saved during the bad streak."""
    with (
        planted(range(3)),
        pytest.raises(UserError, match=r"steps 1 to 3 .* no good checkpoint to go back to"),
    ):
        train(guarded(depo("at-once", checkpoint_every=1), limit=3), progress=False)


def test_what_decided_so_far_cannot_be_changed(depo: MakeConfig) -> None:
    train(depo("changed", steps=3), progress=False)
    with pytest.raises(UserError, match=r"guard\.spike = 3\.0 \(was 0\.0\)"):
        train(replace(depo("changed"), guard=GuardConfig(spike=3.0)), progress=False)
    train(guarded(depo("changed"), "rollback", 5, rollbacks=1), progress=False)
