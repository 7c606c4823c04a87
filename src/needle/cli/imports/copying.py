"""Documents of a source into a collection, and the comparison of both afterwards.

Invariant: what is in the collection already as the source has it is not written again, so a copy that broke off goes on
when it is started again. A few batches are in memory at once, and 8 bytes of each id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

import needle
from needle.base.errors import InvalidArgument
from needle.base.model import Metric
from needle.cli.document_commands import BATCHES_IN_FLIGHT, by_bytes, insert_all
from needle.cli.imports.comparing import (
    NEIGHBOURS,
    NOTHING,
    SHOWN,
    Digest,
    Ids,
    Nearest,
    Sample,
    agreeing,
    ascending,
    differs,
    distances,
    hashed,
    stored,
)
from needle.cli.imports.source import Source
from needle.cli.inputs import Record


class Target(NamedTuple):
    """A collection of a cluster. timeout: seconds of a call. named: the metrics of its named vectors."""

    client: needle.Client
    collection: str
    metric: Metric
    timeout: float
    named: Mapping[str, Metric] = NOTHING


class Copied(NamedTuple):
    """Documents. replaced: of those that were written, which took the place of another version that was in the
    collection: somebody changed it since it was copied, or it never came from this source."""

    written: int
    there: int
    replaced: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the comparison found. source, target: documents; other: that only the collection has. neighbours: the mean
    share that agrees, of the sample. differences: in words; none if both are equal."""

    source: int
    target: int
    other: int
    source_digest: str
    target_digest: str
    sample: int
    neighbours: float
    differences: list[str]


async def batches_of(source: Source) -> AsyncIterator[list[Record]]:
    """A source's documents, read in a thread, in batches that make small entries of a log."""
    parts, none = by_bytes(source.batches()), list[Record]()
    while records := await asyncio.to_thread(next, parts, none):
        yield records


async def copy(source: Source, to: Target, *, check: bool, done: Callable[[int], None]) -> Copied:
    """Insert what is not there yet as the source has it. check: whether any can be there. done: told how many more are
    settled."""
    there = replaced = 0

    async def missing() -> AsyncIterator[list[Record]]:
        nonlocal there, replaced
        async for records in batches_of(source):
            wanted = records
            if check:
                held = await _held(to, records)
                wanted = [one for one in records if differs(one, held.get(one.id), to.metric, to.named)]
                there += len(records) - len(wanted)
                replaced += len(held.keys() & {one.id for one in wanted})
                done(len(records) - len(wanted))
            if wanted:
                yield wanted

    return Copied(await insert_all(to.client, missing(), to.collection, to.timeout, done), there, replaced)


async def check_no_others(source: Source, to: Target, done: Callable[[int], None]) -> None:
    """Raises InvalidArgument if the collection has documents under ids that the source has not: no run of this import
    wrote them. It reads the source once, and of the collection the ids, unless its number of documents tells. done:
    told how many more of the source were looked at."""
    ids, held = Ids(), Ids()
    async for records in batches_of(source):
        for record in records:
            ids.add(record.id)
        done(len(records))
    different = await asyncio.to_thread(ids.different)
    count = await to.client.count(collection=to.collection, timeout=to.timeout)
    if count > different:
        raise _others(to.collection, f"{count} documents, and the source {different} ids")
    async with aclosing(to.client.scan(fields=[], collection=to.collection, timeout=to.timeout)) as scan:
        async for document in scan:
            held.add(document.id)
    others = await asyncio.to_thread(held.without, ids)
    if others:
        text = f"{len(others)} documents under ids that the source does not have"
        raise _others(to.collection, f"{text}{await _example(to, others)}")


def _others(collection: str, holds: str) -> InvalidArgument:
    return InvalidArgument(
        f"collection {collection} holds {holds}: it has other documents than those of this source, and nothing was "
        "written. Import into another collection, or with --add, which lets it hold both",
        field="collection",
    )


async def _example(to: Target, others: set[int]) -> str:
    """The first of these documents, unless it was deleted meanwhile."""
    async with aclosing(to.client.scan(fields=[], collection=to.collection, timeout=to.timeout)) as scan:
        async for document in scan:
            if hashed(document.id) in others:
                return f", such as {document.id!r}"
    return ""


async def compare(source: Source, to: Target, *, add: bool, done: Callable[[int], None]) -> Report:
    """Read both again. add: the collection may hold other documents, too."""
    sample, ids = Sample(), Ids()
    of_source, of_target, wrong = Digest(), Digest(), list[str]()
    differing = missing = 0

    async def settle(records: list[Record]) -> None:
        nonlocal differing, missing
        held = await _held(to, records)
        for record in records:
            found, kept = held.get(record.id), stored(record.vector, to.metric)
            problem = differs(record, found, to.metric, to.named)
            named = {name: stored(one, to.named.get(name, to.metric)) for name, one in record.named.items()}
            of_source.add(record.id, kept, record.metadata, named)
            sample.add(record)
            ids.add(record.id)
            missing += found is None
            if found is not None:
                same = problem is None  # up to how a vector's last bits were rounded on that machine
                others = named if same else {one: v for one, v in (found.vectors or {}).items() if one in named}
                of_target.add(found.id, kept if same else np.asarray(found.vector), found.metadata, others)
            if problem is not None:
                differing += 1
                wrong.extend([f"{record.id!r} {problem}"] if len(wrong) < SHOWN else [])
        done(len(records))

    await _in_parallel(batches_of(source), settle)
    count = await to.client.count(collection=to.collection, timeout=to.timeout)
    different = await asyncio.to_thread(ids.different)
    differences = list[str]()
    if differing:
        differences.append(f"{differing} documents differ: {'; '.join(wrong)}")
    if different < of_source.count:
        differences.append(f"several of the source have one id: {of_source.count} documents, {different} ids")
    if count < different or (count > different and not add):
        text = "some are missing" if count < different else "there are others in it (--add: they may be)"
        differences.append(f"the source has {different} ids and the collection {count}: {text}")
    alike = count == different == of_source.count and not differing
    share, queries = await _neighbours(source, to, sample.vectors()) if alike else (1.0, 0)
    if share < 1.0:
        differences.append(f"the nearest neighbours of {queries} documents agree by {share:.3f} only")
    return Report(
        source=of_source.count,
        target=of_target.count,
        other=max(0, count - different + missing),  # others may write meanwhile
        source_digest=str(of_source),
        target_digest=str(of_target),
        sample=queries,
        neighbours=share,
        differences=differences,
    )


async def _held(to: Target, records: list[Record]) -> dict[str, needle.Document]:
    ids, vectors = {one.id for one in records}, list(to.named) or None
    found = await to.client.get_many(ids, collection=to.collection, vectors=vectors, timeout=to.timeout)
    return {one.id: one for one in found}


async def _in_parallel(batches: AsyncIterator[list[Record]], work: Callable[[list[Record]], Awaitable[None]]) -> None:
    """`work` on every batch, a few at a time."""
    lock = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with lock:
                records = await anext(batches, None)
            if records is None:
                return
            await work(records)

    async with asyncio.TaskGroup() as group:
        for _ in range(BATCHES_IN_FLIGHT):
            group.create_task(worker())


async def _neighbours(source: Source, to: Target, queries: list[NDArray[np.float32]]) -> tuple[float, int]:
    """The mean share of neighbours that agree, and of how many queries."""
    if not queries:
        return 1.0, 0
    own, calculated = await asyncio.to_thread(_own, source, to.metric, queries)
    shares = []
    for at, (query, ids) in enumerate(zip(queries, own, strict=True)):
        hits = await to.client.search(query, NEIGHBOURS, collection=to.collection, exact=True, timeout=to.timeout)
        found = [] if ids is None else await _distances(to, query, ids)
        if (
            calculated is not None
        ):  # the source's own may lack some, but those that it has come in the order of its metric
            found = calculated[at] if ascending(found) else []
        shares.append(agreeing(found, [one.distance for one in hits]))
    return float(np.mean(shares)), len(queries)


async def _distances(to: Target, query: NDArray[np.float32], ids: list[str]) -> list[float]:
    """By the collection's metric, of its documents with these ids, in their order."""
    known = await to.client.get_many(set(ids), collection=to.collection, timeout=to.timeout)
    held = {one.id: one.vector for one in known}
    vectors = [held[one] for one in ids if one in held]
    return distances(query, np.stack(vectors), to.metric).tolist() if vectors else []


def _own(
    source: Source, metric: Metric, queries: list[NDArray[np.float32]]
) -> tuple[list[list[str] | None], list[list[float]] | None]:
    """What the source finds itself; and, unless that is exact, the distances of the nearest that are in it."""
    found = [source.nearest(query, NEIGHBOURS) for query in queries]
    if source.exact and None not in found:
        return found, None
    nearest = Nearest(queries, metric)
    for records in source.batches():
        nearest.add(records)
    return found, nearest.found()
