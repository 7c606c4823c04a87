"""Ports of 127.0.0.1 for nodes that this machine starts itself: the demo, benchmarks, tests.

Below the range from which the system takes ports for outgoing connections: one of that range may be free now and taken
by any connection a moment later. Knows nothing of nodes.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from needle.base.errors import StorageError

LOW = 10_000
TRIES = 2_000
HELD_MAX = 64

_held: deque[socket.socket] = deque()
"""Sockets that are bound to the ports given out last, so that no other process is given one before its node listens."""


def free_ports(count: int, preferred: Sequence[int] = ()) -> list[int]:
    """Distinct ports on which nothing listens: the preferred ones if all of them are free, else any.

    Raises StorageError if there are none.
    """
    if len(preferred) == count and all(_is_free(port) for port in preferred):
        return list(preferred)
    rng = random.Random(os.urandom(8))
    found: dict[int, None] = {}
    for _ in range(TRIES):
        if len(found) == count:
            break
        port = rng.randrange(LOW, _ephemeral())
        if port not in found and _is_held(port):
            found[port] = None
    if len(found) < count:
        raise StorageError(f"no {count} free ports on 127.0.0.1")
    return list(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _is_held(port: int) -> bool:
    """Whether the port was free, and is this process's from now on. On Linux a node may listen on it all the same: it
    asks for a reusable address, as the holder did; one that looks for a free port does not."""
    if sys.platform != "linux":
        return _is_free(port)
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        return False
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if len(_held) == HELD_MAX:
        _held.popleft().close()
    _held.append(holder)
    return True


def _ephemeral() -> int:
    """The first port of the system's range for outgoing connections."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
    return first if first > LOW + 1_000 else 32_768
