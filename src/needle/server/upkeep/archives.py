"""How far the archive of the logs is behind, as the leaders of shards know it.

Whoever archives tells each leader, every second, up to which of its clocks all is durable, and the other replicas each
20 seconds, so that a new leader knows it, too. A replica that was opened since has not heard it yet. Then the catalog's
word counts, which is an hour old at most while somebody archives: if it is older, or if nobody said for as long as the
alert waits how far it is (who asks, and stored nothing since, does not say). Before that nothing is known, and nothing
is said. It must not know who archives, or where.
"""

from __future__ import annotations

from typing import Final

from needle.base.ids import GroupId
from needle.multiraft.host import Host
from needle.routing.topology import Topology

SILENT_SECONDS: Final = 300.0
"""Of an archive that says nothing for so long it is known that it is behind (the alert begins there)."""
WORD_SECONDS: Final = 3600.0 + SILENT_SECONDS
"""The catalog is told once an hour (backup/archiving.py)."""


def archive_lags(host: Host, topology: Topology, now: int) -> dict[GroupId, float]:
    """Seconds, of each shard that this node leads; nothing where no archive is expected, or where it is not known yet.
    now: microseconds since 1970."""
    if not topology.archived:
        return {}
    led = [group for group in host.groups() if topology.holders(group) is not None and group and host.is_leader(group)]
    word = (now - topology.archived) / 1e6
    lags = {}
    for group in led:
        until, silent = host.archived_until(group)
        if until:
            lags[group] = max(0.0, (now - until) / 1e6)
        elif silent >= SILENT_SECONDS or word >= WORD_SECONDS:
            lags[group] = max(0.0, word)
    return lags
