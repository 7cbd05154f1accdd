"""hypnos reproduce: runs an experiment, the paper's or one's own, for every N and control."""

from __future__ import annotations

import subprocess
import sysconfig
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from launch import HYPNOS
from launch.commands import argument, command, overrides
from launch.commands.many_runs import (
    DRY_RUN,
    DRY_RUN_HARDWARE,
    JOBS,
    array_argument,
    check_flags,
    evaluate_trained,
    status_of,
    tell_end,
    write_left,
)
from launch.commands.values import path, positive, tell, whole
from pretrain.exit_status import REQUEUE

_VOCABULARY = {"stories": 1024, "recall": 1024, "text": 4096}  # of tasks of text
_OWN_TEXTS = ("data.tokenizer=", "data.train=", "data.heldout=")  # if given, no corpus is made


@command(
    "reproduce",
    "run an experiment, the paper's or your own: every N and control, several seeds, a verdict",
    description="Trains and evaluates all unfinished runs of an experiment, several at a time, "
    "then writes results.md, results.csv, curves.csv and plots. If interrupted, the same command "
    "continues.",
    example="hypnos reproduce depo --scale cpu --seeds 3 --passes 1 2 4 --controls equal-flops\n"
    "hypnos reproduce rule110 --scale paper --seeds 1 --minutes 10\n"
    "hypnos reproduce configs/questions.toml questions.path=mine.jsonl --passes 1 4\n"
    "hypnos reproduce depo --scale paper --dry-run --hardware h200",
    arguments=[
        argument(
            "task",
            metavar="EXPERIMENT",
            help="rule110, depo, stories (the paper's), mqar, s5, brevo, recall or text (the "
            "sources and documentation of the installed Python packages); or the .toml of a run "
            "of yours",
        ),
        overrides("settings that differ, for every run"),
        argument(
            "--scale",
            choices=("cpu", "paper"),
            help="cpu: small, hours on two cores (default); paper: the paper's size",
        ),
        argument("--seeds", type=positive, metavar="COUNT", default=3, help="seeds, from 0"),
        argument(
            "--passes",
            type=positive,
            nargs="+",
            metavar="N",
            default=[1, 2, 4],
            help="N to compare",
        ),
        argument(
            "--controls",
            nargs="+",
            metavar="NAME",
            default=[],
            help="controls to run for the largest N (equal-flops: every N); 'list' describes them",
        ),
        argument(
            "--controls-of",
            type=positive,
            nargs="+",
            metavar="N",
            default=[],
            help="the N that controls are for, if not the largest",
        ),
        DRY_RUN,
        DRY_RUN_HARDWARE,
        JOBS,
        argument(
            "--minutes",
            type=whole,
            metavar="COUNT",
            help=f"save and end after so many minutes, with status {REQUEUE} if runs are left; "
            "0: train nothing, write the results so far",
        ),
        array_argument("once they are trained, the same command without it does the rest"),
        argument(
            "--out",
            type=path,
            metavar="FOLDER",
            help="default: runs/reproduce/TASK-SCALE, or /NAME of NAME.toml",
        ),
    ],
)
def reproduce(
    task: str,
    overrides: list[str],
    scale: str | None,
    seeds: int,
    passes: list[int],
    controls: list[str],
    controls_of: list[int],
    dry_run: bool,
    hardware: str | None,
    jobs: int | None,
    minutes: int | None,
    array: Path | None,
    out: Path | None,
) -> int:
    from pretrain.run.console import said_if_slow

    planned_for = check_flags(array, minutes, dry_run, hardware)
    with said_if_slow("loading torch and Megatron", tell):
        from pretrain.study.controls import CONTROLS, named
        from pretrain.study.one_run import has_results, is_done
        from pretrain.study.progress import StudyProgress
        from pretrain.study.reproduce import experiment, plan, write_results
        from pretrain.study.runner import run_all

    if controls == ["list"]:
        for name, control in CONTROLS.items():
            print(f"{name:<20}{control.meaning}")
        return 0
    asked = experiment(task, scale)
    chosen = named(controls)
    folder = out or Path("runs/reproduce") / asked.name
    planned_with = partial(
        plan, asked.config, passes=passes, seeds=seeds, controls=chosen, controls_of=controls_of,
    )  # fmt: skip
    has_own = task not in _VOCABULARY or any(o.startswith(_OWN_TEXTS) for o in overrides)
    if dry_run:
        from pretrain.study.dry_run import dry_run as shown

        with TemporaryDirectory() as texts:  # of a dry run nothing is left
            if not has_own:
                overrides = _dry_texts(Path(texts), task, overrides)
            first = [p.run for p in planned_with(overrides=overrides) if p.seed == 0]
            print(shown(first, seeds, planned_for))
        return 0
    if not has_own:
        _make_texts(folder.absolute(), task)
        overrides = [*overrides, *_texts(folder.absolute(), task)]
    planned = planned_with(overrides=overrides)
    folder.mkdir(parents=True, exist_ok=True)
    if array:
        evaluate_trained([p.run for p in planned], folder, jobs)
        left = [p.run for p in planned if not is_done(folder, p.run)]
        if not left:
            print("all runs are done; next: the same command without --array writes the results")
            return 0
        print(write_left(left, folder, array))
        return 0
    with StudyProgress() as progress:
        done = run_all(
            [p.run for p in planned], folder, hypnos=HYPNOS, jobs=jobs,
            seconds=float("inf") if minutes is None else 60 * minutes, show=progress.show,
        )  # fmt: skip
    tell_end(done)
    if minutes is None or any(has_results(folder, p.run) for p in planned):
        failed = {job.run.name for job in done if job.state == "failed"}
        print(write_results(planned, folder, asked.title, failed))
        print(f"\nwrote {folder / 'results.md'} and {folder / 'results.html'}")
    return status_of([job.state for job in done])


def _texts(folder: Path, task: str) -> list[str]:
    """Overrides with the paths of a task's tokenizer and text shards. `folder` is absolute, so that
    they are valid wherever a run is started.
    """
    from pretrain.config.load import to_toml

    tokenizer, shards = f"data.tokenizer={folder / 'tokenizer.model'}", folder / "shards"
    if task != "text":
        return [tokenizer]
    train = to_toml([{"path": str(shards / "train")}])
    return [tokenizer, f"data.train={train}", f"data.heldout={shards / 'heldout'}"]


def _dry_texts(folder: Path, task: str, overrides: list[str]) -> list[str]:
    """The overrides, with what a dry run needs to know of a task's texts."""
    if task != "text":
        _make_texts(folder, task)
        return [*overrides, *_texts(folder, task)]
    # of text only the number of its tokens counts; a setting of the user's comes after it
    return [f"model.vocab_size={_VOCABULARY[task]}", *overrides, *_texts(folder, task)]


def _make_texts(folder: Path, task: str) -> None:
    """Makes what `_texts` names, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    model, texts, shards = folder / "tokenizer.model", folder / "stories.jsonl", folder / "shards"
    if not model.exists():
        source = "--python"
        if task == "stories":
            from pretrain.study.reproduce import write_stories

            write_stories(texts)
            source = str(texts)
        size = str(_VOCABULARY[task])
        _run("tokenizer", "train", source, "--vocab-size", size, "--out", str(model))
    if task == "text" and not shards.exists():
        packages = sysconfig.get_path("purelib")
        where = "--tokenizer", str(model), "--out", str(shards)
        _run("data", "prepare", packages, "--holdout", "0.02", "--skip-bad", *where)


def _run(*command: str) -> None:
    """Runs a `hypnos` command in a process of its own. SystemExit: it failed, and printed why."""
    if status := subprocess.run([*HYPNOS, *command]).returncode:
        raise SystemExit(status)
