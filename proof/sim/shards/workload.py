"""What clients do where there may be several shards: batches and deletes across them, scatter-gather, partial searches.

Invariant: as in proof/sim/workload.py: failed only if the product promised no effect. The parts of a batch have fates
of their own, so each document of it is an operation of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from needle.base.errors import NeedleError
from needle.base.model import ReadMode, WriteResult
from proof.checkers.replay import GetSeen
from proof.checkers.scatter import ScatterSeen
from proof.sim.databases import ShardDatabase
from proof.sim.history import Operation
from proof.sim.shards.truth import Truth
from proof.sim.workload import FILTERS, MODES, Client, Workload, shown, surely_without_effect, value_of

BATCH_CHANCE = 0.12
DELETE_MANY_CHANCE = 0.04
CONTEND_CHANCE = 0.7
CONTENDED_KEYS = 6
CONTEND_SECONDS = 0.15
PARTIAL_CHANCE = 0.15
BATCH_MAX = 6


class ShardWork:
    """What the sharded clients of a run share: searches for the scatter checker, and the catalog's truth."""

    def __init__(self, work: Workload, truth: Truth) -> None:
        self.work = work
        self.truth = truth
        self.scatters: list[ScatterSeen] = []
        self.gets: list[tuple[int, GetSeen]] = []
        """With the shard that answered."""
        self.in_batches: list[Operation] = []
        """Acknowledged writes whose versions the client was not told."""


class ShardClient(Client):
    """One client session; see sim.workload.Client."""

    def __init__(
        self, name: str, connect: Callable[[], ShardDatabase], shared: ShardWork, laziness: float = 1.0
    ) -> None:
        super().__init__(name, connect, shared.work, laziness)
        self._shared = shared
        self._truth = shared.truth
        self._contended = 0

    @property
    def _shards(self) -> ShardDatabase:
        return cast("ShardDatabase", self._database)

    async def step(self) -> None:
        now = self._truth.now
        custom = now.map is not None and now.map.strategy.kind == "custom"
        if custom and now.moves and not self._is_lull() and self._rng.random() < CONTEND_CHANCE:
            await self.contend()
            return
        draw = self._rng.random()
        if draw < BATCH_CHANCE and not self._is_lull():
            await self.insert_many()
        elif draw < BATCH_CHANCE + DELETE_MANY_CHANCE and not self._is_lull():
            await self.delete_many()
        else:
            await super().step()

    async def contend(self) -> None:
        """While ranges move under a custom strategy, where a delete has to ask all shards: a document of this client's
        own is written again while it is deleted. Executed twice, the delete takes what was written in between."""
        for _ in range(CONTENDED_KEYS):
            if not self._truth.now.moves or self._work.stopping or self._is_lull():
                return
            self._contended += 1
            key = f"{self.name}.{self._contended}"
            await self.insert(key)
            await asyncio.gather(self.delete(key), self._insert_soon(key))
            await self.get(key, ReadMode.STRONG)

    async def _insert_soon(self, key: str) -> None:
        await asyncio.sleep(self._rng.uniform(0, CONTEND_SECONDS))
        await self.insert(key)

    def _some_keys(self) -> list[str]:
        return sorted({self._work.keys.draw(self._rng) for _ in range(self._rng.randint(2, BATCH_MAX))})

    async def insert_many(self) -> None:
        """Put several documents, wherever they belong."""
        written: list[tuple[Operation, tuple[str, Any, Any]]] = []
        for key in self._some_keys():
            tag, vector, metadata = self._document(key)
            op = self._invoke("put", key, tag=tag, details=shown(vector, metadata))
            written.append((op, (key, vector, metadata)))
        try:
            fates = await self._shards.insert_many([document for _, document in written])
        except NeedleError as error:
            # Some of it may be written even if the error says that the rest is not.
            for op, _ in written:
                self._finish(op, "unknown", error=error.code)
                self._versions.pop(op.key, None)
            self._expect(written[0][0], error)
            return
        for op, _ in written:
            self._settle(op, fates[op.key])

    def _settle(self, op: Operation, fate: WriteResult | NeedleError) -> None:
        self._versions.pop(op.key, None)
        if isinstance(fate, NeedleError):
            self._finish(op, "failed" if surely_without_effect(fate) else "unknown", error=fate.code)
            self._expect(op, fate)
            return
        self._finish(op, "ok", version=fate.version, index=fate.index)
        if fate.version:
            self._versions[op.key] = fate.version
            self._work.on_ack(op.key, fate.index)
        else:
            self._shared.in_batches.append(op)

    async def delete_many(self) -> None:
        """Delete several documents: all or nothing in each shard, so an error leaves the others open."""
        keys = self._some_keys()
        ops = [self._invoke("delete", key) for key in keys]
        try:
            await self._shards.delete_many(keys)
        except NeedleError as error:
            for op in ops:
                self._finish(op, "unknown", error=error.code)
            self._expect(ops[0], error)
        else:
            for op in ops:
                self._finish(op, "ok")
        for key in keys:
            self._versions.pop(key, None)

    async def get(self, key: str, mode: ReadMode) -> bool:
        """As Client.get; which shard answered decides what it had to see, for the key may have moved meanwhile."""
        eventual, last = mode is ReadMode.EVENTUAL, self._truth.last()
        required = self._shards.tokens(last) if eventual else last
        owner = self._truth.owner(key)
        asked = {"mode": str(mode), "required": required[owner]}
        op = self._invoke("search" if eventual else "get", key, details=asked)
        try:
            version, metadata, applied = await self._shards.get(key, mode)
        except NeedleError as error:
            self._finish(op, "failed", error=error.code)
            self._expect(op, error)
            return False
        self._versions[key] = version
        shard = self._shards.answered_by()
        op.details |= {"applied": applied, "shard": shard}
        self._finish(op, "ok", version=version, seen=value_of(metadata) if version else "")
        if applied and shard >= 0:
            seen = GetSeen(
                key=key,
                version=version,
                applied_index=applied,
                latest_index=self._truth.last()[shard],
                required_index=required.get(shard, 0),  # it may have come meanwhile
                label=f"get #{op.id} of {key} ({mode}) from shard {shard}",
            )
            self._shared.gets.append((shard, seen))
        return True

    async def search(self, mode: ReadMode) -> None:
        filter_, keep = FILTERS[self._rng.randrange(len(FILTERS))]
        k, exact = self._rng.choice([1, 3, 10, 100]), self._rng.random() < 0.7
        partial = self._rng.random() < PARTIAL_CHANCE
        await self.find(MODES[0] if partial else mode, k, filter_, keep, exact, partial)

    async def find(
        self, mode: ReadMode, k: int, filter_: Any, keep: Callable[[Any], bool] | None, exact: bool, partial: bool
    ) -> bool:
        """One search of all shards; True if it was answered."""
        vector, last = self._vector(), self._truth.last()
        required = self._shards.tokens(last) if mode is ReadMode.EVENTUAL else last
        asked = {"mode": str(mode), "k": k, "filter": filter_, "exact": exact, "vector": vector.tolist()}
        op = self._invoke("search", "", details={**asked, "required": required, "partial": partial})
        try:
            answer = await self._shards.find(vector, k, filter_, mode, exact, partial)
        except NeedleError as error:
            self._finish(op, "failed", error=error.code)
            self._expect(op, error)
            return False
        hits = list(zip(answer.batch.ids, answer.batch.versions, answer.batch.distances, strict=True))
        op.details |= {"applied": answer.applied, "hits": hits, "missing": answer.missing}
        self._finish(op, "ok", version=len(hits))
        seen = ScatterSeen(
            mode=str(mode),
            vector=vector,
            k=k,
            keep=keep,
            exact=exact,
            hits=hits,
            applied=answer.applied,
            required=required,
            latest=self._truth.last(),
            partial=partial,
            missing=answer.missing,
            gaps=answer.gaps,
            epoch=answer.epoch,
            label=f"search #{op.id} by {self.name}",
        )
        self._shared.scatters.append(seen)
        return True
