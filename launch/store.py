"""The rendezvous store: a TCPStore on an IPv4 socket, so that thousands of ranks connect fast.

One thread serves all ranks. For each connection it looks up the client's host name, and serves
nobody meanwhile. torch opens an IPv6 socket by default; names of IPv4 clients on it are not in
/etc/hosts, so a name server is asked: thousands of ranks then wait for thousands of answers, for
seconds each if it does not answer. With an IPv4 socket, /etc/hosts is enough.
"""

from __future__ import annotations

import socket

from torch.distributed import TCPStore

BACKLOG = 16_384  # connections waiting to be accepted; the kernel may limit it further


def listen(address: str, port: int = 0) -> TCPStore:
    """Serves a store here.

    Args:
        address: that ranks use for this host.
        port: 0: any free one.
    Raises:
        OSError: the port is in use, or the address is unknown.
    """
    by_ipv4 = socket.AF_INET in {info[0] for info in socket.getaddrinfo(address, None)}
    family, own = (socket.AF_INET, "127.0.0.1") if by_ipv4 else (socket.AF_INET6, "::1")
    listener = socket.create_server(("", port), family=family, backlog=BACKLOG)
    return TCPStore(
        own,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
    )
