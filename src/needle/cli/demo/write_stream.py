"""A stream of writes that goes on while the demo does something to the cluster, and what of it is missing then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray

import needle
from needle.base.errors import OutcomeUnknown

WRITES = "writes"
"""The collection that it goes into: nobody is to find that among the passages."""
WRITERS = 8
WRITE_SECONDS = 15.0


async def missing_of(client: needle.Client, ids: list[str]) -> list[str]:
    """Those that are not there."""
    found: set[str] = set()
    for start in range(0, len(ids), 500):
        documents = await client.get_many(ids[start : start + 500], collection=WRITES)
        found.update(document.id for document in documents)
    return [identifier for identifier in ids if identifier not in found]


class WriteStream:
    """Writers that insert one document each, over and over. acknowledged: (sent, answered) times by id."""

    def __init__(self, client: needle.Client, vectors: NDArray[np.float32], name: str = "live") -> None:
        """name: the beginning of the ids."""
        self._name = name
        self._client = client
        self._vectors = vectors
        self._next = 0
        self._stopping = False
        self.acknowledged: dict[str, tuple[float, float]] = {}
        self.unknown: list[str] = []

    def reached(self, count: int) -> Callable[[], Awaitable[bool]]:
        async def holds() -> bool:
            return len(self.acknowledged) >= count

        return holds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write while the body runs; then let the writes in flight end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write())
            try:
                yield
            finally:
                self._stopping = True

    async def _write(self) -> None:
        while not self._stopping:
            self._next += 1
            identifier, vector = f"{self._name}/{self._next:06d}", self._vectors[self._next % len(self._vectors)]
            sent = time.perf_counter()
            try:
                await self._client.insert(identifier, vector, collection=WRITES, timeout=WRITE_SECONDS)
            except OutcomeUnknown:
                self.unknown.append(identifier)
            else:
                self.acknowledged[identifier] = (sent, time.perf_counter())
