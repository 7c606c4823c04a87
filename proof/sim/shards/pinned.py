"""A client that reads the workload's collection by consistent scans, page by page, while everything changes and moves.

Invariant checked: a scan that comes to its end shows each shard at one index of its log (checkers/pinned.py). It may
end before by ScanEnded, which is no answer. Some scans are left half read: what is kept for them ends by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.base.errors import ClusterTooOld, CollectionNotFound, DiskFull, NeedleError, ScanEnded, StorageError
from needle.client.client import Client
from needle.client.cursor import kept_in
from needle.routing.topology import Topology
from proof.checkers.pinned import NAME, PinnedSeen, check_pinned
from proof.checkers.violation import Violation
from proof.sim.databases import CALL_TIMEOUT
from proof.sim.machine import stream
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage
from proof.sim.workload import COLLECTION

REST_SECONDS = 0.7
TRIES = 30
LEFT_SHARE = 0.04
LOST = "is kept for a scan and not there"
"""What a replica says of itself when a purge did not wait."""


class PinnedReader:
    """See the module. broken: the violation it found. whole, ended: scans that were read to the end, and that ended."""

    def __init__(self, stage: Stage, connect: Callable[[Topology, int], Client], truth: Truth) -> None:
        """connect: makes the n-th client, which knows this topology: a scan is known by what its client draws."""
        self._stage = stage
        self._connect = connect
        self._truth = truth
        self._rng = stream(stage.spec.seed, "pinned scans")
        self._clients = 0
        self._client = self._another()
        self.whole = self.ended = 0
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`."""
        while not self.stopping:
            try:
                await self._scan()
            except ScanEnded:
                self.ended += 1
            except Violation as violation:
                self.broken = self.broken or violation
            await self._rest()
        self._stage.trace.tell(f"consistent scans: {self.whole} read to the end, {self.ended} ended before")

    async def _rest(self) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))

    def _another(self) -> Client:
        self._clients += 1
        return self._connect(self._truth.now, self._clients)

    async def _scan(self) -> None:
        """Pages of any length, with rests between them; a page that fails is asked for again, by any client."""
        before, client, tries = self._truth.last(), self._client, 0
        pins: tuple[tuple[int, int], ...] = ()
        found: list[tuple[str, int, object]] = []
        cursor: str | None = None
        while not self.stopping:
            limit = self._rng.randint(1, 12)
            try:
                page = await client.scan_page(
                    cursor=cursor, limit=limit, consistent=cursor is None, collection=COLLECTION, timeout=CALL_TIMEOUT
                )
            except ScanEnded:
                raise
            except NeedleError as error:
                if LOST in error.message:
                    raise Violation(NAME, f"a version that a scan may see is gone: {error.message}") from error
                passing = isinstance(error, StorageError | DiskFull | CollectionNotFound | ClusterTooOld)
                if not error.retryable and not passing:
                    raise Violation("expected errors", f"a consistent scan: {error!r}: {error}") from error
                tries += 1
                if tries > TRIES:
                    return
                client = self._client = self._another()
                await self._rest()
                continue
            found += [(one.id, one.version, one.metadata) for one in page.documents]
            cursor = page.cursor
            if cursor is None:
                if pins:
                    self.whole += 1
                    seen = PinnedSeen(label=f"scan {self.whole}", pins=pins, before=before, found=found)
                    check_pinned(self._truth.models(), self._truth.logs.owned, self._truth.key, seen)
                return
            pins = kept_in(cursor).pins
            if self._rng.random() < LEFT_SHARE:
                return
            if self._rng.random() < 0.5:
                await self._rest()
