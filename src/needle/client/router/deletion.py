"""One delete or change of many documents as it is spread over shards: what each shard has to do, and what is left.

Invariant: each document (under a custom strategy, where an id does not tell the shard: each pair of id and routing key)
is deleted once. What a shard has done, or may have done, is never asked of another one; only what a shard refused,
which has no effect, is spread again by the newer map. Pure: asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError, OutcomeUnknown
from needle.base.model import WriteResult
from needle.client.router.merge import by_owner
from needle.protocol.commands import Command, Session, Spread, UpdateVectors
from needle.routing.ranges import intersection
from needle.routing.shard_map import KeyRange
from needle.routing.topology import Ownership


class Part(msgspec.Struct, frozen=True):
    """What one shard is asked to do: delete or change these ids, as far as their keys are in these ranges. ranges:
    under a custom strategy only."""

    shard: int
    names: Sequence[str]
    ranges: Sequence[KeyRange] = ()

    def spread(self, owned: Ownership) -> list[Part]:
        """The same work by another map."""
        shard_map = owned.map
        if shard_map.strategy.kind == "custom":
            shares = ((shard, intersection(owned.ranges(shard), self.ranges)) for shard in owned.owners)
            return [Part(shard, self.names, ranges) for shard, ranges in shares if ranges]
        owners = by_owner(shard_map.owners_of(self.names))
        return [Part(shard, [self.names[at] for at in chosen]) for shard, chosen in owners.items()]

    def command(self, owned: Ownership, command: Spread, collection: str, session: Session) -> Command:
        """What the shard has to execute, asked by this map. command: what is to be done, of all documents."""
        by, within = 0, list[KeyRange]()
        if self.ranges and list(self.ranges) == owned.ranges(self.shard):  # as nearly always, and much shorter
            by = owned.fingerprint(self.shard)
        elif self.ranges:
            within = list(self.ranges)
        if isinstance(command, UpdateVectors) and self.names is not command.ids:
            width, place = len(command.vectors) // len(command.ids), {name: at for at, name in enumerate(command.ids)}
            rows = [command.vectors[place[name] * width : (place[name] + 1) * width] for name in self.names]
            command = msgspec.structs.replace(command, vectors=b"".join(rows))
        return msgspec.structs.replace(
            command, collection=collection, ids=list(self.names), session=session, owned=by, within=within
        )


class Deletion:
    """A delete under way. left: the parts that nobody has done."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._collection = ""
        self.left: list[Part] = []
        self._done: list[WriteResult] = []
        self._failures: list[NeedleError] = []

    def begin(self, collection: str, owned: Ownership) -> list[Part]:
        """What to ask now. collection: by its name inside the shards. Raises OutcomeUnknown if parts of it were done in
        another collection, which was dropped."""
        if collection != self._collection:
            if self._changed:
                raise self._unknown("its collection was dropped, and there is another one of that name")
            self._done = []
        if not self._done:
            self._collection = collection
            self.left = self._all(owned)
        parts, self.left, self._failures = self.left, [], []
        return parts

    def _all(self, owned: Ownership) -> list[Part]:
        if owned.map.strategy.kind == "custom":
            return [Part(shard, self._names, owned.ranges(shard)) for shard in owned.owners]
        return Part(-1, self._names).spread(owned)

    @property
    def _changed(self) -> bool:
        """Whether anything was written: a shard that has none of the documents has done its part, and nothing."""
        return any(result.count for result in self._done)

    @property
    def refused(self) -> bool:
        """Whether a shard has said that what it was asked is not allowed."""
        return any(isinstance(error, InvalidArgument) for error in self._failures)

    def done(self, result: WriteResult) -> None:
        """A shard has done a part."""
        self._done.append(result)

    def failed(self, part: Part, error: NeedleError) -> None:
        """A shard has not done a part, or perhaps."""
        self._failures.append(error)
        self.left.append(part)

    def result(self) -> WriteResult:
        """The answer, once every part was asked. Raises what to say when not all is done; CollectionNotFound means that
        `left` may be asked again."""
        if self._failures:
            raise self._failure()
        telling = [result for result in self._done if result.existed] or self._done  # others wrote nothing
        return WriteResult(
            version=max(result.version for result in telling),
            index=max(result.index for result in telling),
            existed=any(result.existed for result in self._done),
            count=sum(result.count for result in self._done),
        )

    def _failure(self) -> NeedleError:
        """What to say of a write whose parts have different fates. "Nothing happened" only if it is true of all."""
        gone = [error for error in self._failures if isinstance(error, CollectionNotFound)]
        if len(gone) == len(self._failures):
            return gone[0]
        if self._changed or any(isinstance(error, OutcomeUnknown) for error in self._failures):
            return self._unknown(self._failures[0].message)
        final = [error for error in self._failures if not error.retryable]
        return (gone or final or self._failures)[0]

    def gone(self, error: CollectionNotFound) -> NeedleError:
        """There is no such collection, as the catalog says."""
        return self._unknown(error.message) if self._changed else error

    def _unknown(self, why: str) -> OutcomeUnknown:
        asked = len(self._done) + max(1, len(self._failures))
        return OutcomeUnknown(f"{len(self._done)} of {asked} shards have done it, others not or perhaps: {why}")
