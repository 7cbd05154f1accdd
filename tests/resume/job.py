"""One start of a run: `hypnos train CONFIG` on real ranks that keep a journal."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from launch import cli
from pretrain.data.batch import Batch
from pretrain.data.stream import TextStream
from pretrain.evaluate import Evaluation
from tests.ranks import Ranks


class Job(Ranks):
    """Starts `world` ranks of `hypnos train CONFIG`.

    Args:
        notes: a new folder for what the ranks write: R.log, and R.journal, see `_keep_journal`.
        scratch: the working directory, also for temporary files.
        clock: seconds that the ranks' clocks are ahead.
        unread: nobody reads the ranks' output, and R.log does not have it.
    """

    def __init__(
        self,
        config: Path,
        world: int,
        notes: Path,
        scratch: Path,
        clock: float = 0.0,
        unread: bool = False,
    ) -> None:
        notes.mkdir(parents=True)
        places = {"TMPDIR": str(scratch), "HOME": str(scratch)}
        super().__init__(
            world, _train, config, notes, scratch, clock, unread,
            folder=notes, env=places, rank_0_has_store=True,
        )  # fmt: skip

    def journal(self, r: int) -> list[str]:
        """A rank's journal so far."""
        path = self.folder / f"{r}.journal"
        return path.read_text().splitlines() if path.exists() else []

    def samples(self, r: int) -> list[str]:
        """A checksum of each batch that a rank has read."""
        return [line for line in self.journal(r) if line.startswith("step")]


def _train(config: Path, notes: Path, scratch: Path, clock: float, unread: bool) -> None:
    """One rank's part."""
    os.chdir(scratch)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
    if unread:
        reader, writer = os.pipe()
        os.close(reader)
        raw = io.BufferedWriter(io.FileIO(writer, "w"))
        sys.stdout = sys.stderr = sys.__stderr__ = io.TextIOWrapper(raw, line_buffering=True)
    _keep_journal(notes / f"{os.environ['RANK']}.journal")
    if clock:
        now = time.time
        time.time = lambda: now() + clock
    sys.exit(cli.main(["train", str(config)]))


def _keep_journal(path: Path) -> None:
    """Records, as it happens, what this rank reads and when it evaluates.

    Each line is one write to the kernel, so it outlives the process: `step CRC` when a batch has
    been read, `evaluates` and `evaluated`.
    """
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    take, evaluate = TextStream.next, Evaluation.run

    def noted_take(self: TextStream) -> Batch:
        batch = take(self)
        content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in vars(batch).values())
        os.write(journal, f"step {zlib.crc32(content)}\n".encode())
        return batch

    def noted_evaluate(self: Evaluation, *arguments: Any) -> dict[str, Any]:
        os.write(journal, b"evaluates\n")
        found = evaluate(self, *arguments)
        os.write(journal, b"evaluated\n")
        return found

    TextStream.next, Evaluation.run = noted_take, noted_evaluate  # type: ignore[method-assign]
