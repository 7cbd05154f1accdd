"""The entry point of `hypnos` and `python -m launch`."""

from __future__ import annotations

import signal
import sys

# commands to which a scheduler may send SIGUSR1 at any moment when their time is up
TIMED = (["train"], ["launch", "local"], ["launch", "mpi"], ["launch", "rank"])


def main() -> int:
    """Runs the command; returns its exit status."""
    if any(sys.argv[1 : 1 + len(words)] == words for words in TIMED):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # pretrain/run/signals.py

    from launch.cli import main  # slow

    return main()


if __name__ == "__main__":
    sys.exit(main())
