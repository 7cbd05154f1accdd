"""The rendezvous at rank 0's store: reports missing ranks by name, and why rank 0 is unreachable.

The store is the launcher's if it hosts one (torchrun, `hypnos launch local`); otherwise rank 0
hosts it at MASTER_ADDR:MASTER_PORT. Each rank sends one or two messages; rank 0 asks for all at
once.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

from launch.preflight.verdict import named
from launch.store import listen
from launch.world import World, expected_hosts, this_host
from pretrain.errors import UserError

SAY_S = 10.0  # between messages about the ranks that are waited for
BATCH = 256  # values asked for in one message
CONNECTIONS = 12  # maximum connections of each rank to the store, while it trains
Say = Callable[[str], None]


class PortTaken(UserError):
    """The port that was chosen automatically for a start is in use: start again."""

    status = 1


def connect(world: World, timeout: float, say: Say) -> dist.Store:
    """The store, under this job's own names.

    Args:
        timeout: seconds to wait for rank 0.
    Raises:
        UserError: rank 0 cannot be reached, or cannot listen.
    """
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if world.rank == 0 and not by_launcher:
        _check_address(world)
        _allow_connections(world.size)
        store = _listen(world)
    else:
        store = _reach(world, timeout, say)
    # a launcher that restarts ranks keeps its store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"hypnos/{attempt}", store)


def wait_for_all(
    store: dist.Store, key: str, world: int, timeout: float, say: Say, hosts: Sequence[str] = ()
) -> list[int]:
    """Rank 0 waits until every rank has set key/RANK; returns those that have not within `timeout`.

    Args:
        hosts: of each rank, if known.
    """
    begin, keys = time.monotonic(), [f"{key}/{rank}" for rank in range(world)]
    while True:
        left = timeout - (time.monotonic() - begin)
        try:
            store.wait(keys, timedelta(seconds=max(0.001, min(left, SAY_S))))
            return []
        except dist.DistStoreError:
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        if missing and left <= SAY_S:
            return missing
        waited = f"{time.monotonic() - begin:.0f} s"
        on = sorted({hosts[rank] for rank in missing}) if hosts else []
        where = f" on {', '.join(on)}" if on else ""
        if missing:
            say(f"still waiting for {named(missing)}{where} of {world} after {waited}")


def absent_hosts(came: Collection[str]) -> list[str]:
    """Hosts that the launcher has named, but from which no rank has connected."""
    return [host for host in expected_hosts(os.environ) if host not in came]


def never_came(missing: Sequence[int], absent: Sequence[str], world: int, timeout: float) -> str:
    """The message about ranks that have not connected. absent: see `absent_hosts`."""
    where = f" (no rank has connected from {', '.join(absent)})" if absent else ""
    return (
        f"{named(missing)} of {world} did not connect in {timeout:g} s{where}: see their logs, and "
        "check that the job starts a task for each rank and that their hosts reach "
        f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    )


def gather(store: dist.Store, key: str, ranks: Iterable[int]) -> list[bytes]:
    """Rank 0 reads what these ranks have set under key/RANK, many at a time."""
    keys, values = [f"{key}/{rank}" for rank in ranks], list[bytes]()
    for begin in range(0, len(keys), BATCH):
        values += store.multi_get(keys[begin : begin + BATCH])
    return values


def scatter(store: dist.Store, keys: Sequence[str], values: Sequence[str]) -> None:
    """Rank 0 sends each of many ranks its own value, in one message."""
    common: Any = store  # its type stub lacks the method
    common.multi_set(list(keys), list(values))


def _check_address(world: World) -> None:
    """Checks that MASTER_ADDR is rank 0's host, and an address that the others can use."""
    given, here = f"MASTER_ADDR = {world.address}", socket.gethostname()
    fix = f"set it to the name of rank 0's host, {here}"
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(world.address, None)}
    except socket.gaierror as error:
        raise UserError(f"{given}: {here} knows no such host ({error.strerror}); {fix}") from None
    own = {each.address for all_of in psutil.net_if_addrs().values() for each in all_of}
    loopback = all(str(address).startswith(("127.", "::1")) for address in addresses)
    if not loopback and not addresses & own:
        raise UserError(f"{given} is not {here}, where rank 0 is; {fix}")
    # a host's own name may be valid only locally: Debian maps it to 127.0.1.1 in /etc/hosts
    everywhere = world.address not in (here, this_host())
    if loopback and everywhere and len(expected_hosts(os.environ)) > 1:
        raise UserError(f"{given} refers to each host itself, and there are several; {fix}")


def _listen(world: World) -> dist.Store:
    try:
        return listen(world.address, world.port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    taken = f"is in use on {socket.gethostname()}{_user_of(world.port)}"
    if world.launcher != "torchrun":  # its variables may be set by hand
        raise PortTaken(
            f"port {world.port}, chosen for this start, {taken}: the next start uses another"
        )
    raise UserError(
        f"MASTER_PORT = {world.port} {taken}: end that, or set MASTER_PORT to another, "
        "the same for all ranks"
    )


def _user_of(port: int) -> str:
    """Which process uses a port, as far as this user may see."""
    with suppress(psutil.Error):  # on macOS, only root may see it
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid:
                return f" by process {each.pid} ({psutil.Process(each.pid).name()})"
    return ""


def _reach(world: World, timeout: float, say: Say) -> dist.Store:
    """Connects to rank 0's store, as soon as it is there."""
    here, begin = f"rank {world.rank} on {socket.gethostname()}", time.monotonic()
    where, said = f"{world.address}:{world.port}", begin
    while True:
        try:
            with socket.create_connection((world.address, world.port), timeout=SAY_S):
                break
        except OSError as error:
            reason, now = error.strerror or str(error), time.monotonic()
        if now - begin > timeout:
            raise UserError(
                f"{here}: rank 0 could not be reached at {where} in {timeout:g} s ({reason}): "
                f"{_why(reason, world)}"
            )
        if now - said > SAY_S:
            said = now
            say(f"{here}: still waiting for rank 0 at {where} after {now - begin:.0f} s ({reason})")
        time.sleep(0.2)
    left = timedelta(seconds=max(SAY_S, timeout - (time.monotonic() - begin)))
    return dist.TCPStore(
        world.address, world.port, is_master=False, wait_for_workers=False, timeout=left
    )


def _why(reason: str, world: World) -> str:
    if "refused" in reason:
        return "it has not started or has ended, see its log; or MASTER_ADDR is not its host"
    if "service" in reason or "address" in reason.lower():
        return f"MASTER_ADDR = {world.address} is a name that this host does not know"
    return "a firewall, or MASTER_ADDR is an address that is not routed from here"


def _allow_connections(ranks: int) -> None:
    """Raises rank 0's limit of open files: every connection to the store is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = ranks * CONNECTIONS + 1024
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise UserError(
            f"rank 0 may have {hard} files open, and {ranks} ranks need {needed}: raise the limit "
            "on its host (`ulimit -Hn`, LimitNOFILE of slurmd or sshd)"
        )
    if soft < needed and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
