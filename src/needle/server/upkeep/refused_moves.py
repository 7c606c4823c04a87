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
"""Memory is short for a moment now and then. A move that gets nowhere for longer is planned again, for other nodes."""


class RefusedMoves:
    """What this coordinator has seen; a successor begins again, and waits for longer."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._why: dict[int, str] = {}

    def look(
        self, running: Sequence[Running], seen: Seen, stats: ClusterStats, gone: Collection[NodeId], now: float
    ) -> frozenset[int]:
        """Ids of the moves that have been refused for PATIENCE_SECONDS, or whose new node is one of `gone`, which the
        cluster does without. now: seconds."""
        found = refused(running, seen, {one.node for one in stats.nodes if one.tight})
        self._since = {id_: self._since.get(id_, now) for id_ in found}
        late = [id_ for id_, since in self._since.items() if now - since >= PATIENCE_SECONDS]
        why = {id_: f"{found[id_]} is short of memory" for id_ in late}
        lost = gone_for_good(running, seen, gone)
        self._why = why | {id_: f"{node} is gone for long" for id_, node in lost.items()}
        return frozenset(self._why)

    def tell(self, given_up: int, running: Sequence[Running]) -> None:
        """A move of the last look was given up."""
        for one in running:
            if one.id == given_up in self._why:
                log.info("%s is given up and planned again: %s", one.move.in_words(), self._why[given_up])
