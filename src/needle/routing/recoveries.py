"""That a cluster was made of what one node had, when a majority was lost for good: noted in its topology forever."""

from __future__ import annotations

import msgspec

from needle.base.ids import NodeId
from needle.base.instants import rfc3339


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster was made of what one node had, when a majority was lost for good. at: microseconds since 1970.
    cluster_id, founding: of the cluster before. kept: by shard, the last index of its log that the node knew to be on a
    majority; of what was acknowledged behind that nothing is known, though it may be there. emptied: shards of which it
    had nothing."""

    at: int
    node: NodeId
    cluster_id: str
    founding: int
    kept: dict[int, int]
    emptied: tuple[int, ...] = ()

    def in_words(self) -> str:
        """For people."""
        told = ", ".join(f"shard {shard} behind index {index}" for shard, index in sorted(self.kept.items()))
        lost = f"; shards {', '.join(map(str, self.emptied))} began empty" if self.emptied else ""
        return (
            f"recovered from {self.node} alone at {rfc3339(self.at)}: writes that were acknowledged before may be "
            f"missing ({told}){lost}"
        )
