"""What an archiver puts down of a cluster beside entries and states: what its catalog says, and how far the archive is
(its head). And whether a target is still the one that this was put down at: a disk that is not mounted any more leaves
an empty directory behind, and what was written there would be missing in the archive when the disk is back.

Invariants: the head says of nothing that it is archived before it is; of a record of the catalog none that was written
before it counts at a later instant, also where this machine's clock was put back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec

from needle.backup.archive_format import (
    FORMERS_MAX,
    HEAD,
    TARGET,
    Catalog,
    Head,
    catalog_name,
    directory,
    encode,
    told_of,
)
from needle.backup.archive_reading import bases_of, chunks_of, files_of, read_head, read_target, target_name
from needle.backup.around import Around
from needle.backup.resuming import last_told
from needle.backup.store import Store
from needle.base.errors import CorruptBackup, StorageError
from needle.base.instants import rfc3339
from needle.routing.topology import Topology

Put = Callable[[str, bytes], Awaitable[None]]
NOTHING: Final = Head(shards={}, at=0)


class Notes:
    """Of one archiver and one cluster. target: what it is called. known: the head as it was there last. looked: the
    archiver's clock before the catalog was asked last. strayed: another target was in the place of this one, so that
    nobody knows where what was written last is."""

    def __init__(self, store: Store, put: Put, around: Around, founding: int, known: Head = NOTHING) -> None:
        self._store, self._put, self._around, self._founding = store, put, around, founding
        self._told: object = None
        self._records: list[int] = []
        self.target, self.known = "", known
        self.looked = 0
        self.strayed = False

    async def find_target(self, now: Topology, *, begins: bool) -> None:
        """What the target is called; from now on, if it has no name yet. begins: an archive may begin there, also of a
        cluster that is archived already. Raises StorageError if not: as long as nothing of it is there, its disk may
        not be mounted."""
        if now.archived and not begins and not await self._around.blocking(self._begun, now):
            raise StorageError(
                f"the logs of this cluster are archived, as it was told at {rfc3339(now.archived)}, and nothing of "
                "that is at this target: if its disk is not mounted, mount it, and the archive goes on. To begin "
                "another archive here, start this with --begin; or say `needle backup forget`, if the other is given up"
            )
        made = f"{self._around.rng.getrandbits(64):016x}"
        self.target = await self._around.blocking(target_name, self._store, self._founding, made)

    def _begun(self, now: Topology) -> bool:
        """Whether anything is there of this cluster, or of what it was before it was recovered. Blocking. Nothing else
        is listed: who waits looks each second, and other clusters may have archives of any size beside it."""
        known = (now.founding, *(one.founding for one in now.recovered))
        return any(files_of(self._store, directory(one)) for one in known)

    async def are_there(self) -> bool:
        """Whether the target has what was put down there; if it has less, or was away, `known` is what it has. Raises
        StorageError if it has nothing."""
        found: Head = await self._around.blocking(self._found)
        whole = not self.strayed and await self._around.blocking(self._leads_on, found)
        if not whole:
            self.strayed, self.known = False, found
        return whole

    def _found(self) -> Head:
        """The head as it is there; what is known takes the place of one that is damaged, or lost. Blocking. Raises
        StorageError if the target is not the one that had it."""
        where = directory(self._founding)
        with suppress(CorruptBackup):
            found = read_head(self._store, self._founding)
            if found.shards or not self.known.shards or read_target(self._store, self._founding) == self.target:
                return found if found.shards else self.known
            self.strayed = True
            raise StorageError(
                f"{where}{HEAD} and {where}{TARGET}, which this archiver wrote, are gone from the target: if its disk "
                "is not mounted, mount it, and the archive goes on; if they were deleted on purpose, end this, and "
                "start it with --begin"
            )
        return self.known

    def _leads_on(self, found: Head) -> bool:
        """Whether all is there that is known. (Of two archivers' heads an older one may have been written last.)
        Blocking."""
        return all(
            found.shards.get(shard, (0, 0))[0] >= kept
            or any(span.first <= kept <= span.last for span in chunks_of(self._store, self._founding, shard))
            or any(index == kept for index, _ in bases_of(self._store, self._founding, shard))
            for shard, (kept, _) in self.known.shards.items()
        )

    async def note_catalog(self, at: int, now: Topology) -> None:
        """Put down what it says, if that is new. at: this machine's clock."""
        told = told_of(now)
        if told == self._told:
            return
        if self._told is None:
            last, self._records = await self._around.blocking(last_told, self._store, self._founding)
            if told == last:
                self._told = told
                return
        after = self.looked or (await self._around.blocking(self._found)).at
        topology = msgspec.structs.replace(now, keys=(), rebalance=None)
        await self._note(at, min(after, at), topology)
        for later in [one for one in self._records if one > at and one + 1 not in self._records]:
            await self._note(later + 1, at, topology)  # by a clock that ran ahead: from then on that record would count
        self._told = told

    async def _note(self, at: int, after: int, topology: Topology) -> None:
        formers = [one for one in self._records if one < at]
        former = formers[-1] if formers else 0
        record = Catalog(at=at, after=after, topology=topology, former=former, formers=formers)
        await self._put(catalog_name(self._founding, at), encode(record))
        self._records = sorted({*self._records, at})[-FORMERS_MAX:]

    async def note_head(self, known: dict[int, tuple[int, int]]) -> None:
        """Put down how far shards are archived. Raises StorageError if the target is not the one that had the head."""
        before = await self._around.blocking(self._found)
        shards = before.shards | {
            shard: said for shard, said in known.items() if said[0] >= before.shards.get(shard, said)[0]
        }
        if not {*before.named} <= {*self._records}:  # another archiver has seen the catalog otherwise since
            self._told = None
        self._records = sorted({*self._records, *before.named})[-FORMERS_MAX:]
        head = Head(
            shards=shards, at=max(self.looked, before.at), catalog=max(self._records, default=0), records=self._records
        )
        await self._put(f"{directory(self._founding)}{HEAD}", encode(head))
        self.known = head
