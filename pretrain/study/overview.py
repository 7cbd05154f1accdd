"""Several studies in one table: tasks x N x controls, at the largest depth of each task.

Read from the results.csv that each study has written (`pretrain.study.reproduce`), wherever it is.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.page import write_page
from pretrain.study.controls import CONTROLS, EQUAL_FLOPS, SLEEP
from pretrain.study.reproduce import STUDIES
from pretrain.study.results import in_order, shown_name
from pretrain.study.summary import FINAL, as_cell
from pretrain.tables import table

RESULTS = "results.csv"
PASSES = (1, 2, 4, 8)
EQUAL = "N = 1, equal FLOPs"
NOTE = (
    "For each task its deepest measure, at the N of the row: accuracy in percent or loss in nats, "
    "mean over seeds with its 95 % interval (Student's t); with two seeds, both values in "
    "brackets; with one seed, its value alone. In a task's first column all rows have read the "
    "same data; the second is N = 1, trained until it has cost as many FLOPs as the N of the row. "
    "Machines, commits and dates are in each study's results.md."
)
Row = dict[str, str]


def is_study(folder: Path) -> bool:
    """Whether a study has written its results there."""
    return (folder / RESULTS).is_file()


def overview(folders: Sequence[Path], out: Path) -> str:
    """Writes OUT/overview.md and OUT/overview.html; returns the table.

    Args:
        folders: of studies, named after their task ("depo", "depo-cpu"); those with the same name
            are parts of one study. The paper's scale ("depo-paper") is a different study.
    Raises:
        UserError: a results.csv is invalid, or two have the same run.
    """
    studies = _studies(folders)
    arms = _arms([r for rows in studies.values() for r in rows])
    deepest = {task: in_order(r["measure"] for r in rows)[-1] for task, rows in studies.items()}
    headers, rows = [""], [[label] for label in arms.values()]
    for task, measure in deepest.items():
        headers += [f"{task}, {shown_name(measure)}", EQUAL]
        for (arm, tested_at), row in zip(arms, rows, strict=True):
            row.append(_cell(studies[task], arm, measure, tested_at))
            several = arm != "n1" and arm[1:].isdigit()  # of N passes, no control
            row.append(_cell(studies[task], f"{EQUAL_FLOPS}-{arm}", measure) if several else "")
    out.mkdir(parents=True, exist_ok=True)
    others = sorted(set(STUDIES) - {task.removesuffix("-paper") for task in studies})
    note = NOTE + (f" Not here: {', '.join(others)}." if others else "")
    written = table(headers, rows)
    write_atomically(out / "overview.md", f"# Sleep and its controls\n\n{note}\n\n{written}\n")
    write_page(out / "overview.html", "Sleep and its controls", [note], [(headers, rows)], {})
    return written


def _studies(folders: Sequence[Path]) -> dict[str, list[Row]]:
    """Rows by task. Parts of a study that ran in several places are put together."""
    studies: dict[str, list[Row]] = {}
    where: dict[tuple[str, ...], Path] = {}
    for path in dict.fromkeys(folder.resolve() / RESULTS for folder in folders):
        task, rows = path.parent.name.removesuffix("-cpu"), _read(path)
        for row in rows:
            run = (task, row["arm"], row["seed"])
            if where.setdefault(run, path) != path:
                fix = "leave one of the folders out"
                raise UserError(f"{path}: {run[1]}, seed {run[2]}, is in {where[run]} too; {fix}")
        studies.setdefault(task, []).extend(rows)
    return studies


def _arms(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """The rows of the table, with labels: the usual N and others that were run; N = 1 with more
    passes at test alone; each control at each N that it was run with, or, if it was not run, at the
    largest that any was run with. The second part of a key is the N at test, "" for that of
    training.
    """
    compared = {int(r["N"]) for r in rows if r["arm"] == f"n{r['N']}"}
    arms = {(f"n{n}", ""): SLEEP.label.format(N=n) for n in sorted(compared.union(PASSES))}
    tested = {int(r["tested_at"]) for r in rows if r["arm"] == "n1"} - {1}
    arms |= {("n1", str(n)): f"N = 1, tested with N = {n}" for n in sorted(tested)}
    controlled = {int(r["N"]) for r in rows if r["arm"] != f"n{r['N']}"}
    most = max(controlled or compared)
    for name, control in CONTROLS.items():
        if name != EQUAL_FLOPS:
            run = {int(r["N"]) for r in rows if r["arm"] == f"{name}-n{r['N']}"}
            arms |= {(f"{name}-n{n}", ""): control.label.format(N=n) for n in sorted(run or {most})}
    return arms


def _cell(rows: Sequence[Row], arm: str, measure: str, tested_at: str = "") -> str:
    """ "97.3 ± 2.1", "1 of 3 diverged" or "not run"."""
    mine = [r for r in rows if r["arm"] == arm]
    own = [r for r in mine if r["tested_at"] == (tested_at or r["N"])]
    mine = own if tested_at else own or mine  # some controls are tested with N = 1
    diverged = {r["seed"] for r in mine if r["measure"] == "loss" and r["value"] == "nan"}
    values = [
        math.nan if r["seed"] in diverged else float(r["value"])
        for r in mine
        if r["measure"] == measure
    ]
    return as_cell(values, measure) if values else "not run"


def _read(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            rows = list(lines)
    except FileNotFoundError:
        fix = "report runs separately from studies: `hypnos report RUN...`"
        said = f"no {path.name}: this folder is not a finished study"
        raise UserError(f"{path.parent}: {said}; {fix}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; write it again") from None
    if tuple(lines.fieldnames or ()) != FINAL or not rows:
        fix = "`hypnos reproduce` writes them (`hypnos scale` writes fit.html)"
        raise UserError(f"{path}: not the results of a study of tasks; {fix}")
    return rows
