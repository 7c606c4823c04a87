"""A client that mirrors the documents with a second vector (several.py) by a change feed that tells that one, too.

Invariants checked: as of any mirror (feeds.py); what is told of a version that was written for sure has just the named
vector that this version had, however late it is told and whatever has moved or died meanwhile; and in the end the
mirror has what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from needle.client.client import Client
from needle.client.feed import Change, Changes
from needle.routing.topology import Topology
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.shards.feeds import FeedReader
from proof.sim.shards.several import NAME, VECTOR, Several
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

RULE = "a change comes with the named vector that its document had then"


class NamedFeedReader(FeedReader):
    """See the module."""

    def __init__(
        self, stage: Stage, connect: Callable[[Topology, int], Client], truth: Truth, several: Several
    ) -> None:
        super().__init__(stage, connect, truth, "feeds of several vectors")
        self._several = several

    async def has_everything(self) -> bool:
        """As of FeedReader; there is nothing to tell where the vector was never added."""
        return not self._several.begun or await super().has_everything()

    async def _read(self, most: int, seconds: float) -> None:
        if self._several.begun:
            await super()._read(most, seconds)

    def _feed(self, client: Client) -> Changes:
        whole = self._rng.random() < 0.5
        return client.changes(NAME, since=self._token, with_vectors=whole, vectors=[VECTOR], timeout=CALL_TIMEOUT)

    def _held(self, change: Change) -> tuple[int, Any]:
        vector = (change.vectors or {}).get(VECTOR)
        if (true := self._several.differs(change.id, change.version, vector)) is not None:
            raise Violation(RULE, f"{change.id} was {true}, and shard {change.shard} tells it with {vector}")
        return change.version, vector

    def _wrong(self) -> list[tuple[str, Any, Any]]:
        return self._several.wrong_in(self._mirror)
