"""hypnos launch: `hypnos train` on many ranks, here or on a cluster."""

from __future__ import annotations

import os
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

from launch import HYPNOS
from launch.commands import Group, argument, command
from launch.commands.job import begin, end, rank, run_folder
from launch.commands.started import cancel, logs, status
from launch.commands.train import RUN
from launch.commands.values import path, positive, read_text, tell

# settings of [slurm] in the site file that may differ between jobs
OF_JOBS = ("account", "partition", "qos", "constraint", "exclude", "reservation")


@command(
    "local",
    "train on several ranks of this machine",
    description="Starts `hypnos train` as several ranks on this machine. Rank 0's output is "
    "printed; each rank's log is in the run's folder.",
    example="hypnos launch local configs/depo-small.toml --ranks 4 parallel.tp=2 parallel.pp=2 "
    "train.microbatches=2",
    arguments=[
        *RUN,
        argument("--ranks", type=positive, metavar="COUNT", required=True, help="ranks to start"),
    ],
)
def local(config: Path, overrides: list[str], ranks: int) -> int:
    # reports a mistake once, before anything is started
    run = run_folder(config, overrides, ranks)

    from launch import starts
    from launch.local import run_ranks
    from launch.outcome import why_ended
    from launch.progress import check_over
    from launch.world import this_host

    check_over(run)
    start = starts.begin(run, "local", str(os.getpid()), (this_host(),), ranks)
    command = [*HYPNOS, "train", str(config), *overrides]
    status = run_ranks(command, ranks=ranks, logs=start.logs(run))
    starts.finish(run, start, why_ended(run, start, status))
    return status


@command(
    "mpi",
    "train on several hosts, by mpirun",
    description="Starts `hypnos train` on hosts that mpirun reaches, for example by ssh; all must "
    "share the same folders. Rank 0's output is printed; each rank's log is in the run's folder.",
    example="hypnos launch mpi configs/depo-small.toml --hosts a,b --ranks-per-host 2 "
    "parallel.tp=2",
    arguments=[
        *RUN,
        argument("--hosts", default="", metavar="NAMES", help="host names a,b; default: this host"),
        argument(
            "--ranks-per-host", type=positive, metavar="COUNT", required=True, help="one per GPU"
        ),
    ],
)
def mpi(config: Path, overrides: list[str], hosts: str, ranks_per_host: int) -> int:
    names = tuple(name.strip() for name in hosts.split(",") if name.strip())
    ranks = max(1, len(names)) * ranks_per_host
    run = run_folder(config, overrides, ranks)

    from launch import starts
    from launch.mpi import mpirun, run_mpi
    from launch.outcome import tell as tell_end
    from launch.outcome import why_ended
    from launch.processes import default_threads
    from launch.progress import check_over
    from launch.world import this_host

    check_over(run)
    os.environ.setdefault("OMP_NUM_THREADS", default_threads(ranks_per_host))
    command = mpirun(names, ranks_per_host)
    nodes = names or (this_host(),)
    start = starts.begin(run, "mpi", str(os.getpid()), nodes, ranks)
    logs = os.path.abspath(start.logs(run))
    rank = [*HYPNOS, "launch", "rank", logs, str(config), *overrides]
    status = run_mpi([*command, *rank], Path(logs))
    end = why_ended(run, start, status)
    starts.finish(run, start, end)
    if end.status:
        tell_end(run, start, end)
    return end.status


@command(
    "slurm",
    "train as a Slurm job: print its batch script, or submit it",
    description="Prints the batch script of a job that trains until the run is finished: before "
    "its time is up it saves and starts again, without nodes that have failed. --submit passes it "
    "to sbatch. The settings of a cluster are in one file (docs/launch.md).",
    example="hypnos launch slurm configs/recipes/7B.toml --nodes 8 --gpus-per-node 8 "
    "--time 24:00:00 parallel.zero=2 parallel.recompute=block\n"
    "hypnos launch slurm configs/depo-small.toml --nodes 2 --ranks-per-node 4 --submit",
    arguments=[
        *RUN,
        argument("--nodes", type=positive, metavar="COUNT", default=1, help="nodes of the job"),
        argument("--gpus-per-node", type=positive, metavar="COUNT", help="GPUs, one rank each"),
        argument(
            "--ranks-per-node",
            type=positive,
            metavar="COUNT",
            help="ranks per node, if not one per GPU",
        ),
        argument(
            "--time",
            default="",
            metavar="LIMIT",
            help="time limit of one start, such as 24:00:00 (default: the partition's)",
        ),
        *[
            argument(f"--{name}", metavar=name.upper(), help=f"instead of the site's slurm.{name}")
            for name in OF_JOBS
        ],
        argument(
            "--site",
            type=path,
            metavar="FILE",
            help="the cluster's settings; default: ~/.config/hypnos/site.toml, if it exists",
        ),
        argument(
            "--array",
            type=path,
            metavar="FILE",
            help="many runs, each a task of a job array: one per line, [CONFIG] key=value ..., in "
            "addition to what is given here",
        ),
        argument("--at-once", type=positive, metavar="COUNT", help="array tasks at a time"),
        argument("--submit", action="store_true", help="pass the script to sbatch"),
    ],
)
def slurm(
    config: Path,
    overrides: list[str],
    nodes: int,
    gpus_per_node: int | None,
    ranks_per_node: int | None,
    time: str,
    site: Path | None,
    array: Path | None,
    at_once: int | None,
    submit: bool,
    **of_jobs: str | None,
) -> None:
    from launch import starts
    from launch.progress import check_over
    from launch.slurm import Job, script
    from launch.slurm import submit as hand_over
    from pretrain.errors import UserError
    from pretrain.files import writes_user_file

    if at_once and not array:
        raise UserError("--at-once limits the tasks of an --array, and there is none; leave it out")
    settings = _site(site)
    for name, value in of_jobs.items():
        if value is not None:
            setattr(settings.slurm, name, value)
    # before it waits in the queue
    each = ranks_per_node or gpus_per_node or 1
    if array is None:
        runs = {run_folder(config, overrides, nodes * each): [str(config), *overrides]}
    else:
        runs = _runs(array, config, overrides, nodes * each)
    folders = list(runs)
    # sbatch does not create it
    output = (folders[0].parent if array else folders[0]) / "logs"
    with writes_user_file(output):
        output.mkdir(parents=True, exist_ok=True)
    job = Job(
        name=array.stem if array else folders[0].name,
        runs=list(runs.values()),
        output=output.absolute() / ("slurm-%A_%a.log" if len(runs) > 1 else "slurm-%j.log"),
        nodes=nodes,
        gpus_per_node=gpus_per_node or 0,
        ranks_per_node=each,
        time=time,
        at_once=at_once or 0,
    )
    text = script(job, settings)
    if not submit:
        print(text, end="")
        return
    for folder in folders:
        check_over(folder)
    number = hand_over(text, output / f"{job.name}.sbatch")
    for task, folder in enumerate(folders):
        starts.submitted(folder, f"{number}_{task}" if len(folders) > 1 else number)
    named = shlex.quote(str(folders[0]))
    print(f"submitted job {number}; next: hypnos launch status {named}")


def _site(given: Path | None) -> Any:
    """The site's settings: from the given file, or the user's own file, or defaults."""
    from launch.site import DEFAULT, Site
    from pretrain.config.load import read_settings

    file = given or DEFAULT.expanduser()
    return read_settings(Site, file) if given or file.exists() else Site()


def _runs(array: Path, config: Path, overrides: list[str], ranks: int) -> dict[Path, list[str]]:
    """The arguments of `hypnos train` for each line of an array file, by the run's folder."""
    from pretrain.errors import UserError

    runs: dict[Path, list[str]] = {}
    for number, line in enumerate(read_text(array).splitlines(), 1):
        try:
            words = _words(line)
        except ValueError as error:
            fix = 'quote as in a shell: "run.name=it\'s"'
            raise UserError(f"{array}, line {number}: {error}; {fix}") from None
        if not words:
            continue
        other = [] if "=" in words[0] else [words.pop(0)]
        run = [*(other or [str(config)]), *overrides, *words]
        try:
            folder = run_folder(Path(run[0]), run[1:], ranks)
        except UserError as error:
            raise UserError(f"{array}, line {number}: {error}") from None
        if folder in runs:
            raise UserError(
                f"{array}, line {number}: {folder} is also the run of another line; set run.name"
            )
        runs[folder] = run
    if not runs:
        raise UserError(
            f"{array}: no runs in it; write one per line, as run.name=first sleep.passes=4"
        )
    tell(f"{array}: {len(runs)} runs")
    return runs


def _words(line: str) -> list[str]:
    """Splits a line like a shell, up to a comment. A comment starts at a word that begins with #;
    for `shlex` at any #, which would cut run.name=a#1 to run.name=a.
    """
    words = shlex.shlex(line, posix=True)
    words.whitespace_split, words.commenters = True, ""
    return list(takewhile(lambda word: not word.startswith("#"), words))


LAUNCH = Group(
    "launch",
    "train on many ranks: on this machine, by mpirun, on a Slurm cluster",
    description="Starts `hypnos train` on many ranks, ends them together, and reports their "
    "progress.",
    example="hypnos launch local configs/depo-small.toml --ranks 2 parallel.pp=2 "
    "train.microbatches=2",
    commands=(local, mpi, slurm, status, logs, cancel, begin, rank, end),
)
