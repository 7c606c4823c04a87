"""Batches of inserts: each shard's part of the rows goes to it, several at a time.

Invariant: a part is all or nothing; after one has failed no other of its shard is begun; one that no longer has one
owner was written by nobody, and is routed again. Of a batch that is meant as a whole nothing is begun before what may
be refused was not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from needle.base.dtypes import DType, VectorForm
from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError, Unavailable
from needle.base.model import WriteResult
from needle.base.sparse import wrong_in
from needle.client.document_calls import BatchPart
from needle.client.meaning import switched
from needle.client.router.batch_plan import DEFAULTS, doubtful, plan_batch
from needle.client.router.by_filter import Write
from needle.client.router.packing import packed, unsayable
from needle.client.router.routes import Scattered, owner_of, said_of
from needle.protocol.commands import Insert, Named, Session
from needle.protocol.named import taken_of
from needle.routing.topology import CollectionInfo, Ownership

BATCHES_IN_FLIGHT = 4
ALL = -1
"""Instead of a shard."""


class Known(NamedTuple):
    """What is known here of a collection, by which its shards may refuse documents. forms: of its named vectors, by
    their names inside the shards. sparse: the fields that are sparse vectors."""

    forms: Mapping[str, VectorForm] = MappingProxyType({})
    sparse: Sequence[str] = ()


NOTHING_KNOWN: Final = Known()


class RowInserts:
    """See the module. ownership: by the newest map. write: to a shard. beside: runs what takes time by the byte."""

    def __init__(
        self,
        ownership: Callable[[], Ownership],
        write: Write,
        beside: Callable[..., Awaitable[Any]],
        part_max: tuple[int, int],
    ) -> None:
        """part_max: bytes and documents of one part."""
        self._ownership = ownership
        self._write = write
        self._beside = beside
        self._part_max = part_max

    async def run(
        self,
        collection: str,
        ids: list[str],
        rows: memoryview,
        metadata: list[bytes],
        timeout: float,
        expires: Sequence[int] = (),
        *,
        whole: bool = False,
        form: VectorForm | None = None,
        named: Sequence[Named] = (),
        known: Known = NOTHING_KNOWN,
    ) -> list[BatchPart]:
        """What became of each part. collection: by its name inside the shards. form: of its vectors, None for float32.
        expires, named: as in `commands.Insert`. whole: without one document the others are no use: doubts come
        first."""
        done, failed = list[BatchPart](), dict[int, NeedleError]()
        try:
            await self._run(done, failed, collection, ids, rows, metadata, timeout, expires, whole, form, named, known)
            return list(done)
        finally:  # an error holds the frames that it passed, which hold these, and with them the rows
            done.clear()
            failed.clear()

    async def _run(
        self,
        done: list[BatchPart],
        failed: dict[int, NeedleError],
        collection: str,
        ids: list[str],
        rows: memoryview,
        metadata: list[bytes],
        timeout: float,
        expires: Sequence[int],
        whole: bool,
        form: VectorForm | None,
        named: Sequence[Named],
        known: Known,
    ) -> None:
        """As `run`. done: what became of parts. failed: the first error of each shard, and of ALL."""
        size, besides = rows.nbytes // max(1, len(ids)), sum(len(one.vectors) // max(1, len(one.rows)) for one in named)
        weight, routed = rows.nbytes + sum(map(len, metadata)), self._ownership()
        plan = await self._beside(weight, plan_batch, routed, ids, metadata, size + besides, *self._part_max)
        done += [BatchPart([at], error) for at, error in plan.homeless.items()]
        first = set[int]()
        if whole:
            first = await self._beside(weight + besides * len(ids), _doubts, ids, rows, metadata, form, named, known)
        if whole and plan.homeless:
            failed[ALL] = next(iter(plan.homeless.values()))
        permits, left = asyncio.Semaphore(BATCHES_IN_FLIGHT), _time_left(timeout)

        async def send(shard: int, part: list[int]) -> None:
            names, data = [ids[at] for at in part], b"".join(rows[at * size : (at + 1) * size] for at in part)
            json, instants = [metadata[at] for at in part], [expires[at] for at in part] if expires else []
            theirs, owner = taken_of(named, part), self._still(routed, shard, names, json)
            async with permits:
                if (before := failed.get(ALL) or failed.get(shard)) is not None:
                    done.append(BatchPart(part, _not_sent(before)))
                    return
                sent = await self._beside(len(data), packed, data, len(names), form)
                insert = partial(_insert, collection, names, sent, json, instants, theirs)
                try:
                    result: WriteResult | NeedleError = await self._write(owner, insert, left())
                except NeedleError as error:
                    result = failed[shard] = error
                except Scattered:  # the map changed and the part no longer has one owner: route it again
                    asked = collection, names, memoryview(data), json, left(), instants
                    again = await self._again(part, *asked, form, theirs)
                    if not isinstance(again, NeedleError):
                        done.extend(again)
                        return
                    result = failed[shard] = again
                    del again
            done.append(BatchPart(part, result))
            del result  # as in run

        parts = [(shard, part) for shard, parts in plan.parts.items() for part in parts]
        if first:
            await asyncio.gather(*(send(*one) for one in parts if not first.isdisjoint(one[1])))
            for shard in [one for one, error in failed.items() if isinstance(error, InvalidArgument)][:1]:
                failed.setdefault(ALL, failed[shard])
            parts = [one for one in parts if first.isdisjoint(one[1])]
        await asyncio.gather(*(send(*one) for one in parts))

    def _still(self, routed: Ownership, shard: int, names: list[str], metadata: list[bytes]) -> Callable[[], int]:
        """The shard, or Scattered if documents have other owners by a newer map than that by which they were routed."""

        def owner() -> int:
            newest = self._ownership()
            if newest is not routed and _owners(newest, names, metadata) != {shard}:
                raise Scattered
            return shard

        return owner

    async def _again(self, part: list[int], *asked: Any) -> list[BatchPart] | NeedleError:
        """Write the rows of a part by a newer map. asked: as for `run`, the form and the named ones. An error: its
        alias means something else now."""
        try:
            *rest, form, named = asked
            done = await self.run(*rest, form=form, named=named)
        except NeedleError as error:
            return error
        return [BatchPart([part[at] for at in some.rows], some.outcome) for some in done]


def _time_left(timeout: float) -> Callable[[], float]:
    """Seconds until the timeout, never none."""
    deadline = (loop := asyncio.get_running_loop()).time() + timeout
    return lambda: max(0.001, deadline - loop.time())


def _insert(
    collection: str,
    names: list[str],
    rows: tuple[bytes, DType],
    metadata: list[bytes],
    expires: list[int],
    named: list[Named],
    by: Session,
) -> Insert:
    return Insert(collection, names, rows[0], metadata, None, by, b"", expires, dtype=rows[1], named=named)


def _doubts(
    ids: list[str],
    rows: memoryview,
    metadata: list[bytes],
    form: VectorForm | None,
    named: Sequence[Named],
    known: Known,
) -> set[int]:
    """Places of documents that a shard may refuse."""
    found = doubtful(ids, rows, metadata, DEFAULTS) | set(unsayable(rows, len(ids), form))
    for one in named:
        if (of := known.forms.get(one.vector)) is not None:
            found.update(one.rows[at] for at in _named_doubts(memoryview(one.vectors), len(one.rows), of))
    if known.sparse:
        found.update(at for at, json in enumerate(metadata) if _is_wrong(json, known.sparse))
    return found


def _is_wrong(metadata: bytes, sparse: Sequence[str]) -> bool:
    try:
        return wrong_in(metadata, sparse) is not None
    except InvalidArgument:
        return True


def _named_doubts(rows: memoryview, count: int, form: VectorForm) -> set[int]:
    if form.rows_given(rows, count) is None:
        return {0}  # all of them are refused, with the first
    return doubtful([""] * count, rows, (), DEFAULTS) | set(unsayable(rows, count, form))


def _owners(owned: Ownership, names: Sequence[str], metadata: Sequence[bytes]) -> set[int]:
    return {owner_of(owned, *one) for one in zip(names, metadata, strict=True)}


def in_callers_words(parts: list[BatchPart], info: CollectionInfo | None) -> list[BatchPart]:
    """What became of a batch's parts, in the order of their rows. info: of the collection that the caller means by now,
    if there is one. Raises what says of all of them that the batch has another place."""
    if info is not None:
        for part in parts:
            if isinstance(part.outcome, NeedleError):
                said_of(part.outcome, info)
    gone = [part.outcome for part in parts if isinstance(part.outcome, CollectionNotFound)]
    if gone and len(gone) == len(parts):
        raise gone[0]
    elsewhere = [part.outcome for part in parts if switched(part.outcome)]
    if len(elsewhere) == len(parts) and isinstance(elsewhere[0], NeedleError):
        raise elsewhere[0]
    return sorted(parts, key=lambda part: part.rows[0])


def _not_sent(failure: NeedleError) -> NeedleError:
    """What became of a part of a batch after another one of its shard failed."""
    if isinstance(failure, CollectionNotFound) or switched(failure):
        return failure  # none of them has a place; the batch is tried again as a whole
    return Unavailable(f"not sent, and so not written: another part of the batch failed: {failure.message}")
