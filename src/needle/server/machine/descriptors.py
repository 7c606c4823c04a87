"""Open files and connections of a process, and how a node shares its limit among them.

Invariant: connections never take the files that log, documents and index files need: their number is bounded below
half of the limit, and the system's own refusal (EMFILE) is never met by a write.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final

WANTED: Final = 1 << 20
CONNECTIONS_MAX: Final = 10_000
HTTP_MAX: Final = 1024


def raise_limit() -> int:
    """Let this process open as many files as it is allowed to; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def limit() -> int:
    """Files that this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return WANTED if soft == resource.RLIM_INFINITY else soft


def connections_max() -> int:
    """How many connections a node may accept: half of its files at most."""
    return max(8, min(CONNECTIONS_MAX, limit() // 2))


def http_max() -> int:
    """How many HTTP connections."""
    return max(8, min(HTTP_MAX, limit() // 8))
