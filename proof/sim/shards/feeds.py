"""A client that mirrors the workload's collection by a change feed, while everything changes and moves.

Invariants checked: a change of a document has a higher version than all that were told of it before, so none is told
twice or out of order; an update or a deletion is of a document that is there, an insert of one that is not; and in the
end the mirror is what the shards' logs say. It goes on with another feed, of another client, by the token of the one
before, again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from needle.base.errors import ClusterTooOld, CollectionNotFound, DiskFull, NeedleError, ScanEnded, StorageError
from needle.client.client import Client
from needle.client.feed import Change, Changes
from needle.routing.ranges import KeySet
from needle.routing.topology import Topology
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.machine import stream
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.workload import COLLECTION

NAME = "change feeds"
REST_SECONDS = 0.7
LOOK_SECONDS = 2.0
CHANGES_MAX = 60
OTHER_SHARE = 0.4

Held = dict[str, tuple[int, Any]]


class FeedReader:
    """See the module. broken: the violation it found. told, resets: changes, and how often it began again."""

    def __init__(
        self, stage: Stage, connect: Callable[[Topology, int], Client], truth: Truth, name: str = NAME
    ) -> None:
        """connect: makes the n-th client, which knows this topology. name: of what it draws."""
        self._stage = stage
        self._connect = connect
        self._truth = truth
        self._rng = stream(stage.spec.seed, name)
        self._clients = 0
        self._client = self._another()
        self._token = "start"
        self._mirror: Held = {}
        self._versions: dict[str, int] = {}
        self._whole = False
        self.told = self.resets = 0
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`."""
        while not self.stopping:
            try:
                await self._read(self._rng.randint(1, CHANGES_MAX), self._rng.uniform(0.1, LOOK_SECONDS))
            except Violation as violation:
                self.broken = self.broken or violation
                return
            await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))

    async def has_everything(self) -> bool:
        """Once nothing changes any more: whether it was told of everything. Raises Violation."""
        await self._read(1000, LOOK_SECONDS)
        wrong = self._wrong()
        if wrong:
            self._stage.trace.note(f"the mirror differs: {wrong[:3]}")
        if not wrong and self._whole:
            self._stage.trace.tell(f"a feed told {self.told} changes, and began again {self.resets} times")
        return self._whole and not wrong

    def _another(self) -> Client:
        self._clients += 1
        return self._connect(self._truth.now, self._clients)

    def _wrong(self) -> list[tuple[str, Any, Any]]:
        true: Held = {}
        for shard, model in self._truth.models().items():
            mine = KeySet(self._truth.logs.owned_now(shard))
            documents = model.at(model.last_index)
            true.update(
                (name, (one.version, one.metadata)) for name, one in documents.items() if self._truth.key(name) in mine
            )
        names = sorted(true.keys() | self._mirror.keys())
        pairs = [(name, self._mirror.get(name), true.get(name)) for name in names]
        return [one for one in pairs if one[1] != one[2]]

    async def _read(self, most: int, seconds: float) -> None:
        """Up to `most` changes, while one comes within `seconds`."""
        if self._rng.random() < OTHER_SHARE:
            self._client = self._another()
        feed = self._feed(self._client)
        try:
            for _ in range(most):
                self._take(await self._next(feed, seconds))
        except TimeoutError:
            pass
        except NeedleError as error:
            passing = isinstance(error, StorageError | DiskFull | CollectionNotFound | ClusterTooOld | ScanEnded)
            if not error.retryable and not passing:
                raise Violation("expected errors", f"a change feed: {error!r}: {error}") from error
            self._stage.trace.note(f"feed: {error.code}")
        finally:
            self._token = feed.token
            await feed.aclose()

    def _feed(self, client: Client) -> Changes:
        return client.changes(COLLECTION, since=self._token, timeout=CALL_TIMEOUT)

    async def _next(self, feed: Changes, seconds: float) -> Change:
        async with asyncio.timeout(seconds):
            return await anext(feed)

    def _take(self, change: Change) -> None:
        if change.kind == "reset":
            self._mirror, self._versions, self._whole = {}, {}, False
            self.resets += 1
            return
        if change.kind == "ready":
            self._whole = True
            return
        self.told += 1
        name, before = change.id, self._versions.get(change.id, 0)
        if change.version <= before:
            raise Violation(NAME, f"{name}: version {change.version} of shard {change.shard} is told behind {before}")
        if (change.kind == "insert") == (name in self._mirror):
            raise Violation(NAME, f"{name}: {change.kind}, and the mirror has {self._mirror.get(name)}")
        self._versions[name] = change.version
        if change.kind == "delete":
            del self._mirror[name]
        else:
            self._mirror[name] = self._held(change)

    def _held(self, change: Change) -> tuple[int, Any]:
        """What the mirror has of a document that is there."""
        return change.version, change.metadata
