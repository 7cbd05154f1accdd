"""Logs a run to Weights & Biases: the process beside rank 0 that hands wandb the rows of metrics.

python -m pretrain.run.wandb_writer RUN PROJECT KEPT     # started by wandb_log.py

stdin     open as long as the run goes on; a byte before its end says that the run is complete
stdout    lines for the user
KEPT      bytes that RUN/metrics.jsonl had when training began or resumed

wandb waits for its server, prints, and sets hooks that delay a process's end; here it can do no
harm. RUN/wandb/run.json says which wandb run this is and how much of metrics.jsonl it has, so that
a resumed run continues there without a gap. After a resume, steps may be logged a second time, so
`step` is not wandb's own count, which only grows, but a value of each row, and the others' x axis.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import select
import shlex
import signal
import sys
import threading
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from pretrain.files import write_atomically
from pretrain.locks import take_lock
from pretrain.logged import Row
from pretrain.run.scalars import scalars

FINISH_S = 30.0  # seconds after the run's end within which this process ends
POLL_S = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
Say = Callable[[str], None]  # takes a line for the user


@dataclass(frozen=True)
class Sent:
    """The content of RUN/wandb/run.json."""

    name: str  # of the run's folder: a copy under another name is another run
    project: str
    id: str  # of the wandb run
    bytes: int  # of metrics.jsonl, that wandb has on disk; it may have more


def main() -> None:
    for number in SIGNALS:  # a signal to the whole job: the trainer says when the run ends
        signal.signal(number, signal.SIG_IGN)
    trainer, user = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # wandb's own process inherits these
        os.dup2(nothing, standard)

    def say(line: str) -> None:
        with suppress(OSError):  # the trainer has died
            os.write(user, f"{' '.join(line.split())}\n".encode())

    threading.Thread(target=_end_in_time, args=(trainer, say), daemon=True).start()
    try:
        send(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), trainer, say)
    except Exception as error:  # whatever wandb raises
        say(f"{_warning(error)}; the run goes on without it")


def send(run: Path, project: str, kept: int, trainer: int, say: Say) -> None:
    """Logs the rows that wandb does not have, then each new one, until the run ends.

    Args:
        kept: see the top of this file.
        trainer: a descriptor that becomes readable when the run ends.
    """
    with (run / "metrics.jsonl").open("rb") as file, _alone_in(run / "wandb"):
        sent = _read(run, project)
        log = _begin(run, sent, say)
        if log.disabled:  # WANDB_MODE
            return
        done = min(sent.bytes, kept)
        _write(run, sent, done)
        given = deque([done], maxlen=3)  # where metrics.jsonl had been read to, at the last polls
        over, at, tokens = False, 0, 0  # the last step of which the tokens are known
        while not over:
            over = _is_readable(trainer, POLL_S)
            for row in _rows(file):
                if "tokens" in row:
                    at, tokens = row["step"], row["tokens"]
                if file.tell() > given[-1]:
                    known = {"tokens": tokens} if at == row["step"] else {}
                    log.log({"step": row["step"]} | known | _values(row))
            given.append(max(given[-1], file.tell()))
            if given[0] > done:
                log.status()  # wandb's process answers: it is alive, and has written these by now
                done = given[0]
                _write(run, sent, done)
        try:
            log.finish(exit_code=0 if os.read(trainer, 1) else 1)
        except TimeoutError:
            say(f"{_warning('not all is uploaded')}; to upload it: {_sync(run, log)}")
        _write(run, sent, file.tell())


def _begin(run: Path, sent: Sent, say: Say) -> Any:
    """The wandb run, begun or resumed; offline if the server cannot be used."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, save_code=False, disable_code=True, disable_git=True,
        disable_job_creation=True, x_disable_machine_info=True, x_disable_meta=True,
        x_disable_stats=True, x_save_requirements=False, x_transaction_log_flush_interval=POLL_S,
        finish_timeout=FINISH_S - 5, finish_timeout_raises=True,
    )  # fmt: skip
    begin = partial(
        wandb.init, project=sent.project, id=sent.id, resume="allow", dir=run, settings=settings,
        name=None if sent.bytes else sent.name,  # it may have been renamed since
        config=tomllib.loads((run / "config.toml").read_text(encoding="utf-8")),
        allow_val_change=True,
    )  # fmt: skip
    try:
        log = begin()
    except wandb.Error as error:
        say(f"{_warning(error)}; the run is logged offline")
        wandb.teardown()  # it would still hold the run's id
        log = begin(mode="offline")
    log.define_metric("*", step_metric="step")
    where = f"offline; to upload it: {_sync(run, log)}" if log.offline else log.url
    say(f"Weights & Biases: {'disabled by WANDB_MODE' if log.disabled else where}")
    return log


def _values(row: Row) -> dict[str, float | str]:
    """What is logged of a row: its numbers, under TensorBoard's names, and its texts."""
    kind = row["kind"]
    values = {key: value for key, value in row.items() if key not in ("kind", "step")}
    texts = {f"{kind}/{key}": text for key, text in values.items() if isinstance(text, str)}
    return dict(scalars(kind, values)) | texts


def _rows(file: BinaryIO) -> Iterator[Row]:
    """The rows from here on that are written to their end."""
    while (line := file.readline()).endswith(b"\n"):
        yield json.loads(line)
    file.seek(-len(line), os.SEEK_CUR)


def _read(run: Path, project: str) -> Sent:
    """What was sent of this run in this project; nothing of another wandb run."""
    with suppress(OSError, ValueError, TypeError):
        sent = Sent(**json.loads((run / "wandb/run.json").read_text(encoding="utf-8")))
        if (sent.name, sent.project) == (run.name, project):
            return sent
    return Sent(run.name, project, secrets.token_hex(4), 0)


def _write(run: Path, sent: Sent, done: int) -> None:
    written = dataclasses.asdict(dataclasses.replace(sent, bytes=done))
    write_atomically(run / "wandb/run.json", json.dumps(written))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Inside, the process that a killed trainer has left behind has ended."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    while not take_lock(descriptor):
        time.sleep(POLL_S)
    yield
    os.close(descriptor)


def _end_in_time(trainer: int, say: Say) -> None:
    """Ends this process and wandb's own if they take too long after the run's end."""
    _is_readable(trainer, None)
    time.sleep(FINISH_S)
    say(f"{_warning('it takes too long to finish')}; it is ended")
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(0)


def _is_readable(descriptor: int, wait: float | None) -> bool:
    return bool(select.select([descriptor], [], [], wait)[0])


def _sync(run: Path, log: Any) -> str:
    """The command that uploads what wandb has on disk: of an online run only this start, as wandb
    cannot tell which of its starts are uploaded.
    """
    if log.offline:
        return shlex.join(["wandb", "sync", str(run / "wandb")])
    start = Path(log.dir).parent.name  # log.dir is START/files
    return shlex.join(["wandb", "sync", "--include-online", str(run / "wandb" / start)])


def _warning(why: object) -> str:
    return f"warning: Weights & Biases: {str(why) or type(why).__name__}"


if __name__ == "__main__":
    main()
