"""Moves of replicas that get nowhere: for how long new nodes have refused them, because they are short of memory, and
which new nodes are gone for long."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Final

from needle.base.ids import NodeId
from needle.catalog.planning.running import Seen, gone_for_good, refused
from needle.routing.jobs import Running
from needle.routing.stats import ClusterStats

log = logging.getLogger("needle.server")

PATIENCE_SECONDS: Final = 60.0
"""Memory is short for a moment now and then. A move that gets nowhere for longer is planned anew, for other nodes."""


class RefusedMoves:
    """What this coordinator has seen; a successor begins anew, and waits for longer."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def look(
        self, running: Sequence[Running], seen: Seen, stats: ClusterStats, gone: Collection[NodeId], now: float
    ) -> frozenset[int]:
        """Ids of the moves that have been refused for PATIENCE_SECONDS, or whose new node is one of `gone`, which the
        cluster does without. now: seconds."""
        found = refused(running, seen, {one.node for one in stats.nodes if one.tight})
        self._since = {id_: self._since.get(id_, now) for id_ in found}
        late = frozenset(id_ for id_, since in self._since.items() if now - since >= PATIENCE_SECONDS)
        for one in running:
            if one.id in late:
                log.info("%s is given up and planned anew: %s is short of memory", one.move.in_words(), found[one.id])
        lost = gone_for_good(running, seen, gone)
        for one in running:
            if one.id in lost:
                log.info("%s is given up and planned anew: %s is gone for long", one.move.in_words(), lost[one.id])
        return late | lost.keys()
