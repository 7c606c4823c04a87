"""One change of the documents that a filter chooses, as it is cut into parts of bounded size (commands.ChangeWhere).

Invariants: of each range of keys one shard judges each document at most once. What a shard refused before it did
anything is asked of those that own the ranges now; what moved after a part was done ends the change, which says so.
When it breaks off, it says so once nothing of it is under way, and never that nothing happened if something may have.
Pure: asks nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError, OutcomeUnknown, invalid
from needle.base.model import WriteResult
from needle.protocol.commands import ChangeWhere, Session
from needle.routing.shard_map import KeyRange

MakePart = Callable[[str, Session, int, Sequence[KeyRange]], ChangeWhere]
"""(collection, session, owned, within) -> what the shard has to execute."""


OnProgress = Callable[[int], None]
"""Told how many documents are changed so far, after each part."""
CHANGED: Final = "documents_changed"
TOLD_BYTES_MAX: Final = 48 << 20
"""Of the ids that a node holds for one caller, and its answer has."""
ID_BYTES: Final = 64
"""What each takes besides."""


class Moved(Exception):
    """The shard no longer owns all the ranges that it is asked about, and did nothing."""


class WhereWork:
    """Such a change under way. left: ranges of keys of which nothing is done. failed: a part was not done, or perhaps:
    no other one is begun."""

    def __init__(self, command: ChangeWhere, progress: OnProgress | None = None, told_bytes_max: int = 0) -> None:
        """told_bytes_max: of the ids of what was changed; 0 for any."""
        self._command = command
        self._progress = progress
        self._ids: list[str] = []
        self._count = self._version = self._index = self._told_bytes = 0
        self._told_bytes_max = told_bytes_max
        self._collection = ""
        self._failures: list[NeedleError] = []
        self.left: list[KeyRange] = []

    @property
    def failed(self) -> bool:
        return bool(self._failures)

    def begin(self, collection: str) -> None:
        """In a collection, by its name inside the shards. Once a call has ended because the collection is gone, or its
        alias leads elsewhere, it may begin again. Raises OutcomeUnknown if something was done in another one."""
        if self._count and collection != self._collection:
            raise OutcomeUnknown(
                f"{self._count} documents are changed in the collection that the name meant before, others perhaps not",
                **{CHANGED: self._count},
            )
        self._collection = collection
        self._failures, self.left = [], []

    def fail(self, error: NeedleError) -> None:
        """A part was not begun, and none is any more."""
        self._failures.append(error)

    async def run(self, write: Callable[[MakePart], Awaitable[WriteResult]]) -> None:
        """All parts of some ranges of one shard, or those until any shard fails; `result` tells. Raises Moved."""
        after = upto = -1
        while not self._failures:

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
                self._failures.append(OutcomeUnknown("ranges of keys moved to other shards meanwhile"))
                return
            except NeedleError as error:
                self._failures.append(error)
                return
            self._count += result.count
            self._ids += result.ids
            self._version, self._index = max(self._version, result.version), max(self._index, result.index)
            self._tell()
            self._weigh(result.ids)
            if result.reached < 0:
                return
            after, upto = result.reached, result.upto

    def _weigh(self, ids: Sequence[str]) -> None:
        self._told_bytes += sum(len(id_.encode()) + ID_BYTES for id_ in ids)
        if self._told_bytes > self._told_bytes_max > 0:
            allowed = "false, or a filter that matches fewer documents: their ids are too many for one answer"
            self._failures.append(invalid("return_ids", True, allowed))

    def _tell(self) -> None:
        """Who asked hears of it. What that raises ends the change; who asked hears of what was done by then, too."""
        if self._progress is None:
            return
        try:
            self._progress(self._count)
        except Exception as error:  # noqa: BLE001  # whatever it is, the parts that run must be waited for
            self._failures.append(InvalidArgument(f"on_progress raised {error!r}", field="on_progress"))

    def result(self) -> WriteResult:
        """What was done in all, once no part is under way. Raises what to say when not all is done;
        details["documents_changed"] tells what is known to be. CollectionNotFound: it may begin again."""
        if self._failures:
            raise self._failure()
        return WriteResult(
            version=self._version, index=self._index, existed=self._count > 0, count=self._count, ids=self._ids
        )

    def _failure(self) -> NeedleError:
        """ "Nothing happened" only if it is true of all shards."""
        failures = self._failures
        unknown = [error for error in failures if isinstance(error, OutcomeUnknown)]
        gone = [error for error in failures if isinstance(error, CollectionNotFound)]
        final = [error for error in failures if not error.retryable]
        first = (unknown or gone or final or failures)[0]
        changed = self._count + sum(map(_told, failures))
        if changed or unknown:
            change = self._command.change
            again = "it may be called again"
            if change is not None and change.append:
                again = "called again, it appends once more to those that are changed"
            first = OutcomeUnknown(f"{changed} documents are changed, others perhaps not; {again}: {first.message}")
        first.details[CHANGED] = changed
        return first


def _told(error: NeedleError) -> int:
    """How many documents a node that routes had changed when it broke off."""
    changed = error.details.get(CHANGED, 0)
    return changed if isinstance(changed, int) else 0
