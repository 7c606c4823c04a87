"""What a copy may hold: who writes, what was asked for and acknowledged, and the judge of what came back."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
import zlib
from collections.abc import Awaitable, Iterable
from enum import Enum
from typing import NamedTuple

import msgspec
import numpy as np

import needle
from needle.backup.keeping import read_manifest, read_piece
from needle.backup.store import Store
from needle.base.errors import NeedleError
from proof.checkers.violation import Violation

COLLECTIONS = ("default", "second")
IDS = 40
BATCH = 3
STILL = 600
"""Documents of the second collection that are written once: it has an index file."""
SEAL_ROWS = 100
CALL_SECONDS = 10.0
STILL_SECONDS = 60.0
CLOCK_SECONDS = 0.002
"""The processes of a machine read one clock; a leader reads it a little before it proposes."""


class Kind(Enum):
    """Of a write. PATCH changes the number in the metadata and leaves the vector as it is; it makes no document."""

    INSERT = "insert"
    PATCH = "patch"
    DELETE = "delete"


class Key(NamedTuple):
    """Of a document."""

    collection: str
    id: str


class Found(NamedTuple):
    """What came back of a document: the number of its last write, and its vector."""

    number: int
    vector: tuple[float, ...]


def vector_of(key: Key, number: int) -> tuple[float, ...]:
    """What the insert of that number gives the document: no two have the same."""
    return float(number), float(zlib.crc32("/".join(key).encode()) % (1 << 20))


class Writers:
    """Each writes its own ids in both collections, one number higher each time: single inserts, batches, patches and
    deletes in turn. asked, done: of each document, when each of its numbers was asked for, and acknowledged."""

    def __init__(self, client: needle.Client) -> None:
        self._client = client
        self.asked: dict[Key, list[tuple[float, int]]] = {}
        self.done: dict[Key, list[tuple[float, int]]] = {}
        self.kinds: dict[tuple[Key, int], Kind] = {}

    async def begin(self) -> None:
        """Make the collections, and write what stays as it is."""
        for name in COLLECTIONS:
            await self._client.create_collection(name, dimensions=2, metric="l2", if_absent=True, timeout=STILL_SECONDS)
        await self._insert([Key("second", f"still-{n}") for n in range(STILL)], 1, STILL_SECONDS)
        if len(self.done) < STILL:
            raise Violation("restore", "the documents that stay as they are could not be written")

    async def run(self, writer: int) -> None:
        """Until it is cancelled."""
        number = 0
        while True:
            for n in range(IDS):
                key = Key(COLLECTIONS[n % len(COLLECTIONS)], f"w{writer}-{n}")
                number += 1
                match number % 6:
                    case 0 | 3:
                        await self._write([key], number, Kind.DELETE, self._client.delete(
                            [key.id], collection=key.collection, timeout=CALL_SECONDS
                        ))  # fmt: skip
                    case 2 | 5:
                        await self._write([key], number, Kind.PATCH, self._client.patch(
                            key.id, set={"n": number}, collection=key.collection, timeout=CALL_SECONDS
                        ))  # fmt: skip
                    case 4:
                        near = range(n, n + len(COLLECTIONS) * BATCH, len(COLLECTIONS))
                        ids = [Key(key.collection, f"w{writer}-{one % IDS}") for one in near]
                        await self._insert(ids, number, CALL_SECONDS)
                    case _:
                        await self._write([key], number, Kind.INSERT, self._client.insert(
                            key.id, vector_of(key, number), {"n": number}, collection=key.collection,
                            timeout=CALL_SECONDS,
                        ))  # fmt: skip

    async def _insert(self, keys: list[Key], number: int, seconds: float) -> None:
        """A batch of one collection; it is acknowledged as a whole."""
        await self._write(keys, number, Kind.INSERT, self._client.insert_batch(
            ids=[key.id for key in keys], vectors=np.array([vector_of(key, number) for key in keys], np.float32),
            metadatas=[{"n": number}] * len(keys), collection=keys[0].collection, timeout=seconds,
        ))  # fmt: skip

    async def _write(self, keys: list[Key], number: int, kind: Kind, call: Awaitable[object]) -> None:
        for key in keys:
            self.kinds[key, number] = kind
            self.asked.setdefault(key, []).append((time.time(), number))
        with contextlib.suppress(NeedleError):
            await call
            for key in keys:
                self.done.setdefault(key, []).append((time.time(), number))

    # --- the judge ---------------------------------------------------------------------------------------------------
    def judge(self, what: str, since: float, until: float, found: dict[Key, Found]) -> None:
        """Is this what there may have been at some moment between the two? Each document for itself: two shards are cut
        at moments of their own. Raises Violation."""
        for key, asked in self.asked.items():
            done = self.done.get(key, [])
            before = bisect.bisect_left(done, (since - CLOCK_SECONDS, 0))
            least = done[before - 1][1] if before else 0
            most = max((number for when, number in asked if when < until + CLOCK_SECONDS), default=0)
            may = [number for _, number in asked if least <= number <= most]
            if key in found:
                self._judge_one(what, key, found[key], may)
            elif least and not self._may_be_gone(key, least, most):
                raise Violation("restore", f"{what}: {key} is missing, and was {least} to {most}")
        if strange := set(found) - set(self.asked):
            raise Violation("restore", f"{what}: nobody wrote {sorted(strange)[:3]}")

    def _may_be_gone(self, key: Key, least: int, most: int) -> bool:
        """There was a delete, and no insert is sure to have come behind it."""
        made = [n for _, n in self.done.get(key, ()) if n <= least and self.kinds[key, n] is Kind.INSERT]
        since = made[-1] if made else 0
        return not since or any(
            since < n <= most and self.kinds[key, n] is Kind.DELETE for _, n in self.asked[key]
        )  # fmt: skip

    def _judge_one(self, what: str, key: Key, found: Found, may: list[int]) -> None:
        """A number that it may have, and the vector of the insert that this number goes back to."""
        if found.number not in may or self.kinds[key, found.number] is Kind.DELETE:
            raise Violation("restore", f"{what}: {key} is {found.number}, not one of {may}")
        if self.kinds[key, found.number] is Kind.INSERT:
            inserts = [found.number]
        else:
            last = [n for _, n in self.done.get(key, ()) if n < found.number and self.kinds[key, n] is not Kind.PATCH]
            inserts = [
                n for _, n in self.asked[key]
                if (last[-1] if last else 0) <= n < found.number and self.kinds[key, n] is Kind.INSERT
            ]  # fmt: skip
        if found.vector not in [vector_of(key, number) for number in inserts]:
            raise Violation(
                "restore",
                f"{what}: {key} is {found.number} with vector {found.vector}, not the one of an insert of {inserts}",
            )


def _once(what: str, rows: Iterable[tuple[Key, Found]]) -> dict[Key, Found]:
    """Raises Violation if a document is there twice."""
    found: dict[Key, Found] = {}
    for key, one in rows:
        if key in found:
            raise Violation("restore", f"{what}: {key} is there twice")
        found[key] = one
    return found


def held(store: Store, backup: str) -> dict[Key, Found]:
    """The documents in a backup. Raises Violation if one is there twice."""

    def rows() -> Iterable[tuple[Key, Found]]:
        for collection in read_manifest(store, backup).collections:
            for ref in collection.pieces:
                piece = read_piece(store, ref)
                vectors = np.frombuffer(piece.vectors, "<f4").reshape(-1, collection.spec.dimensions).tolist()
                for id_, metadata, vector in zip(piece.ids, piece.metadata, vectors, strict=True):
                    number = msgspec.json.decode(metadata, type=dict[str, int])["n"]
                    yield Key(collection.spec.name, id_), Found(number, tuple(vector))

    return _once(backup, rows())


async def served(client: needle.Client) -> dict[Key, Found]:
    """The documents in a running cluster. Raises Violation if one is there twice."""

    async def rows(name: str) -> list[tuple[Key, Found]]:
        scan = client.scan(collection=name, with_vectors=True)
        return [(Key(name, one.id), Found(int(one.metadata["n"]), tuple(one.vector.tolist()))) async for one in scan]

    names = [spec.name for spec in await client.collections()]
    return _once("the cluster", [row for some in await asyncio.gather(*map(rows, names)) for row in some])
