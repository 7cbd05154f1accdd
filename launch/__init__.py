"""The `hypnos` command and what sets it up.

bootstrap.py   .venv: the torch that fits the machine, pinned packages (standard library only)
cli.py         the command: its subcommands, and errors as one line
output.py      what it writes, to whoever reads it
commands/      one file per subcommand; torch and the like are imported only where one runs
quiet.py       silences what third-party packages say on import
world.py       rank, address and device from torchrun, mpirun or srun: the one place that reads them
store.py       the store that ranks meet at
preflight/     ranks find out before a run begins what would make it hang or go wrong
local.py       ranks on this host, started and ended together
mpi.py         ranks on several hosts, by mpirun
slurm.py       a job's batch script, from slurm.sbatch; site.py what a cluster wants of every job
rank.py        one rank under srun or mpirun: its log, and word of how it ended
processes.py   processes that are ranks; used by local.py and rank.py
starts.py      what a run's folder says of its starts
outcome.py     why a start ended, and whether another follows
progress.py    how far a started run is
doctor.py      what a machine has and lacks
demo.py        `make demo`
"""

import sys

__version__ = "0.1.0"
# `hypnos` as a process; -P: never the launch.py or tokenizer.py of the folder that the user is in
HYPNOS = (sys.executable, "-P", "-m", "launch")
