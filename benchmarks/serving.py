"""A server for the benchmarks that need one: `hypnos serve` in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "model"  # the name that requests use


@contextmanager
def server(run: Path, store: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of its API on a free port, and the process; terminated at the block's end.

    Raises:
        SystemExit: it does not start; the message has all its output.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "launch", "serve", str(run), "--port", str(port),
        "--store", str(store), "--name", MODEL,
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if " serves " in line:
                break
        else:
            sys.exit(f"the server does not start: {''.join(said)}")
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.terminate()
        process.wait()
