"""One change of the documents that a filter chooses, as it is cut into parts of bounded size (commands.ChangeWhere).

Invariant: of each range of keys one shard judges each document at most once. What a shard refused before it did
anything is asked of those that own the ranges now; what moved after a part was done ends the change, which says so.
Pure: asks nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from needle.base.errors import CollectionNotFound, NeedleError, OutcomeUnknown
from needle.base.model import WriteResult
from needle.protocol.commands import ChangeWhere, Session
from needle.routing.shard_map import KeyRange

MakePart = Callable[[str, Session, int, Sequence[KeyRange]], ChangeWhere]
"""(collection, session, owned, within) -> what the shard has to execute."""


class Moved(Exception):
    """The shard no longer owns all the ranges that it is asked about, and did nothing."""


class WhereWork:
    """Such a change under way. left: ranges of keys of which nothing is done."""

    def __init__(self, command: ChangeWhere) -> None:
        self._command = command
        self._ids: list[str] = []
        self._count = self._version = self._index = 0
        self._collection = ""
        self._parts = 0
        self.left: list[KeyRange] = []

    def begin(self, collection: str) -> None:
        """In a collection, by its name inside the shards. Raises OutcomeUnknown if parts were done in another one."""
        if self._parts:
            raise self.broken_off(OutcomeUnknown("its collection was dropped meanwhile"))
        self._collection = collection

    async def run(self, write: Callable[[MakePart], Awaitable[WriteResult]]) -> None:
        """All parts of some ranges of one shard. Raises Moved, or the error of a part, which tells what was done."""
        after = upto = -1
        while True:

            def make(
                collection: str,
                session: Session,
                owned: int,
                within: Sequence[KeyRange],
                after: int = after,
                upto: int = upto,
            ) -> ChangeWhere:
                return msgspec.structs.replace(
                    self._command,
                    collection=collection,
                    session=session,
                    owned=owned,
                    within=list(within),
                    after=after,
                    upto=upto,
                )

            try:
                result = await write(make)
            except Moved:
                if after < 0:
                    raise
                raise self.broken_off(OutcomeUnknown("ranges of keys moved to other shards meanwhile")) from None
            except CollectionNotFound as error:
                if not self._parts:
                    raise
                raise self.broken_off(OutcomeUnknown(error.message)) from error
            except NeedleError as error:
                raise self.broken_off(error) from error
            self._parts += 1
            self._count += result.count
            self._ids += result.ids
            self._version, self._index = max(self._version, result.version), max(self._index, result.index)
            if result.reached < 0:
                return
            after, upto = result.reached, result.upto

    def broken_off(self, error: NeedleError) -> NeedleError:
        """An error with what was done before it; where that is something, nobody may take it for nothing."""
        if self._parts and (error.retryable or isinstance(error, OutcomeUnknown)):
            error = OutcomeUnknown(
                f"{self._count} documents are changed, others perhaps not; it may be called again: {error.message}"
            )
        error.details["documents_changed"] = self._count
        return error

    def result(self) -> WriteResult:
        """What was done in all."""
        return WriteResult(
            version=self._version, index=self._index, existed=self._count > 0, count=self._count, ids=self._ids
        )
