"""Keeps the process that logs a run to Weights & Biases, and ends it with the run.

    rank 0's trainer  -- metrics.jsonl, and a pipe that closes when it ends --> wandb_writer.py
                      <-- lines for the user ----------------------------------'

The trainer waits for it only at the run's end, and not long: it ends by itself once the pipe is
closed, by the trainer or by the kernel.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Self

import torch.distributed as dist

from parallel import watchdog
from pretrain.config.schema import Config, RunConfig
from pretrain.errors import UserError
from pretrain.run.agreement import on_rank_0
from pretrain.run.wandb_writer import FINISH_S

STOP_S = 3.0  # that a stopped run waits: launchers soon kill ranks that outlive the others


def check_installed(config: RunConfig) -> None:
    """UserError, on every rank: run.wandb is set, but rank 0 has no wandb."""
    if config.wandb:
        on_rank_0("looking for wandb", lambda: _check(config.wandb))


def _check(project: str) -> None:
    found = find_spec("wandb")
    if found is None or found.origin is None:  # a folder that wandb wrote here
        fix = "run `pip install -e '.[wandb]'` in the clone, or leave it out"
        raise UserError(f'run.wandb = "{project}": the package wandb is not installed; {fix}')


class WandbLog:
    """On rank 0, the writer's process, if run.wandb names a project; else nothing.

    A context manager, which does not leave it behind.
    """

    def __init__(self, run: Path, config: Config, say: Callable[[str], None]) -> None:
        """
        Args:
            run: its metrics.jsonl has the rows that a resumed run keeps, and no new ones.
            say: prints one line for the user.
        """
        self._say, self._timeout = say, config.parallel.timeout
        self._process: subprocess.Popen[bytes] | None = None
        project = config.run.wandb
        if not project or dist.get_rank() != 0:
            return
        module = "pretrain.run.wandb_writer"
        try:
            kept = (run / "metrics.jsonl").stat().st_size
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(run), project, str(kept)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it
            )
        except OSError as error:
            say(f"warning: Weights & Biases: {error.strerror}; the run goes on without it")
            return
        self._listener = Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._say(line.decode(errors="replace").rstrip())
        if status := process.wait():
            self._say(f"warning: Weights & Biases: its process has ended with status {status}")

    def end(self, *, complete: bool = False) -> None:
        """Lets the writer send the last rows and end; does not wait.

        Args:
            complete: the run is over; otherwise it will be resumed.
        """
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError, ValueError):  # it has ended, or was told before
                self._process.stdin.write(b"." * complete)
                self._process.stdin.close()

    def wait(self, seconds: float = STOP_S) -> None:
        """Waits for the writer's end, once, and not longer than this: it ends without us, too."""
        process, self._process = self._process, None
        if process is not None:
            self._listener.join(seconds)
            if self._listener.is_alive():
                more = f"it is given {FINISH_S:g} s in all"
                self._say(f"warning: Weights & Biases: not all is uploaded yet; {more}")

    def finish(self) -> None:
        """Lets the writer upload what is left; other ranks may be waiting for this one."""
        self.end(complete=True)
        with watchdog.no_timeout("waiting for Weights & Biases"):
            self.wait(min(FINISH_S, self._timeout / 2))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self.wait()
