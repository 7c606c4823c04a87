"""What one client does: draw operations from the seed, ask through the real client, write down what it was told.

Invariant: an operation is `failed` in the history only if the product promised that it had no effect; whatever it left
open is `unknown`. The parts of a batch have fates of their own, so each document of it is an operation of its own. It
must not know the servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from needle.base.errors import AlreadyExists, NeedleError, VersionMismatch
from needle.base.model import ReadMode, WriteResult
from proof.checkers.history import Kind, Operation, shown
from proof.checkers.replay import GetSeen
from proof.checkers.violation import Violation
from proof.sim.keyed import Keyed
from proof.sim.machine import instant_at, stream
from proof.sim.promises import may_be_told, surely_without_effect
from proof.sim.searches_seen import Asked, Shapings, seen, several_vectors, told
from proof.sim.workload import FILTERS, Answer, Database, Workload, value_of

MODES = (ReadMode.STRONG, ReadMode.STRONG, ReadMode.LEASED, ReadMode.EVENTUAL)
NEW_SESSION_CHANCE = 0.1
WRITES_SHARE = 0.54
CHANGES_SHARE = 0.15
LULL_EVERY, LULL_SECONDS = 15.0, 5.0
"""Seconds. In a lull nobody writes: then every log is up to date, and only votes and leases keep order."""
BURST_EVERY, BURST_WRITES = 4.0, 2
BATCH_CHANCE = 0.12
DELETE_MANY_CHANCE = 0.04
BATCH_MAX = 6
PARTIAL_CHANCE = 0.15
MANY_SHARE, MANY_MAX = 0.15, 5
UPDATE_SHARE = 0.3
"""Of changes."""
EXPIRING_SHARE = 0.15
EXPIRING_SECONDS, EXPIRING_REST = (0.2, 4.0), 2.0
"""Of puts: those with an instant, so far away. None of them lies in a lull, nor so shortly before one."""
CONTEND_CHANCE = 0.7
CONTENDED_KEYS = 6
CONTEND_SECONDS = 0.15


class Client:
    """One client session, one operation at a time."""

    def __init__(self, name: str, connect: Callable[[], Database], work: Workload, laziness: float = 1.0) -> None:
        """connect: makes a new session, which knows no leader yet."""
        self.name = name
        self._connect = connect
        self._database = connect()
        self._think = work.profile.think_seconds * laziness
        self._work = work
        self._rng = stream(work.seed, "client", name)
        self._instants = stream(work.seed, "instants", name)
        self._several = stream(work.seed, "several", name)
        self._shapings = Shapings(work.seed, name)
        self._keyed = Keyed(stream(work.seed, "keyed", name), lambda wrong: setattr(work, "broken", wrong))
        self._versions: dict[str, int] = {}
        self._writes = 0
        self._contended = 0

    async def run(self) -> None:
        """Until the workload stops or its budget is spent."""
        while not self._work.stopping and self._work.budget.take():
            await self.step()
            await asyncio.sleep(self._rng.expovariate(1 / self._think) if self._rng.random() < 0.8 else 0)

    async def run_in_bursts(self) -> None:
        """Write together with all others that run like this, then rest: many appends are under way at once."""
        while not self._work.stopping:
            await asyncio.sleep(BURST_EVERY - self._work.loop.time() % BURST_EVERY)
            for _ in range(0 if self._is_lull() else BURST_WRITES):
                if self._work.stopping or not self._work.budget.take():
                    return
                await self.put(self._work.keys.draw(self._rng))

    def renew(self) -> None:
        """Begin a new session."""
        self._database = self._connect()

    async def step(self) -> None:
        """One operation of a random kind, or some that belong together."""
        if self._work.wide:
            if self._work.shards.contended() and not self._is_lull() and self._rng.random() < CONTEND_CHANCE:
                await self.contend()
                return
            draw = self._rng.random()
            if draw < BATCH_CHANCE + DELETE_MANY_CHANCE and not self._is_lull():
                await (self.insert_many() if draw < BATCH_CHANCE else self.delete_many())
                return
        await self._one()

    async def _one(self) -> None:
        """One operation on one key, or a search, now and then in a new session."""
        if self._rng.random() < NEW_SESSION_CHANCE:
            self.renew()
        key, draw = self._work.keys.draw(self._rng), self._rng.random()
        if self._work.wide and not self._is_lull() and self._rng.random() < CHANGES_SHARE:
            if self._several.random() < UPDATE_SHARE:
                await self.update(key)
                return
            patches = self._rng.random() < 0.8 or not self._database.by_filter
            await (self.patch(key) if patches else self.delete_where(key))
            return
        if self._is_lull():
            draw = max(draw, WRITES_SHARE)
        if self._work.wide and draw >= WRITES_SHARE and self._several.random() < MANY_SHARE:
            await self.search_many()
        elif draw < 0.25:
            await self.put(key)
        elif draw < 0.33:
            await self.insert(key)
        elif draw < 0.48:
            await self.compare_and_set(key)
        elif draw < WRITES_SHARE:
            await self.delete(key)
        elif draw < 0.76:
            await self.get(key, MODES[self._rng.randrange(len(MODES))])
        else:
            await self.search(MODES[self._rng.randrange(len(MODES))])

    def _is_lull(self) -> bool:
        return self._work.wide and self._work.loop.time() % LULL_EVERY < LULL_SECONDS

    # --- writes -------------------------------------------------------------------------------------------------------
    def _document(self, key: str) -> tuple[str, Any, dict[str, Any]]:
        self._writes += 1
        tag = f"{self.name}-{self._writes}"
        metadata = {"tag": tag, "key": key, "n": self._rng.randrange(10), "odd": self._rng.random() < 0.5}
        return tag, self._vector(), metadata

    def _vector(self) -> Any:
        return np.array([self._rng.gauss(0, 1) for _ in range(self._work.profile.dimensions)], np.float32)

    async def put(self, key: str) -> bool:
        """True if it was acknowledged."""
        if self._work.wide and not self._is_lull() and self._instants.random() < EXPIRING_SHARE:
            at = self._work.loop.time() + self._instants.uniform(*EXPIRING_SECONDS)
            if at % LULL_EVERY > LULL_SECONDS and at % LULL_EVERY < LULL_EVERY - EXPIRING_REST:
                return await self._put_expiring(key, instant_at(at))
        return await self._insert("put", key, 0, self._database.put)

    async def _put_expiring(self, key: str, at: str) -> bool:
        """A document that will be deleted soon: history has the delete when the log does (World)."""
        database = self._database
        return await self._insert("put", key, 0, lambda key, vector, data: database.put_expiring(key, vector, data, at))

    async def insert(self, key: str) -> None:
        await self._insert("insert", key, 0, self._database.insert_if_absent)

    async def compare_and_set(self, key: str) -> None:
        made = self._document(key)
        expected = self._versions.get(key)
        if expected is None:
            await self.get(key, ReadMode.STRONG)
            expected = self._versions.get(key)
        if expected:
            database, version = self._database, expected
            await self._insert("cas", key, version, lambda key, *it: database.compare_and_set(key, version, *it), made)

    async def _insert(
        self,
        kind: Kind,
        key: str,
        expected: int,
        ask: Callable[[str, Any, Any], Awaitable[WriteResult]],
        made: tuple[str, Any, dict[str, Any]] | None = None,
    ) -> bool:
        tag, vector, metadata = made or self._document(key)
        return await self._write(kind, key, tag, expected, lambda: ask(key, vector, metadata), shown(vector, metadata))

    async def delete(self, key: str) -> None:
        await self._write("delete", key, "", 0, lambda: self._database.delete(key), {})

    async def delete_where(self, key: str) -> None:
        """By a filter that one document matches: to its clients the same as a delete."""
        by = {"$ids": [key, "none"]} if self._writes % 2 else {"key": key}
        await self._write("delete", key, "", 0, lambda: self._database.delete_where(by), {"where": True})

    async def patch(self, key: str) -> None:
        self._writes += 1
        added = f"{self.name}-{self._writes}"
        expected = (self._versions.get(key) or 0) if self._rng.random() < 0.3 else 0
        by = {"added": added}
        await self._write("patch", key, added, expected, lambda: self._database.patch(key, by, expected), {})

    async def update(self, key: str) -> None:
        """Give a document another vector, which reads tell from all others."""
        self._writes += 1
        tag, vector = f"{self.name}-{self._writes}", several_vectors(self._several, 1, self._work.profile.dimensions)[0]
        self._work.updating(key, tag, vector)
        details = {"vector": vector.tolist()}
        await self._write("update", key, tag, 0, lambda: self._database.update(key, vector), details)

    async def _write(
        self,
        kind: Kind,
        key: str,
        tag: str,
        expected: int,
        ask: Callable[[], Awaitable[WriteResult]],
        details: dict[str, Any],
    ) -> bool:
        op = self._invoke(kind, key, tag=tag, expected=expected, details=details)
        try:
            result = await self._keyed.ask(ask, may=self._work.wide and self._database.keyed)
        except (AlreadyExists, VersionMismatch) as error:
            found = error.details.get("version" if isinstance(error, AlreadyExists) else "actual")
            self._finish(op, "refused", version=int(found or 0), error=error.code)
        except NeedleError as error:
            self._finish(op, "failed" if surely_without_effect(error) else "unknown", error=error.code)
            self._expect(op, error)
        else:
            gone = kind == "delete" or (kind in ("patch", "update") and not result.existed)
            version = self._versions[key] = 0 if gone else result.version
            self._finish(op, "ok", version=version, index=result.index, existed=result.existed)
            self._work.on_ack(key, result.index)
            return True
        self._versions.pop(key, None)
        return False

    async def contend(self) -> None:
        """While ranges move under a custom strategy, where a delete has to ask all shards: a document of this client's
        own is written again while it is deleted. Executed twice, the delete takes what was written in between."""
        for _ in range(CONTENDED_KEYS):
            if not self._work.shards.contended() or self._work.stopping or self._is_lull():
                return
            self._contended += 1
            key = f"{self.name}.{self._contended}"
            await self.insert(key)
            await asyncio.gather(self.delete(key), self._insert_soon(key))
            await self.get(key, ReadMode.STRONG)

    async def _insert_soon(self, key: str) -> None:
        await asyncio.sleep(self._rng.uniform(0, CONTEND_SECONDS))
        await self.insert(key)

    # --- writes of several documents ----------------------------------------------------------------------------------
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
            fates = await self._database.insert_many([document for _, document in written])
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
            self._work.in_batches.append(op)

    async def delete_many(self) -> None:
        """Delete several documents: all or nothing in each shard, so an error leaves the others open."""
        keys = self._some_keys()
        ops = [self._invoke("delete", key) for key in keys]
        try:
            await self._database.delete_many(keys)
        except NeedleError as error:
            for op in ops:
                self._finish(op, "unknown", error=error.code)
            self._expect(ops[0], error)
        else:
            for op in ops:
                self._finish(op, "ok")
        for key in keys:
            self._versions.pop(key, None)

    # --- reads --------------------------------------------------------------------------------------------------------
    async def get(self, key: str, mode: ReadMode) -> bool:
        """True if it was answered. Which shard answered decides what it had to see: the key may have moved."""
        shards, eventual = self._work.shards, mode is ReadMode.EVENTUAL
        database, required = self._database, self._required(mode)  # at the end of a run it may be renewed meanwhile
        asked = {"mode": str(mode), "required": required[shards.owner(key)]}
        op = self._invoke("search" if eventual else "get", key, details=asked)
        try:
            version, metadata, applied = await database.get(key, mode)
        except NeedleError as error:
            self._finish(op, "failed", error=error.code)
            self._expect(op, error)
            return False
        self._versions[key] = version
        op.details["applied"] = applied
        seen_value = value_of(metadata) + self._work.vector_of(key, database.vector()) if version else ""
        self._finish(op, "ok", version=version, seen=seen_value)
        shard = database.answered_by()
        if applied and shard >= 0:
            seen = GetSeen(
                key=key,
                version=version,
                applied_index=applied,
                latest_index=shards.last()[shard],
                required_index=required.get(shard, 0),  # it may have come meanwhile
                label=f"get #{op.id} of {key} ({mode}) from shard {shard}",
            )
            self._work.gets.append((shard, seen))
        return True

    async def search(self, mode: ReadMode) -> None:
        """One search of a random kind."""
        filter_, keep = FILTERS[self._rng.randrange(len(FILTERS))]
        k, exact = self._rng.choice([1, 3, 10, 100]), self._rng.random() < 0.7
        partial = self._rng.random() < PARTIAL_CHANCE
        asked = Asked(k, keep, exact, {}, self._shapings.draw(k))
        await self.find(MODES[0] if partial else mode, filter_, asked, partial)

    async def find(self, mode: ReadMode, filter_: Any, asked: Asked, partial: bool) -> bool:
        """One search of all shards; True if it was answered."""
        vector, asked = self._vector(), asked._replace(required=self._required(mode))
        op = self._invoke("search", "", details={**told(asked, mode, filter_, vector), "partial": partial})
        try:
            answer = await self._database.find(vector, asked.k, filter_, mode, asked.exact, partial, asked.shaping)
        except NeedleError as error:
            self._finish(op, "failed", error=error.code)
            self._expect(op, error)
            return False
        self._found(op, answer, vector, asked)
        return True

    async def search_many(self) -> None:
        """Several searches in one call, each an operation of its own."""
        rng = self._several
        mode, (filter_, keep) = MODES[rng.randrange(len(MODES))], FILTERS[rng.randrange(len(FILTERS))]
        k, exact, required = rng.choice([1, 3, 10]), rng.random() < 0.7, self._required(mode)
        asked = Asked(k, keep, exact, required, self._shapings.draw(k))
        rows = several_vectors(rng, rng.randint(2, MANY_MAX), self._work.profile.dimensions)
        more = {"partial": False, "many": len(rows)}
        ops = [self._invoke("search", "", details={**told(asked, mode, filter_, row), **more}) for row in rows]
        try:
            answers = await self._database.find_many(rows, k, filter_, mode, exact, asked.shaping)
        except NeedleError as error:
            for op in ops:
                self._finish(op, "failed", error=error.code)
            self._expect(ops[0], error)
            return
        if len(answers) != len(ops):
            text = f"#{ops[0].id} of {len(ops)} searches in one call was given {len(answers)} answers"
            self._work.broken = Violation("every search is answered", text)
        for op, row, answer in zip(ops, rows, answers, strict=False):
            self._found(op, answer, row, asked)

    def _found(self, op: Operation, answer: Answer, vector: Any, asked: Asked) -> None:
        """Write down what a search was answered."""
        found = seen(op, answer, vector, asked, self._work.shards.last())
        self._finish(op, "ok", version=len(found.hits))
        self._work.scatters.append(found)

    def _required(self, mode: ReadMode) -> dict[int, int]:
        """By shard, what a read that begins now has to see."""
        last = self._work.shards.last()
        return self._database.tokens(last) if mode is ReadMode.EVENTUAL else last

    # --- the record ---------------------------------------------------------------------------------------------------
    def _invoke(self, kind: Kind, key: str, **fields: Any) -> Operation:
        op = self._work.history.invoke(self.name, kind, key, self._work.loop.time(), **fields)
        self._work.trace.note(f"{self.name} invoke #{op.id} {kind} {key} {op.tag} {op.expected} {op.details}")
        return op

    def _finish(self, op: Operation, outcome: Any, **fields: Any) -> None:
        if via := self._database.via:
            op.details["via"] = via
        self._work.history.finish(op, outcome, self._work.loop.time(), **fields)
        self._work.trace.note(f"{self.name} return #{op.id} {outcome} {fields}")

    def _expect(self, op: Operation, error: NeedleError) -> None:
        if not may_be_told(error, op.details.get("mode")):
            text = f"#{op.id} {op.kind} {op.key} failed with {error!r}: {error}"
            self._work.broken = Violation("expected errors", text)
