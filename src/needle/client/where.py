"""One change of the documents that a filter chooses, as it is cut into parts of bounded size (commands.ChangeWhere).

Invariant: no document is changed twice. What a shard refused, because ranges of keys moved, is begun again everywhere
only if that cannot change anything twice: nothing is done yet, or documents are deleted. Pure: asks nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from needle.base.errors import NeedleError, OutcomeUnknown
from needle.base.model import WriteResult
from needle.protocol.commands import ChangeWhere, Session

MakePart = Callable[[str, Session, int], ChangeWhere]
"""(collection, session, fingerprint of the shard's ranges) -> what the shard has to execute."""


class WhereWork:
    """Such a change under way. moved: a shard has refused a part. collection: its name inside the shards."""

    def __init__(self, command: ChangeWhere) -> None:
        self._command = command
        self._ids: list[str] = []
        self._count = self._version = self._index = 0
        self.moved = False
        self.collection = ""

    async def run(self, write: Callable[[MakePart], Awaitable[WriteResult]]) -> None:
        """All parts of one shard. Raises the error of a part, which tells what was done before."""
        after = upto = -1
        while True:

            def make(
                collection: str, session: Session, owned: int, after: int = after, upto: int = upto
            ) -> ChangeWhere:
                return msgspec.structs.replace(
                    self._command, collection=collection, session=session, owned=owned, after=after, upto=upto
                )

            try:
                result = await write(make)
            except NeedleError as error:
                raise self.broken_off(error) from error
            self._count += result.count
            self._ids += result.ids
            self._version, self._index = max(self._version, result.version), max(self._index, result.index)
            if result.reached < 0:
                return
            after, upto = result.reached, result.upto

    def broken_off(self, error: NeedleError) -> NeedleError:
        """An error with what was done before it. Where that is something, nobody may take it for nothing."""
        if self._count and error.retryable:
            error = OutcomeUnknown(
                f"{self._count} documents are changed, others not: {error.message}; it may be called again"
            )
        error.details["documents_changed"] = self._count
        return error

    @property
    def may_begin_again(self) -> bool:
        return self._command.change is None or not self._count

    def begin_again(self) -> None:
        """In all shards, as the newest map has them."""
        self.moved = False

    def result(self) -> WriteResult:
        """What was done in all. Raises OutcomeUnknown if ranges moved meanwhile and it could not begin again."""
        if self.moved:
            raise self.broken_off(OutcomeUnknown(
                f"ranges of keys moved to other shards meanwhile: {self._count} documents are changed, others perhaps "
                "not; it may be called again"
            ))  # fmt: skip
        return WriteResult(
            version=self._version, index=self._index, existed=self._count > 0, count=self._count, ids=self._ids
        )
