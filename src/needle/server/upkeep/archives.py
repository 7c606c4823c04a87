"""How far the archive of the logs is behind, as the leaders of shards know it.

Whoever archives tells each leader, every second, up to which of its clocks all is durable. A new leader has not heard
it yet: until then it goes by what the catalog was told last, at most an hour ago while somebody archives. It must not
know who archives, or where.
"""

from __future__ import annotations

from needle.base.ids import GroupId
from needle.multiraft.host import Host
from needle.routing.topology import Topology


def archive_lags(host: Host, topology: Topology, now: int) -> dict[GroupId, float]:
    """Seconds, of each shard that this node leads; nothing where no archive is expected. now: microseconds since
    1970."""
    if not topology.archived:
        return {}
    led = [group for group in host.groups() if topology.holders(group) is not None and group and host.is_leader(group)]
    return {group: max(0.0, (now - (host.archived_until(group) or topology.archived)) / 1e6) for group in led}
