"""A bulk load from beginning to end: what is asked of the cluster, what workers do, and what is handed in.

Invariant: each step may be broken off and the command run again. What is made for another map than that of now is made
again, unless a shard took its part already: then the collection has to be dropped, for parts of two maps may overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from needle.base.errors import CollectionNotFound, InvalidArgument, Unavailable
from needle.base.model import Metric
from needle.cli.bulk.building import build, may_build
from needle.cli.bulk.engines import Engine
from needle.cli.bulk.handing import begin, hand_in, reading
from needle.cli.bulk.job import Job, ShardFiles, ShardJob, Work
from needle.cli.bulk.partitioning import partition
from needle.cli.bulk.pieces import Piece
from needle.client import Client
from needle.protocol.bulk_calls import BulkBeginAnswer
from needle.routing.topology import CollectionInfo, Topology

SHARDS_AT_ONCE: Final = 4
Progress = Callable[[str, int, int], None]
"""progress(step, done, of how many)."""


class Loaded(NamedTuple):
    """sent, log: bytes over the network, and of the entries. lacking: what replicas could not be reached, and why."""

    documents: int
    shards: int
    sent: int
    log: int
    files: int
    lacking: dict[str, str]


class Asked(NamedTuple):
    """What a caller wants. metric: of a collection that is made; None: cosine."""

    collection: str
    pieces: list[Piece]
    dimensions: int
    metric: Metric | None
    directory: str
    timeout: float


async def load(client: Client, asked: Asked, engine: Callable[[], Engine], progress: Progress) -> Loaded:
    """Load all of it. Raises what the cluster refuses, InvalidArgument for what the source has."""
    info, now = await _collection(client, asked)
    begun = await begun_of(client, info, now, asked.timeout)
    job = job_of(info, now, begun, asked.pieces)
    work = Work(asked.directory)
    work.begin(job)
    files = await asyncio.to_thread(_make, job, work, engine, progress)
    made = {one.shard: one.checksum for one in files}
    others = [shard for shard, said in begun.items() if said.loaded and said.loaded != made.get(shard)]
    if others:
        raise InvalidArgument(
            f"shards {', '.join(map(str, others))} took their part of a load that was made for another map or source: "
            f"drop collection {asked.collection}, and begin again",
            field="collection",
        )
    return await _hand_in(client, job, work, files, asked.timeout, progress)


async def _collection(client: Client, asked: Asked) -> tuple[CollectionInfo, Topology]:
    try:
        there = await client.describe_collection(asked.collection, timeout=asked.timeout)
        metric = there.metric
    except CollectionNotFound:
        metric = asked.metric or Metric.COSINE
        await client.create_collection(
            asked.collection, dimensions=asked.dimensions, metric=metric, if_absent=True, timeout=asked.timeout
        )
    now = await client._shards.confirmed(asked.timeout)
    info = now.collection(asked.collection)
    if info is None:
        raise CollectionNotFound(f"there is no collection {asked.collection!r} (an alias is not enough)")
    if info.spec.dimensions != asked.dimensions or (asked.metric or metric) != metric:
        raise InvalidArgument(
            f"collection {asked.collection} has {info.spec.dimensions} dimensions and metric {metric}, the source "
            f"{asked.dimensions} and {asked.metric or metric}",
            field="collection",
        )
    return info, now


async def begun_of(client: Client, info: CollectionInfo, now: Topology, timeout: float) -> dict[int, BulkBeginAnswer]:
    """What each shard says. Raises Unavailable while ranges move, InvalidArgument if it was written to."""
    if now.moves:
        raise Unavailable("key ranges are moving: wait until `needle rebalance --status` says that it is over")
    shards = [one.shard for one in now.serving]
    said = await asyncio.gather(*(begin(client, shard, info.stored_name, timeout) for shard in shards))
    begun = dict(zip(shards, said, strict=True))
    for shard, one in begun.items():
        if one.written and not one.loaded:
            raise InvalidArgument(
                f"collection {info.spec.name} was written to in shard {shard} ({one.documents} documents): a bulk load "
                "is for a collection that never was; load into a new one, and have an alias lead to it",
                field="collection",
            )
    return begun


def job_of(info: CollectionInfo, now: Topology, begun: dict[int, BulkBeginAnswer], pieces: list[Piece]) -> Job:
    """What workers have to know."""
    assert now.map is not None
    spec = next(iter(begun.values())).spec
    shards = [
        ShardJob(shard, one.collection_id, one.generation, one.owned, one.rows_max)
        for shard, one in sorted(begun.items())
    ]
    return Job(info.stored_name, spec, now.map, shards, pieces, may_build(spec), sparse=info.sparse)


def _make(job: Job, work: Work, engine: Callable[[], Engine], progress: Progress) -> list[ShardFiles]:
    root, workers = str(work.root), engine()
    try:
        numbers = range(len(job.pieces))
        for at, _ in enumerate(workers.map(partition, [(job, number, root) for number in numbers])):
            progress("divided", at + 1, len(job.pieces))
        made: list[ShardFiles] = []
        tasks = [(job, one.shard, root) for one in job.shards]
        for at, one in enumerate(workers.map(build, tasks)):
            progress("built", at + 1, len(tasks))
            if one is not None:
                made.append(one)
        return made
    finally:
        workers.close()


async def _hand_in(
    client: Client, job: Job, work: Work, files: list[ShardFiles], timeout: float, progress: Progress
) -> Loaded:
    total = sum(sum((work.shard(one.shard) / name).stat().st_size for name in one.names) for one in files)
    at_once, sent, by_shard = asyncio.Semaphore(SHARDS_AT_ONCE), 0, {one.shard: one for one in job.shards}

    def told(size: int) -> None:
        nonlocal sent
        sent += size
        progress("sent", sent, total)

    async def one_shard(one: ShardFiles) -> tuple[int, int, dict[str, str]]:
        async with at_once:
            read = reading(work.shard(one.shard))
            done = await hand_in(client, job.stored, by_shard[one.shard], one, read, timeout, told)
            return one.rows, done.log, done.lacking

    done = await asyncio.gather(*map(one_shard, files))
    lacking = {address: why for _, _, some in done for address, why in some.items()}
    return Loaded(sum(rows for rows, _, _ in done), len(done), sent, sum(log for _, log, _ in done), total, lacking)
