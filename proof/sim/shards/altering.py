"""Somebody who changes the index of the workload's collection, over and over, also before the last change is done.

Invariants checked: no replica ever serves by files of two indexes; in the end every shard has the index that the
catalog names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from needle.base.errors import ClusterTooOld, NeedleError, OutcomeUnknown, StorageError, Unavailable
from needle.base.ids import CATALOG_GROUP, GroupId
from needle.base.model import IndexKind, IndexParams
from needle.client.client import Client
from needle.routing.topology import Topology
from needle.shard.segments.view import Served
from proof.checkers.indexes import IndexFiles
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.machine import stream
from proof.sim.nodes import SimNode
from proof.sim.shards.profile import shape_of
from proof.sim.stage import Stage
from proof.sim.workload import COLLECTION

NAME = "altering"
REST_SECONDS = 8.0


class Altering:
    """See the module. broken: the violation it found."""

    def __init__(self, stage: Stage, client: Client) -> None:
        self._stage = stage
        self._client = client
        self._rng = stream(stage.spec.seed, NAME)
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`."""
        while not self.stopping:
            await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))
            index = IndexParams(kind=self._rng.choice([*IndexKind]), m=self._rng.choice([8, 16]))
            if self._rng.random() < 0.3:
                index = msgspec.structs.replace(index, kind=self._stage.profile.index)
            try:
                await self._client.alter_collection(COLLECTION, index=index, timeout=CALL_TIMEOUT)
            except (Unavailable, OutcomeUnknown, StorageError, ClusterTooOld) as error:
                self._stage.trace.note(f"altering: {error.code}")
            except NeedleError as error:
                self.broken = Violation("expected errors", f"altering to {index.built}: {error!r}: {error}")
            else:
                self._stage.trace.note(f"the index is to be {index.built}")


class ServedIndexes:
    """The index files that nodes search by."""

    def __init__(self, stage: Stage, files: IndexFiles, now: Callable[[], Topology]) -> None:
        """files: what the logs said. now: the newest topology."""
        self._fleet = stage.fleet
        self._files = files
        self._now = now
        if shape_of(stage.spec).altering:
            stage.on_step = self.look
        self._seen: dict[tuple[str, GroupId, int], tuple[Served, ...]] = {}

    def look(self, name: str) -> None:
        """At what changed on a node since the last look. Raises Violation."""
        node = self._fleet.nodes.get(name)
        for group, collection_id, served in node.served() if isinstance(node, SimNode) else ():
            key = name, group, collection_id
            if self._seen.get(key) is not served:
                self._seen[key] = served
                segments = [one.sealed.segment for one in served]
                files = [(segment.first, segment.last, segment.checksum) for segment in segments]
                self._files.check(name, group, collection_id, files)

    async def follow_the_catalog(self) -> bool:
        """Whether all replicas have the index that the catalog names, and get no other one."""
        wanted = {info.stored_name: info.spec.index.built for info in self._now().collections}
        held = [
            replica.machine.view.collections[name]
            for group, replicas in self._fleet.replicas().items()
            for replica in replicas.values()
            for name in (wanted if group != CATALOG_GROUP else ())
            if name in replica.machine.view.collections
        ]
        return all(one.index.now == [wanted[one.record.spec.name]] and not one.index.wanted for one in held)
