"""Whether the documents that a restore wrote are those of the backup: they are read back, and their digest compared.

Invariant: an error says that they differ, or the digest that is returned is of what the cluster has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from needle.backup.around import Around
from needle.backup.format import CollectionBackup, Contents, Piece, PieceRef
from needle.backup.restore_limits import Taking
from needle.backup.scanning import pages
from needle.base.errors import RestoreDiffers, ScanEnded, Unavailable
from needle.client import Client

ATTEMPTS: Final = 10
LASTING_MICROS: Final = 3_600_000_000
"""Documents that expire within an hour may do so while they are compared, so they are left out of that."""


class ReadBack:
    """Of one restore. read: a piece of the backup, blocking. mark: the collection that says that it is under way."""

    def __init__(
        self, client: Client, around: Around, taking: Taking, timeout: float, read: Callable[[PieceRef], Piece],
        mark: str,
    ) -> None:  # fmt: skip
        self._client, self._around, self._taking, self._timeout = client, around, taking, timeout
        self._piece, self._mark = read, mark

    async def digest(self, collection: CollectionBackup) -> str:
        """Of a collection as it is there. Raises RestoreDiffers."""
        name, before = collection.spec.name, self._around.micros()
        lasting = before + LASTING_MICROS if collection.expiring else 0
        expected, documents = collection.digest, collection.documents
        if lasting:
            wanted = Contents(lasting)
            for ref in collection.pieces:
                wanted.add(await self._around.blocking(self._piece, ref))
            expected, documents = wanted.digest, wanted.documents
        found = await self._contents(collection, lasting)
        if lasting and self._around.micros() >= lasting:
            raise RestoreDiffers(f"collection {name} took longer than an hour to compare: run the command again")
        if (found.documents, found.digest) != (documents, expected):
            raise RestoreDiffers(
                f"collection {name} has {found.documents} documents of digest {found.digest}, and the backup has "
                f"{documents} of {expected}: was it written to meanwhile? Drop it and {self._mark}, then restore again",
                collection=name,
            )
        return found.digest

    async def _contents(self, collection: CollectionBackup, lasting: int) -> Contents:
        """By a consistent scan."""
        for attempt in range(ATTEMPTS):
            try:
                return await self._scan(collection, lasting)
            except (ScanEnded, Unavailable):
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError  # the last attempt raises

    async def _scan(self, collection: CollectionBackup, lasting: int) -> Contents:
        found, most = Contents(lasting), self._taking.page_rows(collection.longest)
        async with aclosing(pages(self._client, collection.spec, 0, self._timeout, collection.vectors, most)) as scan:
            async for batch, _ in scan:
                await self._around.blocking(found.add, batch)
        return found
