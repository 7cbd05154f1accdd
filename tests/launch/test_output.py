"""A command survives when the reader of its output goes away."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_closed_ends_nothing(closed: str) -> None:
    says = (
        "import sys; from launch.output import write_anything; write_anything()\n"
        "for stream in (sys.stdout, sys.stderr): stream.write('x'); stream.flush()\n"
        "sys.stderr.buffer.write(b'x'); sys.stderr.flush()"  # as a rank's output
    )
    command = ["sh", "-c", f'exec "$@" {closed}', "-", sys.executable, "-c", says]
    assert subprocess.run(command, capture_output=True).returncode == 0
