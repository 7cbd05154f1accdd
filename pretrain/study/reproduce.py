"""The paper's experiments as lists of runs: every N and control on the same data, several seeds.

OUT/runs, OUT/logs                       see `pretrain.study.runner`
OUT/results.csv, OUT/curves.csv          every run: at the end, and on the way
OUT/results.md, OUT/*.png                the verdict, the table and the pictures
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.load import load
from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.page import write_page
from pretrain.report import table
from pretrain.study.controls import CONTROLS, SLEEP
from pretrain.study.figures import draw
from pretrain.study.results import Arm, read_result
from pretrain.study.runner import Run, is_done
from pretrain.study.summary import curves_csv, final_csv, main_table, verdict
from pretrain.tasks.story_writer import write_story

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = {
    "rule110": {"cpu": CONFIGS / "studies/rule110-cpu.toml", "paper": CONFIGS / "rule110.toml"},
    "depo": {"cpu": CONFIGS / "studies/depo-cpu.toml", "paper": CONFIGS / "depo.toml"},
    "stories": {"cpu": CONFIGS / "studies/stories-cpu.toml", "paper": CONFIGS / "stories.toml"},
    **{t: {"cpu": CONFIGS / f"studies/{t}-cpu.toml"} for t in ("mqar", "s5", "brevo", "recall")},
}


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
    overrides: Sequence[str] = (),
) -> list[Planned]:
    """All runs of a study, seed by seed, so that an early end leaves whole comparisons.

    Args:
        passes: the N that are compared.
        seeds: how many, from 0; a seed is one of weights and of data, the same for all that is
            compared.
        controls: names of `CONTROLS`, each for the largest N.
        overrides: settings that differ from the file's, for every run.
    Raises:
        UserError: the file or an override is wrong.
    """
    settings = load(config, overrides)
    arms = [(f"n{n}", SLEEP, n) for n in sorted(passes)]
    arms += [(f"{name}-n{max(passes)}", CONTROLS[name], max(passes)) for name in controls]
    asked = {name: control.overrides(settings, n) for name, control, n in arms}  # one line each
    planned = []
    for seed in range(seeds):
        for name, control, n in arms:
            changes = (*overrides, f"run.seed={seed}", *asked[name])
            trained = load(config, changes).sleep.passes
            several = control is SLEEP or name.startswith("random-n")  # N at test
            tested = tuple(sorted({trained, *passes} if several else {trained}))
            run = Run(f"{name}-seed{seed}", config, changes, tested)
            planned.append(Planned(run, Arm(name, control.label.format(N=n), n), seed))
    return planned


def write_results(planned: Sequence[Planned], folder: Path, title: str) -> str:
    """Writes what there is so far of a study's results, and gives verdict and table as text.

    UserError: no run is done.
    """
    done = [p for p in planned if is_done(folder, p.run)]
    if not done:
        raise UserError(f"{folder}: no run is done yet; the logs in {folder / 'logs'} say why")
    results = [read_result(folder, p.run, p.arm, p.seed) for p in done]
    pictures = draw(results, folder)
    missing = [p.run.name for p in planned if p not in done]
    words = verdict(results)
    if missing:
        words.append(f"Not run yet: {', '.join(missing)}.")
    headers, rows = main_table(results)
    numbers = table(headers, rows)
    write_atomically(folder / "results.csv", final_csv(results))
    write_atomically(folder / "curves.csv", curves_csv(results))
    images = [f"![{p.stem.replace('_', ' ')}]({p.name})" for p in pictures]
    parts = [f"# {title}", *words, numbers, NOTE, *images]
    write_atomically(folder / "results.md", "\n\n".join(parts) + "\n")
    shown = [(p, p.stem.replace("_", " ")) for p in pictures]
    write_page(folder / "results.html", title, [*words, NOTE], [(headers, rows)], shown)
    return "\n".join([*words, "", numbers])


NOTE = (
    "Means over seeds with 95 % intervals (Student's t). Accuracies in percent, loss in nats. "
    "Equal data but where the label says otherwise; a seed gives all arms the same rows in the "
    "same order."
)


def write_stories(path: Path, count: int = 400) -> None:
    """Text for the tokenizer of a stories study: documents of the built-in generator, as .jsonl."""
    records = [write_story(random.Random(i), 1 + i % 8, 8).record(8) for i in range(count)]
    texts = (f"{r['question']} {r['problem']} Answer: {i}" for i, r in enumerate(records))
    write_atomically(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))
