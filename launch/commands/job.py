"""hypnos launch begin, rank, end: the steps of one start, used by batch scripts."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from launch import HYPNOS
from launch.commands import argument, command
from launch.commands.train import RUN
from launch.commands.values import path, positive

LOGS = argument("logs", metavar="LOGS", type=path, help="the folder that `begin` has printed")
RETRIES = argument(
    "--retries",
    type=positive,
    metavar="COUNT",
    default=3,
    help="how many starts of a job in a row may end without a new checkpoint",
)


@command(
    "begin",
    "write a start down, and print its folder of logs",
    description="The first step of a batch script: writes a start down in the run's folder, and "
    "prints its folder of logs. Status 75: a node of the job has failed this run before; printed "
    "are all nodes to do without.",
    example="hypnos launch begin configs/depo-small.toml run.name=first --ranks 16",
    arguments=[
        *RUN,
        argument("--ranks", type=positive, metavar="COUNT", required=True, help="of the job"),
        RETRIES,
    ],
)
def begin(config: Path, overrides: list[str], ranks: int, retries: int) -> int:
    from launch import progress, starts
    from launch.outcome import judge
    from launch.world import hosts, slurm_job
    from pretrain.errors import UserError
    from pretrain.exit_status import FINISHED, REQUEUE

    run = run_folder(config, overrides)
    job = slurm_job(os.environ)
    if job is None:
        raise UserError("begin: SLURM_JOB_ID is not set; only a Slurm batch script runs this")
    nodes = tuple(hosts(os.environ["SLURM_JOB_NODELIST"]))
    earlier = [start for start in starts.starts(run) if start.job == job]
    if earlier and earlier[-1].end is None:  # its script died before it could record the end
        last, down = earlier[-1], progress.down(earlier[-1].nodes)
        verdict = judge(run, last, earlier[:-1], FINISHED + 1, retries, down)
        starts.finish(run, last, verdict.end)
        if verdict.why_not:
            raise UserError(f"{run}: {verdict.why_not}; the last one: {verdict.end.why}")
        earlier = [start for start in starts.starts(run) if start.job == job]
    failed = earlier[-1].end.exclude if earlier and earlier[-1].end else ()
    if set(failed) & set(nodes):
        print(",".join(failed))
        return REQUEUE
    start = starts.begin(run, "slurm", job, nodes, ranks)
    print(os.path.abspath(start.logs(run)))
    return FINISHED


@command(
    "rank",
    "train as one rank that srun or mpirun has started",
    description="Starts `hypnos train` as the rank that srun or mpirun has started here. Its "
    "output goes to LOGS/rank-R.log, and rank 0's is also printed; how it failed is in "
    "LOGS/rank-R.end.",
    example="srun hypnos launch rank runs/depo-small/logs/start-1 configs/depo-small.toml",
    arguments=[LOGS, *RUN],
)
def rank(logs: Path, config: Path, overrides: list[str]) -> int:
    from launch.processes import PASSED_ON
    from launch.rank import run_rank
    from launch.world import early_rank
    from pretrain.run.signals import die_with_parent

    die_with_parent()  # no rank outlives srun or mpirun
    # while the rank is not running, too: srun ends all tasks when the first one has ended
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    train = [*HYPNOS, "train", str(config), *overrides]
    return run_rank(train, early_rank(os.environ), logs)


@command(
    "end",
    "write down why a start ended, and what comes next",
    description="The last step of a batch script: says why a start ended, writes it down, and "
    "prints the nodes to do without. Status 75: start again.",
    example="hypnos launch end runs/first/logs/start-1 --status 137",
    arguments=[
        LOGS,
        argument("--status", type=int, required=True, metavar="STATUS", help="the launcher's own"),
        RETRIES,
    ],
)
def end(logs: Path, status: int, retries: int) -> int:
    from launch import starts
    from launch.outcome import judge, tell
    from pretrain.errors import UserError
    from pretrain.exit_status import REQUEUE

    run = logs.parents[1]
    every = starts.starts(run)
    start = next((start for start in every if start.logs(run).name == logs.name), None)
    if start is None:
        raise UserError(
            f"{logs}: {run}/{starts.JOURNAL} has no such start; name what `begin` printed"
        )
    verdict = judge(run, start, [s for s in every if s.number < start.number], status, retries)
    starts.finish(run, start, verdict.end)
    tell(run, start, verdict.end)
    if verdict.why_not:
        print(f"hypnos: error: {run}: {verdict.why_not}", file=sys.stderr)
    print(",".join(verdict.end.exclude))
    if verdict.again:
        return REQUEUE
    # not REQUEUE, by which it would start again, as it may not
    return verdict.end.status if verdict.end.status != REQUEUE else 1


def run_folder(config: Path, overrides: list[str], ranks: int | None = None) -> Path:
    """The run's folder for arguments of `hypnos train`. UserError: they are wrong, or do not fit
    that many ranks, if given.
    """
    from pretrain.config.checks import check_ranks
    from pretrain.config.run_folder import load_run

    settings = load_run(config, overrides)
    if ranks is not None:
        check_ranks(settings, ranks)
    return Path(settings.run.dir) / settings.run.name
