"""hypnos reproduce: one of the paper's experiments, every N and control, with several seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from launch.commands import argument, command
from launch.commands.values import path, positive, tell

HYPNOS = [sys.executable, "-m", "launch"]
UNFINISHED = 75  # "temporary failure": saved, to be started again


@command(
    "reproduce",
    "run one of the paper's experiments: every N and control, several seeds, a verdict",
    description="Trains and evaluates every run of an experiment that is not done yet, some at a "
    "time, then writes results.md, results.csv, curves.csv and pictures. Interrupted, the same "
    "command goes on.",
    example="hypnos reproduce depo --scale cpu --seeds 3 --passes 1 2 4 --controls equal-flops\n"
    "hypnos reproduce rule110 --scale paper --seeds 1 --minutes 10",
    arguments=[
        argument(
            "task", choices=("rule110", "depo", "stories"), help="which of the paper's experiments"
        ),
        argument(
            "overrides",
            metavar="key=value",
            nargs="*",
            default=[],
            help="settings that differ, for every run",
        ),
        argument(
            "--scale",
            choices=("cpu", "paper"),
            default="cpu",
            help="cpu: small, hours on two cores; paper: as the paper has it",
        ),
        argument("--seeds", type=positive, metavar="COUNT", default=3, help="seeds, from 0"),
        argument(
            "--passes", type=positive, nargs="+", metavar="N", default=[1, 2, 4], help="N compared"
        ),
        argument(
            "--controls",
            nargs="+",
            metavar="NAME",
            default=[],
            help="also for the largest N; 'list' describes them all",
        ),
        argument("--jobs", type=positive, metavar="COUNT", help="runs at a time (default: cores)"),
        argument(
            "--minutes",
            type=positive,
            metavar="COUNT",
            help=f"save and end after so many, with status {UNFINISHED} if something is left",
        ),
        argument("--out", type=path, metavar="FOLDER", help="default: runs/reproduce/TASK-SCALE"),
    ],
)
def reproduce(
    task: str,
    overrides: list[str],
    scale: str,
    seeds: int,
    passes: list[int],
    controls: list[str],
    jobs: int | None,
    minutes: int | None,
    out: Path | None,
) -> int:
    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch and Megatron", tell):
        from pretrain.study.controls import CONTROLS, named
        from pretrain.study.progress import StudyProgress
        from pretrain.study.reproduce import STUDIES, plan, write_results
        from pretrain.study.runner import run_all

    if controls == ["list"]:
        for name, control in CONTROLS.items():
            print(f"{name:<16}{control.meaning}")
        return 0
    folder = out or Path("runs/reproduce") / f"{task}-{scale}"
    folder.mkdir(parents=True, exist_ok=True)
    if task == "stories" and not any(o.startswith("data.tokenizer=") for o in overrides):
        overrides = [*overrides, f"data.tokenizer={_stories_tokenizer(folder)}"]
    planned = plan(
        STUDIES[task][scale], passes=passes, seeds=seeds, controls=named(controls),
        overrides=overrides,
    )  # fmt: skip
    with StudyProgress() as progress:
        done = run_all(
            [p.run for p in planned], folder, hypnos=HYPNOS, jobs=jobs or os.cpu_count() or 1,
            seconds=60 * minutes if minutes else float("inf"), show=progress.show,
        )  # fmt: skip
    for job in done:
        if job.state == "failed":
            tell(f"{job.run.name} failed {job.tries} times: {job.log}")
    if any(job.state == "done" for job in done) or not minutes:
        print(write_results(planned, folder, f"{task}, {scale} scale"))
        print(f"\nwrote {folder / 'results.md'}")
    if any(job.state == "failed" for job in done):
        return 1
    return 0 if all(job.state == "done" for job in done) else UNFINISHED


def _stories_tokenizer(folder: Path) -> Path:
    """A small tokenizer of stories, trained once."""
    from pretrain.study.reproduce import write_stories

    model, texts = folder / "tokenizer.model", folder / "stories.jsonl"
    if not model.exists():
        write_stories(texts)
        train = ["tokenizer", "train", str(texts), "--vocab-size", "1024", "--out", str(model)]
        subprocess.run([*HYPNOS, *train], check=True)
    return model
