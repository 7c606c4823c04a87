"""What the parts of the catalog's state machine share: how a change is answered, and what it needs. Pure."""

from __future__ import annotations

from needle.base.errors import Unavailable
from needle.base.model import WriteResult
from needle.routing.meant import HOW_MADE
from needle.routing.topology import Topology

Changed = tuple[Topology, WriteResult]
"""The topology after a command, and what its sender is answered."""


def done(topology: Topology, index: int, version: int = 0, existed: bool = False) -> Changed:
    """version: of what the command made, the log index if it is 0. existed: it was there before."""
    return topology, WriteResult(version=version or index, index=index, existed=existed)


def need_cluster(now: Topology) -> None:
    """Raises Unavailable."""
    if now.settings is None:
        raise Unavailable(f"the cluster was not created yet: {HOW_MADE}")
