"""Documents that one task alone writes, so that a model in plain Python knows what every read must show.

A write that was acknowledged counts from then on; one that was refused never; one of unknown fate (or a batch that
failed, of which some shards may have executed their part) stays possible for good, for it may take effect at any later
time. Invariant: an answer that is given is judged; one that is refused says only that it cannot be given now.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Sequence

import numpy as np

from needle.base.errors import NeedleError
from needle.base.model import ReadMode
from needle.client.client import Client
from proof.chaos.kept import DIMENSIONS
from proof.checkers.violation import Violation
from proof.sim.promises import may_be_told, surely_without_effect

CALL_SECONDS = 20.0
REST_SECONDS = 0.03
BATCH_MAX = 12
GONE = 0
"""As the number of a write: no document."""


class Owned:
    """The only one that writes these documents. done: answers, by kind of call; unknown: writes that may have been
    executed; refused: calls that could not be then."""

    def __init__(self, name: str, client: Client, count: int, rng: random.Random) -> None:
        self._name = name
        self._client = client
        self._rng = rng
        self._ids = [f"{name}-{n}" for n in range(count)]
        self._now = dict.fromkeys(self._ids, GONE)
        self._open: dict[str, set[int]] = {name: set() for name in self._ids}
        """Numbers of writes of unknown fate, by id."""
        self._number = GONE
        self.done: Counter[str] = Counter()
        self.unknown = self.refused = 0
        self.ending = False

    async def run(self) -> None:
        """Until `ending`. Raises Violation."""
        while not self.ending:
            draw, rng = self._rng.random(), self._rng
            if draw < 0.5:
                await self._write(rng.sample(self._ids, 1 if draw < 0.35 else rng.randint(2, BATCH_MAX)))
            elif draw < 0.67:
                await self._delete(rng.sample(self._ids, 1 if draw < 0.6 else rng.randint(2, BATCH_MAX)))
            else:
                await self.look(["get", "search", "count"][int((draw - 0.67) * 9)])
            await asyncio.sleep(REST_SECONDS * rng.random())

    async def _write(self, names: list[str]) -> None:
        self._number += 1
        row = np.full(DIMENSIONS, self._number, np.float32)
        about = {"owner": self._name, "number": self._number}
        made = self._client.insert_batch(
            ids=names, vectors=np.stack([row] * len(names)), metadatas=[about] * len(names), timeout=CALL_SECONDS
        )
        await self._change("write", names, self._number, made)

    async def _delete(self, names: list[str]) -> None:
        await self._change("delete", names, GONE, self._client.delete(names, timeout=CALL_SECONDS))

    async def _change(self, what: str, names: Sequence[str], number: int, call: Awaitable[object]) -> None:
        try:
            await call
        except NeedleError as error:
            if not may_be_told(error, None):
                raise Violation("expected errors", f"a {what}: {error!r}: {error}") from error
            if len(names) > 1 or not surely_without_effect(error):
                self.unknown += 1
                for name in names:
                    self._open[name].add(number)
            else:
                self.refused += 1
            return
        self.done[what] += 1
        self._now.update(dict.fromkeys(names, number))

    async def look(self, what: str) -> bool:
        """Whether a strong read of one kind was answered. Raises Violation if the model has not what it shows."""
        mine = {"owner": self._name}
        try:
            if what == "get":
                found = await self._client.get(self._ids, timeout=CALL_SECONDS)
                self._judge(what, [(one.id, one.metadata["number"]) for one in found if one.metadata])
            elif what == "search":
                hits = await self._client.search(
                    np.ones(DIMENSIONS, np.float32), 2 * len(self._ids), mine, exact=True, timeout=CALL_SECONDS
                )
                self._judge(what, [(hit.id, hit.metadata["number"]) for hit in hits if hit.metadata])
            else:
                self._judge_count(await self._client.count(mine, timeout=CALL_SECONDS))
        except NeedleError as error:
            if not may_be_told(error, ReadMode.STRONG):
                raise Violation("expected errors", f"a {what}: {error!r}: {error}") from error
            self.refused += 1
            return False
        self.done[what] += 1
        return True

    def _judge(self, what: str, told: Sequence[tuple[str, int]]) -> None:
        found = dict(told)
        if len(found) != len(told) or not found.keys() <= self._now.keys():
            raise Violation("nothing twice", f"a {what} of {self._name} has {told}")
        for name, number in self._now.items():
            there = found.get(name, GONE)
            if there not in (allowed := {number, *self._open[name]}):
                why = f"a {what} has write {there} of {name}; {sorted(allowed)} may be there"
                raise Violation("nothing lost", why, name)

    def _judge_count(self, count: int) -> None:
        possible = [{number, *self._open[name]} for name, number in self._now.items()]
        least = sum(GONE not in numbers for numbers in possible)
        most = sum(numbers != {GONE} for numbers in possible)
        if not least <= count <= most:
            raise Violation("nothing lost", f"a count of {self._name} is {count}, not from {least} to {most}")
