"""What clients of HTTP do beside the workload: words that must be there once; a collection that is used in every way.

Errors that are documented, and say that the cluster cannot now, are met and counted; whatever else is answered is
judged on the spot.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from typing import Any

from needle.base.errors import CollectionExists, NeedleError
from needle.local.process_cluster import wait_for
from proof.chaos.http_database import HttpDoor
from proof.checkers.violation import Violation
from proof.sim.promises import may_be_told

SECONDS = 5.0
LEDGERS = 5
WORDS_MAX = 1500
"""Of one document, which then is left alone."""
PAUSE_SECONDS = 0.05
LEDGER = "/v1/collections/ledger"
MIXED, DIMENSIONS, BATCH, DOCUMENTS_MAX = "/v1/collections/mixed", 16, 200, 5000


def _expected(error: NeedleError) -> None:
    if not may_be_told(error, None):
        raise Violation("expected errors", f"HTTP was answered {error!r}: {error}") from error


async def _create(door: HttpDoor, body: dict[str, Any]) -> bool:
    with contextlib.suppress(CollectionExists):
        await door.ask("POST", "/v1/collections", body, SECONDS)
    return True


class Ledger:
    """Words that are appended to documents, each by a request with an idempotency key."""

    def __init__(self, door: HttpDoor, rng: random.Random) -> None:
        self._door = door
        self._rng = rng
        self._at = 0
        self.words: dict[str, list[str]] = {}
        self.open: set[str] = set()
        """Words of unknown fate."""

    async def run(self) -> None:
        """Until it is cancelled."""
        await wait_for(lambda: _create(self._door, {"name": "ledger", "dimensions": 2}), 60, "a collection")
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            name = f"ledger.{self._at // (LEDGERS * WORDS_MAX)}.{self._at % LEDGERS}"
            self._at += 1
            path = f"{LEDGER}/documents/{name}"
            try:
                if name not in self.words:
                    await self._door.once("PUT", path, {"vector": [1, 0], "metadata": {"words": []}}, SECONDS)
                    self.words[name] = []
                word = f"{name}.{len(self.words[name])}.{self._at}"
                self.open.add(word)
                await self._door.once("PATCH", path, {"append": {"words": [word]}, "timeout": SECONDS}, SECONDS)
                self.open.discard(word)
                self.words[name].append(word)
            except NeedleError as error:
                _expected(error)

    async def check(self, seconds: float) -> None:
        """Each word that was acknowledged is there once, in order; one of unknown fate at most once. Raises
        Violation."""
        for name, words in self.words.items():

            async def found(name: str = name) -> Any:
                return (await self._door.ask("GET", f"{LEDGER}/documents/{name}", None, SECONDS)).json

            there = (await wait_for(found, seconds, f"a read of {name}"))["metadata"]["words"]
            twice = [word for word, count in Counter(there).items() if count > 1]
            if twice or [word for word in there if word not in self.open] != words:
                text = f"{name} has {len(there)} words for {len(words)} acknowledged ones; twice: {twice[:5]}"
                raise Violation("each request is executed once", text, name)

    def told(self) -> str:
        """In a line."""
        return f"{sum(map(len, self.words.values()))} appended, each once; {len(self.open)} of unknown fate"


class Mixed:
    """A collection of its own."""

    def __init__(self, door: HttpDoor, rng: random.Random) -> None:
        self._door = door
        self._rng = rng
        self._made = 0
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    async def run(self) -> None:
        """Until it is cancelled."""
        body = {"name": "mixed", "dimensions": DIMENSIONS, "metric": "l2"}
        await wait_for(lambda: _create(self._door, body), 60, "a collection")
        kinds = [self.insert, self.insert, self.insert, self.patch, self.count, self.scan, self.export, self.search]
        kinds += [self.delete, self.look]
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            kind = self._rng.choice(kinds)
            try:
                await kind()
                self.done[kind.__name__] += 1
            except NeedleError as error:
                _expected(error)
                self.failed[kind.__name__] += 1

    def _rows(self, count: int) -> list[list[float]]:
        return [[self._rng.random() for _ in range(DIMENSIONS)] for _ in range(count)]

    async def insert(self) -> None:
        ids = [f"m{(self._made + n) % DOCUMENTS_MAX}" for n in range(BATCH)]
        self._made += BATCH
        body = {"ids": ids, "vectors": self._rows(BATCH), "metadatas": [{"n": n} for n in range(BATCH)]}
        told = (await self._door.once("POST", f"{MIXED}/insert", body, SECONDS)).json
        if told["written"] + sum(len(fate["ids"]) for fate in told["failed"]) != BATCH:
            raise Violation("a batch says what became of each document", f"{told}"[:300])

    async def patch(self) -> None:
        body = {"filter": {"n": self._rng.randrange(BATCH)}, "set": {"seen": self._made}}
        await self._door.once("POST", f"{MIXED}/patch", body, SECONDS)

    async def delete(self) -> None:
        low = self._rng.randrange(BATCH)
        await self._door.once("POST", f"{MIXED}/delete", {"filter": {"n": {"$gte": low, "$lt": low + 20}}}, SECONDS)

    async def count(self) -> None:
        await self._door.ask("POST", f"{MIXED}/count", {"filter": {"n": {"$lt": 50}}}, SECONDS)

    async def scan(self) -> None:
        page = (await self._door.ask("POST", f"{MIXED}/scan", {"limit": 300}, SECONDS)).json
        ids = [one["id"] for one in page["documents"]]
        if ids != sorted(ids) or len(ids) > 300:
            raise Violation("pages are in order", f"{ids[:5]} ... of {len(ids)}")

    async def export(self) -> None:
        answer = await self._door.ask("POST", f"{MIXED}/export", {"with_vectors": False}, 6 * SECONDS)
        *lines, end = [json.loads(line) for line in answer.body.splitlines()]
        ids = [line["id"] for line in lines]
        whole = end == {"end": "complete", "documents": len(lines)}
        broken = end.get("end") == "broken_off" and end["problem"]["code"]
        if not (whole or broken) or len(set(ids)) != len(ids):
            raise Violation("an export says whether it is complete", f"{len(lines)} lines, {len(set(ids))} ids, {end}")
        self.done["broken_off"] += bool(broken)

    async def search(self) -> None:
        body = {"vectors": self._rows(5), "k": 10, "filter": {"n": {"$lt": 100}}}
        results = (await self._door.ask("POST", f"{MIXED}/search_many", body, SECONDS)).json["results"]
        if len(results) != 5:
            raise Violation("every search is answered", f"{len(results)} of 5")

    async def look(self) -> None:
        for path in ("/v1/cluster", "/v1/nodes", "/v1/shards", "/v1/collections?sizes=true", "/v1/rebalance/stats"):
            await self._door.ask("GET", path, None, SECONDS)

    async def check(self, seconds: float) -> None:
        """An export at rest has what a count has. Raises Violation."""

        async def exported() -> int:
            answer = await self._door.ask("POST", f"{MIXED}/export", {"with_vectors": False}, 6 * SECONDS)
            end = json.loads(answer.body.splitlines()[-1])
            return int(end["documents"]) + 1 if end["end"] == "complete" else 0

        async def counted() -> int:
            return int((await self._door.ask("POST", f"{MIXED}/count", {}, SECONDS)).json["count"]) + 1

        found = [await wait_for(one, seconds, "an export and a count") for one in (exported, counted)]
        if found[0] != found[1]:
            raise Violation("an export has all documents", f"{found[0] - 1} exported, {found[1] - 1} counted")

    def told(self) -> str:
        """In a line."""
        done = ", ".join(f"{kind} {count}" for kind, count in sorted(self.done.items()))
        return f"{done}; failed: {sum(self.failed.values())}"
