"""Documents that nobody changes while everything moves: each exact search finds each of them once, and nothing else.

Invariant: an answer that is given is judged; one that is refused says only that it cannot be given now.
"""

from __future__ import annotations

import asyncio
import random

import numpy as np

from needle.base.errors import NeedleError
from needle.base.model import ReadMode
from needle.client.client import Client
from proof.checkers.violation import Violation
from proof.sim.promises import may_be_told

DIMENSIONS = 8
BATCH = 500
CALL_SECONDS = 20.0
REST_SECONDS = 0.1
KEPT = {"kept": True}


class Kept:
    """See the module. searches: how many were answered."""

    def __init__(self, client: Client, count: int, rng: random.Random) -> None:
        self._client = client
        self._rng = rng
        self._names = [f"kept-{n}" for n in range(count)]
        self._rows = np.random.default_rng(rng.getrandbits(32)).normal(size=(count, DIMENSIONS)).astype(np.float32)
        self.searches = 0
        self.refused = 0
        self.ending = False

    async def fill(self) -> None:
        """Write them."""
        for at in range(0, len(self._names), BATCH):
            names = self._names[at : at + BATCH]
            await self._client.insert_batch(
                ids=names, vectors=self._rows[at : at + BATCH], metadatas=[KEPT] * len(names), timeout=CALL_SECONDS
            )

    async def run(self) -> None:
        """Until `ending`. Raises Violation."""
        while not self.ending:
            try:
                await self.look()
            except NeedleError as error:
                if not may_be_told(error, ReadMode.STRONG):
                    raise Violation("expected errors", f"a search: {error!r}: {error}") from error
                self.refused += 1
            await asyncio.sleep(REST_SECONDS)

    async def look(self) -> None:
        """One search of all, and one of some. Raises Violation, NeedleError."""
        at = self._rng.randrange(len(self._names))
        hits = await self._client.search(self._rows[at], len(self._names) + 100, KEPT, exact=True, timeout=CALL_SECONDS)
        found = [hit.id for hit in hits]
        if len(set(found)) != len(found):
            raise Violation("nothing twice", f"{sorted(name for name in set(found) if found.count(name) > 1)[:5]}")
        if set(found) != set(self._names):
            missing, strange = set(self._names) - set(found), set(found) - set(self._names)
            raise Violation("nothing lost", f"{len(missing)} are missing: {sorted(missing)[:5]}; {sorted(strange)[:5]}")
        if found[0] != self._names[at]:
            raise Violation("the nearest first", f"{found[0]} for the vector of {self._names[at]}")
        self.searches += 1
