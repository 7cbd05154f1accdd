"""The `hypnos` command, its set-up, and the launchers.

bootstrap.py   .venv: the torch that fits the machine, pinned packages (standard library only)
cli.py         the command: its subcommands, and errors as one line
output.py      robust stdout and stderr
commands/      one file per subcommand; torch and the like are imported only when one runs
quiet.py       silences what third-party packages print on import
world.py       rank, address and device from torchrun, mpirun or srun: the one place that reads them
store.py       the rendezvous store of the ranks
preflight/     checks before a run starts that would otherwise end in a hang or a failure
local.py       ranks on this host, started and ended together
mpi.py         ranks on several hosts, by mpirun
slurm.py       a job's batch script, from slurm.sbatch; site.py the settings of a cluster
rank.py        one rank under srun or mpirun: its log, and a record of how it ended
processes.py   processes that are ranks; used by local.py and rank.py
starts.py      the record of a run's starts, in its folder
outcome.py     why a start ended, and whether to start again
progress.py    the progress of a started run
doctor.py      what a machine has and lacks
demo.py        `make demo`
"""

import sys

__version__ = "0.1.0"
# `hypnos` as a process; -P: don't import a launch.py or tokenizer.py from the current folder
HYPNOS = (sys.executable, "-P", "-m", "launch")
