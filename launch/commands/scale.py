"""hypnos scale: a ladder of model sizes, each rung predicted before it runs; fits scaling laws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
from launch.commands.values import path, positive, tell
from pretrain.exit_status import REQUEUE

if TYPE_CHECKING:
    from pretrain.study.ladder import LadderRun, Study


@command(
    "scale",
    "a scaling study: sizes x N x text, each rung predicted before it runs, fitted laws",
    description="Expands a ladder into runs and trains the unfinished ones, rung by rung, smallest "
    "first; before each rung prints what the lower rungs predict, and after it the error; fits the "
    "laws of loss and of accuracy by depth. If interrupted, the same command continues.",
    example="hypnos scale configs/scale/depo.toml --dry-run --hardware h100\n"
    "hypnos scale configs/scale/depo.toml --jobs 2\n"
    "hypnos scale configs/scale/depo.toml --coordinates transfer.depth_power=0.5",
    arguments=[
        argument("study", metavar="STUDY", type=path, help="TOML file; configs/scale has some"),
        overrides("settings of the study that differ, as ladder.seeds=1"),
        DRY_RUN,
        DRY_RUN_HARDWARE,
        argument(
            "--coordinates",
            action="store_true",
            help="coordinate check, without full training: whether the study's rule for learning "
            "rates and initial values keeps activations, memory and updates of the same size at "
            "every width, depth and N",
        ),
        argument("--steps", type=positive, default=8, help="steps of --coordinates"),
        JOBS,
        argument(
            "--minutes",
            type=positive,
            metavar="COUNT",
            help=f"save and end after so many minutes, with status {REQUEUE} if runs are left",
        ),
        array_argument("what those have trained is evaluated here first, so call it again then"),
        argument("--out", type=path, metavar="FOLDER", help="default: runs/scale/STUDY"),
    ],
)
def scale(
    study: Path,
    overrides: list[str],
    dry_run: bool,
    hardware: str | None,
    coordinates: bool,
    steps: int,
    jobs: int | None,
    minutes: int | None,
    array: Path | None,
    out: Path | None,
) -> int:
    from pretrain.run.console import said_if_slow

    with said_if_slow("loading torch and Megatron", tell):
        from pretrain.study.ladder import expand, read_study, too_short

    planned_for = check_flags(array, minutes, dry_run, hardware)
    settings = read_study(study, overrides)
    folder = out or Path("runs/scale") / study.stem
    if coordinates:
        return _coordinates(study, settings, steps, folder)
    with said_if_slow("expanding the study", tell):
        runs = expand(study, settings)
    if short := too_short(runs):
        tell(
            f"warning: {len(short)} of {len(runs)} runs decay before they have warmed up, the "
            f"first is {short[0]}: their learning rates never reach their peak; lower "
            "optimizer.warmup in ladder.settings, or leave out the smallest of ladder.budgets"
        )
    if dry_run:
        from pretrain.study.dry_run import dry_run as shown

        first = [r.run for r in runs if r.seed == 0]
        print(shown(first, settings.ladder.seeds, planned_for))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if array:
        return _array(runs, folder, array, jobs, settings.ladder.chance)
    return _run(study, settings, runs, folder, jobs, minutes)


def _run(
    file: Path,
    study: Study,
    runs: list[LadderRun],
    folder: Path,
    jobs: int | None,
    minutes: int | None,
) -> int:
    """Rung by rung: predicts, runs, compares; then fits the laws."""
    import time

    from pretrain.errors import UserError
    from pretrain.study.fit_report import write_fit
    from pretrain.study.predictions import (
        predict,
        predict_all,
        prediction_table,
        write_predictions,
    )
    from pretrain.study.progress import StudyProgress
    from pretrain.study.runner import run_all
    from pretrain.study.scale import finished
    from pretrain.tables import table

    deadline = time.monotonic() + (60 * minutes if minutes else float("inf"))
    states: list[str] = []
    chance = study.ladder.chance
    for number in sorted({r.rung for r in runs}):
        mine = [r for r in runs if r.rung == number]
        if time.monotonic() > deadline:
            states += ["waiting"] * len(mine)
            break
        done = finished(runs, folder)
        predicted = predict(runs, done, number, chance)
        if predicted and not all(p.measured for p in predicted):
            write_predictions(predict_all(runs, done, chance), folder / "predictions.csv")
            print(f"rung {number}, width {mine[0].width}: predicted by the rungs below it\n")
            print(table(*prediction_table(predicted)), flush=True)
        with StudyProgress() as progress:
            jobs_done = run_all(
                [r.run for r in mine], folder, hypnos=HYPNOS, jobs=jobs,
                seconds=deadline - time.monotonic(), show=progress.show,
            )  # fmt: skip
        states += [job.state for job in jobs_done]
        tell_end(jobs_done)
        if predicted:
            after = predict(runs, finished(runs, folder), number, chance)
            print(f"\nrung {number}: the outcome\n\n{table(*prediction_table(after))}\n")
    done = finished(runs, folder)
    if not done and "waiting" in states:
        return status_of(states)
    if not done:
        raise UserError(f"{folder}: no run is done yet; the logs in {folder / 'logs'} say why")
    tell("fitting the laws, and again for each of 200 resamplings: this takes minutes")
    print(write_fit(runs, done, folder, file.stem, chance))
    print(f"wrote {folder / 'fit.md'} and {folder / 'fit.html'}")
    return status_of(states)


def _array(
    runs: list[LadderRun], folder: Path, array: Path, jobs: int | None, chance: float
) -> int:
    """Evaluates what is trained; then predicts the lowest unfinished rung and writes its runs."""
    from pretrain.study.one_run import is_done
    from pretrain.study.predictions import predict_all, prediction_table, write_predictions
    from pretrain.study.scale import finished
    from pretrain.tables import table

    evaluate_trained([r.run for r in runs], folder, jobs)
    left = [r for r in runs if not is_done(folder, r.run)]
    if not left:
        print("all runs are done; next: the same command without --array fits the laws")
        return 0
    number = left[0].rung
    predicted = predict_all(runs, finished(runs, folder), chance)
    write_predictions(predicted, folder / "predictions.csv")
    if ahead := [p for p in predicted if p.of.rung == number]:
        print(table(*prediction_table(ahead)) + "\n")
    mine = [r.run for r in left if r.rung == number]
    said = write_left(mine, folder, array)
    print(f"rung {number} of {runs[-1].rung}, width {left[0].width}: {said}")
    return 0


def _coordinates(file: Path, study: Study, steps: int, folder: Path) -> int:
    from parallel import mesh
    from pretrain.config.load import load
    from pretrain.files import write_atomically
    from pretrain.run import prepare
    from pretrain.study.coordinates import check, draw, lines, slopes
    from pretrain.tables import as_csv, table

    tuned = load(file.parent / study.ladder.config, study.ladder.settings)
    mesh.join(tuned.parallel.timeout)
    prepare.lay_grid(tuned.parallel)
    folder.mkdir(parents=True, exist_ok=True)
    found = check(tuned, study.transfer, steps=steps, seeds=study.ladder.seeds, tell=tell)
    print(table(*slopes(found)))
    write_atomically(folder / "coordinates.csv", as_csv(*lines(found)))
    draw(found, folder / "coordinates.png")
    print(f"\nwrote {folder / 'coordinates.csv'} and {folder / 'coordinates.png'}")
    return 0
