"""The store that ranks meet at: torch's, which has one thread to serve all of them.

For each connection that thread asks for the name of who connects, and serves nobody meanwhile. Of
an IPv4 client of an IPv6 socket, which is what torch opens by itself, /etc/hosts does not have it,
so a name server is asked: thousands of ranks then wait for thousands of answers, and for seconds
each where it gives none. Behind an IPv4 socket /etc/hosts is enough.
"""

from __future__ import annotations

import socket

from torch.distributed import TCPStore

BACKLOG = 16_384  # connections that wait to be accepted; the kernel may hold it to less


def listen(address: str, port: int = 0) -> TCPStore:
    """Serves a store here.

    Args:
        address: by which ranks know this host.
        port: 0: a free one.
    Raises:
        OSError: the port is in use, or the address is not known.
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
