"""`hypnos`, and `python -m launch`, from a process's first moment."""

from __future__ import annotations

import signal
import sys

# what is told by SIGUSR1 that its time is up, by a scheduler that may do so at any moment
TIMED = (["train"], ["launch", "local"], ["launch", "mpi"], ["launch", "rank"])


def main() -> int:
    """The command. Its exit status."""
    if any(sys.argv[1 : 1 + len(words)] == words for words in TIMED):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # pretrain/run/signals.py

    from launch.cli import main  # takes its time

    return main()


if __name__ == "__main__":
    sys.exit(main())
