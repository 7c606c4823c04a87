"""The version of what nodes write for each other to read: commands, their fields, files that travel (docs/adr/0042).

A node says in its hello, its registration and its answer to `who` which version it knows. The catalog keeps the version
that the whole cluster is at: the least that its nodes know. Nothing newer than that is written.
"""

from __future__ import annotations

from typing import Final

from needle.base.errors import UnsupportedFormat

FIRST: Final = 1
"""Of nodes of releases that said nothing of it."""
SAID: Final = 2
"""Since this one the catalog keeps what each node knows; while a cluster is at an older one, nodes are asked."""
EMPTIES: Final = 5
"""From here on one entry has a node emptied and begins that, a rebalance replaces a node or moves the catalog by hand,
and the replication factor is set."""
NAMED: Final = 6
LOADS: Final = 6
SPARSE: Final = 6
"""From here on documents may have named vectors (docs/adr/0118), one entry of a shard's log names a file with the
documents of a bulk load, and the catalog says which fields of documents are sparse vectors (docs/adr/0120)."""
BITS: Final = 7
"""From here on vectors may be bits (docs/adr/0128)."""
KNOWN: Final = 7
"""What this release knows. Raise it by one with every new log command, every new field of one, and every new format of
a file that goes from node to node (docs/versions.md says how)."""


def check_version(at: int, knows: int) -> None:
    """Raises UnsupportedFormat for a node that cannot go on in a cluster: it knows less than the cluster is at."""
    if at > knows:
        raise UnsupportedFormat(
            f"this cluster is at version {at} of its commands and formats, and the release that runs here knows them "
            f"up to {knows}: start this node with the release that the other nodes run, or a later one",
            version=at,
            knows=knows,
        )
