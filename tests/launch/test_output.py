"""A command survives when the reader of its output goes away."""

from __future__ import annotations

import io
import os
import subprocess
import sys

from launch.output import Unread


def unread() -> io.TextIOWrapper:
    """A command's stderr: a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return io.TextIOWrapper(io.BufferedWriter(Unread(writer, "w")), line_buffering=True)


def test_a_reader_that_has_gone_ends_nothing() -> None:
    says = "import sys; from launch.output import write_anything; write_anything()\n"
    says += (
        "for number in range(9): print('step', number, file=sys.stderr, flush=True)\nsys.exit(3)"
    )
    with unread() as pipe:
        assert subprocess.run([sys.executable, "-c", says], stderr=pipe.fileno()).returncode == 3
