"""How a process of a run ends, in the one number that shells, launchers and schedulers see.

    0     finished
    75    start me again: the run was told that its time is up (SIGUSR1), and has saved
    2     a user's error, which another start would meet again
    69    this host is not fit to take part: start again without it
    74    storage did not answer, or failed: another start may find it well
    70    no progress in parallel.timeout
    76    another rank has gone, and so must this one: the reason is to be found there
    129, 130, 143    ended by SIGHUP, Ctrl-C or SIGTERM: 128 + the signal, after a save
    others      failed

69 to 76 are those of sysexits.h, in the sense nearest to theirs.
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
    """Of a process that a signal has made save and end."""
    return REQUEUE if number == signal.SIGUSR1 else 128 + number


def of_process(returncode: int) -> int:
    """As a shell gives it: `subprocess` says -n of a process that signal n has killed."""
    return returncode if returncode >= 0 else 128 - returncode
