"""Settings of earlier releases: those that are gone, with what to do, and those that have another path now."""

from __future__ import annotations

FORMER = {
    "sharded": "left out: a node without cluster_nodes waits for `needle cluster create`",
    "join": "left out: a node without cluster_nodes waits; one with sharding.join joins a cluster",
}
FORMER_PATHS = {"sharding.zone": "placement.zone", "sharding.weight": "placement.weight"}
