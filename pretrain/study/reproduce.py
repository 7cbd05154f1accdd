"""Experiments as lists of runs: every N and control on the same data, several seeds.

OUT/runs, OUT/done, OUT/logs             see `pretrain.study.runner`
OUT/results.csv, OUT/curves.csv          every run: final results, and curves
OUT/results.md, OUT/*.png                the verdict, the table and the plots
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pretrain.config.run_folder import load_run
from pretrain.config.schema import Config
from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.page import write_page
from pretrain.study.controls import CONTROLS, SLEEP, Control
from pretrain.study.figures import draw
from pretrain.study.one_run import Run, all_done, has_results
from pretrain.study.results import Arm, Result, read_result
from pretrain.study.summary import (
    bits_table,
    controls_table,
    curves_csv,
    final_csv,
    main_table,
    verdict,
)
from pretrain.tables import table
from pretrain.tasks.story_writer import write_story

CONFIGS = Path(__file__).parents[2] / "configs"
TASKS = ("mqar", "s5", "brevo", "recall", "text")  # of ours
STORIES = 400  # for the tokenizer of a stories study
SET_BY_A_STUDY = {
    "run.seed": "--seeds", "run.name": "--out", "run.dir": "--out", "sleep.passes": "--passes",
}  # fmt: skip
STUDIES = {
    "rule110": {"cpu": CONFIGS / "studies/rule110-cpu.toml", "paper": CONFIGS / "rule110.toml"},
    "depo": {"cpu": CONFIGS / "studies/depo-cpu.toml", "paper": CONFIGS / "depo.toml"},
    "stories": {"cpu": CONFIGS / "studies/stories-cpu.toml", "paper": CONFIGS / "stories.toml"},
    **{t: {"cpu": CONFIGS / f"studies/{t}-cpu.toml"} for t in TASKS},
}


class Experiment(NamedTuple):
    """What a study is of."""

    name: str  # of its folder
    title: str
    config: Path


def experiment(task: str, scale: str | None) -> Experiment:
    """One of `STUDIES`, at a scale ("cpu" if None); or a configuration of one's own, by its path.

    Raises:
        UserError: there is no such experiment.
    """
    if task in STUDIES:
        sizes = STUDIES[task]
        if (scale := scale or "cpu") not in sizes:
            raise UserError(f"{task} is not from the paper, so it has no --scale {scale}: use cpu")
        return Experiment(f"{task}-{scale}", f"{task}, {scale} scale", sizes[scale])
    path = Path(task)
    if path.suffix != ".toml":
        raise UserError(
            f"{task}: no experiment; name {', '.join(STUDIES)} or a configuration of yours (.toml)"
        )
    if scale:
        raise UserError(f"--scale {scale}: {task} has the one size that it sets; leave --scale out")
    return Experiment(path.stem, path.stem, path)


@dataclass(frozen=True)
class Planned:
    """A run and its place in the study."""

    run: Run
    arm: Arm
    seed: int


def plan(
    config: Path,
    *,
    passes: Sequence[int],
    seeds: int,
    controls: Sequence[str] = (),
    controls_of: Collection[int] = (),
    overrides: Sequence[str] = (),
) -> list[Planned]:
    """All runs of a study, seed by seed, so that an early end leaves complete comparisons.

    Args:
        passes: the N that are compared.
        seeds: how many, from 0; a seed is for weights and data, the same for all arms.
        controls: names of `CONTROLS`.
        controls_of: the N that controls are run for; empty: the largest, or every N but 1
            (equal-flops).
        overrides: settings that differ from the file's, for every run.
    Raises:
        UserError: the file or an override is wrong, or a control does not fit this task.
    """
    settings = load_run(config, overrides)
    compared = sorted(set(passes))
    for override in overrides:
        if (place := override.split("=")[0].strip()) in SET_BY_A_STUDY:
            raise UserError(f"{override}: a study sets {place} itself; use {SET_BY_A_STUDY[place]}")
    if controls and compared[-1] == 1:
        raise UserError("--controls need an N above 1 to be compared with; name one with --passes")
    sleeping, chosen = [n for n in compared if n > 1], sorted(set(controls_of))
    if strange := [n for n in chosen if n not in sleeping]:
        raise UserError(
            f"--controls-of {strange[0]}: name an N above 1 that --passes has: "
            f"{', '.join(map(str, sleeping)) or 'none'}"
        )
    arms = [(f"n{n}", SLEEP, n) for n in compared]
    for name in controls:
        of = chosen or (sleeping if CONTROLS[name].every_n else compared[-1:])
        arms += [(f"{name}-n{n}", CONTROLS[name], n) for n in of]
    asked = {name: control.overrides(settings, n) for name, control, n in arms}  # one line each
    planned = []
    for seed in range(seeds):
        for name, control, n in arms:
            changes = (*overrides, f"run.seed={seed}", *asked[name])
            trained = _settings(config, changes, name, control).sleep.passes
            tested = tuple(sorted({trained, *(passes if control.tested_at_all else ())}))
            run = Run(f"{name}-seed{seed}", config, changes, tested)
            planned.append(Planned(run, Arm(name, control.label.format(N=n), n), seed))
    return planned


def _settings(config: Path, changes: Sequence[str], name: str, control: Control) -> Config:
    """The configuration of a run. UserError: the control does not fit the study's task."""
    try:
        return load_run(config, changes)
    except UserError as error:
        if control is SLEEP:
            raise
        asked = name.rpartition("-n")[0]
        raise UserError(f"--controls {asked}: {error}; or leave {asked} out") from None


def write_results(
    planned: Sequence[Planned], folder: Path, title: str, failed: Collection[str] = ()
) -> str:
    """Writes a study's results so far; returns verdict and table as text.

    Args:
        failed: names of runs that have failed.
    Raises:
        UserError: no run is done.
    """
    done = [p for p in planned if has_results(folder, p.run)]
    if not done:
        raise UserError(f"{folder}: no run is done yet; the logs in {folder / 'logs'} say why")
    results = [read_result(folder, p.run, p.arm, p.seed) for p in done]
    pictures = draw(results, folder)
    given_up = [p for p in planned if p.run.name in failed and p not in done]
    words = [*verdict(results), *_diverged(done, results), *_failed(given_up, folder)]
    words += [*_not_run(planned, [*done, *given_up]), *_not_tested(done, results)]
    words += _not_asked(planned, folder)
    words += _origins(results)
    arms = list(dict.fromkeys(p.arm for p in planned))
    headers, rows = main_table(results, arms, {p.arm for p in given_up})
    tables = [(headers, rows), *filter(None, (controls_table(results), bits_table(results)))]
    numbers = "\n\n".join(table(*each) for each in tables)
    write_atomically(folder / "results.csv", final_csv(results))
    write_atomically(folder / "curves.csv", curves_csv(results))
    images = [f"![{caption}]({picture.name})" for picture, caption in pictures.items()]
    parts = [f"# {title}", *words, numbers, NOTE, *images]
    write_atomically(folder / "results.md", "\n\n".join(parts) + "\n")
    write_page(folder / "results.html", title, [*words, NOTE], tables, pictures)
    return "\n".join([*words, "", numbers])


def _diverged(done: Sequence[Planned], results: Sequence[Result]) -> list[str]:
    """A sentence on runs whose loss is no number: whatever else they have says nothing."""
    names = [p.run.name for p, result in zip(done, results, strict=True) if result.diverged]
    return [f"Diverged (the loss is not finite): {', '.join(names)}."] if names else []


def _failed(given_up: Sequence[Planned], folder: Path) -> list[str]:
    """A sentence on runs that were begun and did not end well."""
    names = ", ".join(p.run.name for p in given_up)
    return [f"Failed, and the logs in {folder / 'logs'} say why: {names}."] if names else []


def _not_run(planned: Sequence[Planned], done: Sequence[Planned]) -> list[str]:
    """A sentence on the seeds that are missing of arms that were run; others have a row."""
    begun = {p.arm for p in done}
    missing: dict[Arm, list[str]] = {}
    for p in planned:
        if p.arm in begun and p not in done:
            missing.setdefault(p.arm, []).append(str(p.seed))
    each = [f"{arm.label}: {', '.join(seeds)}" for arm, seeds in missing.items()]
    return [f"Seeds not run: {'; '.join(each)}."] if each else []


def _not_tested(done: Sequence[Planned], results: Sequence[Result]) -> list[str]:
    """A sentence on runs that were not tested at each N: they still will be, where more than what
    they have left is here.
    """
    missing: dict[int, list[str]] = {}
    for p, result in zip(done, results, strict=True):
        for n in set(p.run.passes) - result.scores.keys():
            missing.setdefault(n, []).append(p.run.name)
    each = [f"N = {n}: {', '.join(names)}" for n, names in sorted(missing.items())]
    return [f"Not tested yet, or without weights to test, with {'; '.join(each)}."] if each else []


def _not_asked(planned: Sequence[Planned], folder: Path) -> list[str]:
    """A sentence on runs that are done and no part of what was asked for."""
    others = all_done(folder) - {p.run.name for p in planned}
    return [f"Done, but not asked for: {', '.join(sorted(others))}."] if others else []


def _origins(results: Sequence[Result]) -> list[str]:
    """On which machines, of which commits and when the runs were made: a sentence each."""
    found: dict[tuple[str, str], list[str]] = {}
    for made in (r.origin for r in results):
        found.setdefault((made["machine"], made["commit"]), []).append(made["date"])
    return [
        f"{len(days)} run{'s' if len(days) > 1 else ''} on {machine}, commit {commit}, "
        f"{' to '.join(dict.fromkeys([min(days), max(days)]))}."
        for (machine, commit), days in found.items()
    ]


NOTE = (
    "Means over seeds with 95 % intervals (Student's t); of two seeds, both values. Accuracies in "
    "percent, loss in nats. All arms read the same data unless the label says otherwise; a seed "
    "gives all arms the same rows in the same order. With one seed, a gain in loss has its "
    "interval over held-out rows: it covers other text, not another seed."
)


def write_stories(path: Path) -> None:
    """Text for the tokenizer of a stories study: documents of the built-in generator, as .jsonl."""
    records = [write_story(random.Random(i), 1 + i % 8, 8).record(8) for i in range(STORIES)]
    texts = (f"{r['question']} {r['problem']} Answer: {i}" for i, r in enumerate(records))
    write_atomically(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
