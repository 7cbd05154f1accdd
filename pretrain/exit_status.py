"""The exit statuses of a run's processes, as shells, launchers and schedulers see them.

    0     finished
    75    start again: the run was told that its time is up (SIGUSR1), and has saved
    2     a user's error, which would occur again
    69    this host is unfit: start again without it
    74    storage did not answer, or failed; another start may succeed
    70    no progress for parallel.timeout
    76    another rank has died, so this one exits too; the cause is found there
    129, 130, 143    ended by SIGHUP, Ctrl-C or SIGTERM: 128 + the signal, after a save
    others      failed

69 to 76 are from sysexits.h, with the nearest meaning.
"""

from __future__ import annotations

import signal

FINISHED = 0
USER_ERROR = 2
UNFIT = 69
NO_PROGRESS = 70
STORAGE = 74
REQUEUE = 75
PEER_GONE = 76
TERMINATED = 128 + signal.SIGTERM


def after_signal(number: int) -> int:
    """The status of a process that a signal has made save and exit."""
    return REQUEUE if number == signal.SIGUSR1 else 128 + number


def of_process(returncode: int) -> int:
    """The status as a shell has it; `subprocess` returns -n for a process killed by signal n."""
    return returncode if returncode >= 0 else 128 - returncode
