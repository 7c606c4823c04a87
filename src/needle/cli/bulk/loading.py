"""A bulk load from beginning to end: what is asked of the cluster, what workers do, and what is handed in.

Invariant: each step may be broken off and the command run again. What is made for another map than that of now is made
again, unless a shard took its part already: then the collection has to be dropped, for parts of two maps may overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec

from needle.base.config import Limits
from needle.base.errors import CollectionNotFound, InvalidArgument, Unavailable
from needle.base.model import CollectionSpec, Metric
from needle.catalog.collections import check_alias
from needle.cli.bulk.building import build, may_build
from needle.cli.bulk.engines import Engine
from needle.cli.bulk.handing import begin, hand_in, judged_by, reading
from needle.cli.bulk.job import Job, ShardFiles, ShardJob, Work
from needle.cli.bulk.partitioning import METADATA_BYTES_MAX, check_distinct, needs_another, partition
from needle.cli.bulk.pieces import Piece
from needle.client import Client
from needle.client.values import check_name
from needle.protocol.bulk_calls import BulkBeginAnswer
from needle.protocol.upkeep_commands import LoadRows
from needle.protocol.versioned import check_known
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
    """What a caller wants. metric: of a collection that is made; None: cosine. alias: that is to lead to it at the end,
    by whoever asks: looked at before anything is made, for it may be taken."""

    collection: str
    pieces: list[Piece]
    dimensions: int
    metric: Metric | None
    directory: str
    timeout: float
    alias: str | None = None


async def load(client: Client, asked: Asked, engine: Callable[[], Engine], progress: Progress) -> Loaded:
    """Load all of it. Raises what the cluster refuses, InvalidArgument for what the source has."""
    info, now = await _found(client, asked)
    begun = {} if info is None else await begun_of(client, info, now, asked.timeout)
    limits = await _limits(client, now, asked.timeout)
    work, workers = Work(asked.directory), await asyncio.to_thread(engine)
    useless = False
    try:
        if info is None:  # what is refused of the source leaves no collection behind
            await asyncio.to_thread(_divide, _draft(asked, now, limits), work, workers, progress)
            info, now = await _made(client, asked)
            begun = await begun_of(client, info, now, asked.timeout)
        job = job_of(info, now, begun, asked.pieces, limits)
        files = await asyncio.to_thread(_make, job, work, workers, progress)
    except InvalidArgument as error:
        useless = needs_another(error)
        raise
    finally:
        await asyncio.to_thread(workers.close)
        if useless:  # now that no worker makes files any more
            await asyncio.to_thread(work.end)
    made = {one.shard: one.checksum for one in files}
    others = [shard for shard, said in begun.items() if said.loaded and said.loaded != made.get(shard)]
    if others:
        raise _other_load(asked.collection, others)
    return await _hand_in(client, job, work, files, asked.timeout, progress)


def _other_load(collection: str, shards: Iterable[int]) -> InvalidArgument:
    return InvalidArgument(
        f"shards {', '.join(map(str, shards))} took their part of a load that was made for another map or source. If "
        "that load ended, its documents are all there, and nothing is left to do; if it broke off, drop collection "
        f"{collection}, and begin again",
        field="collection",
    )


async def _found(client: Client, asked: Asked) -> tuple[CollectionInfo | None, Topology]:
    """The collection, if it is there already. Raises what is refused of it, or of the alias, and ClusterTooOld while
    nodes of a release before are there."""
    now = await client._shards.confirmed(asked.timeout)
    check_known(LoadRows(0, 1, 0, "", 0), now)
    if asked.alias is not None:
        check_alias(now, check_name(asked.alias, "alias"), asked.collection, made_later=True)
    info = now.collection(check_name(asked.collection))
    if info is not None:
        metric = asked.metric or info.spec.metric
        if asked.dimensions not in info.spec.form.lengths or info.spec.metric != metric:
            raise InvalidArgument(
                f"collection {asked.collection} has {info.spec.dimensions} dimensions and metric {info.spec.metric}, "
                f"the source {asked.dimensions} and {metric}",
                field="collection",
            )
    return info, now


async def _made(client: Client, asked: Asked) -> tuple[CollectionInfo, Topology]:
    """Make the collection; somebody else may have made it meanwhile."""
    metric, name = asked.metric or Metric.COSINE, asked.collection
    await client.create_collection(
        name, dimensions=asked.dimensions, metric=metric, if_absent=True, timeout=asked.timeout
    )
    info, now = await _found(client, asked)
    if info is None:
        raise CollectionNotFound(f"there is no collection {name!r} any more", collection=name)
    return info, now


async def _limits(client: Client, now: Topology, timeout: float) -> Limits:
    """By which documents are judged: what the leaders of all shards will do, before a worker begins."""
    said = await asyncio.gather(*(judged_by(client, one.shard, timeout) for one in now.serving))
    ids, metadata = (one.id_bytes_max for one in said), (one.metadata_bytes_max for one in said)
    return Limits(id_bytes_max=min(ids), metadata_bytes_max=min(*metadata, METADATA_BYTES_MAX))


def _draft(asked: Asked, now: Topology, limits: Limits) -> Job:
    """What the source can be divided for, before there is a collection."""
    _check_still(now)
    assert now.map is not None
    spec = CollectionSpec(name="", dimensions=asked.dimensions, metric=asked.metric or Metric.COSINE)
    return Job("", spec, now.map, [], asked.pieces, indexes=False, limits=limits)


def _check_still(now: Topology) -> None:
    if now.moves:
        raise Unavailable("key ranges are moving: wait until `needle rebalance --status` says that it is over")


async def begun_of(client: Client, info: CollectionInfo, now: Topology, timeout: float) -> dict[int, BulkBeginAnswer]:
    """What each shard says. Raises Unavailable while ranges move, InvalidArgument if it was written to."""
    _check_still(now)
    shards = [one.shard for one in now.serving]
    said = await asyncio.gather(*(begin(client, shard, info.stored_name, timeout) for shard in shards))
    begun = dict(zip(shards, said, strict=True))
    loaded = [shard for shard, one in begun.items() if one.loaded]
    for shard, one in begun.items():
        if one.written and not one.loaded:
            if loaded:  # what is there may have come with a range of keys, from a shard that took its part
                raise _other_load(info.spec.name, loaded)
            raise InvalidArgument(
                f"collection {info.spec.name} was written to in shard {shard} ({one.documents} documents): a bulk load "
                "is for a collection that never was; load into a new one, and have an alias lead to it",
                field="collection",
            )
    return begun


def job_of(
    info: CollectionInfo,
    now: Topology,
    begun: dict[int, BulkBeginAnswer],
    pieces: list[Piece],
    limits: Limits | None = None,
) -> Job:
    """What workers have to know. limits: of the cluster; None: those that nodes have by default."""
    assert now.map is not None
    spec = next(iter(begun.values())).spec
    shards = [
        ShardJob(shard, one.collection_id, one.generation, one.owned, one.rows_max)
        for shard, one in sorted(begun.items())
    ]
    bounds = limits or Limits()
    return Job(info.stored_name, spec, now.map, shards, pieces, may_build(spec), bounds, sparse=info.sparse)


def _divide(job: Job, work: Work, workers: Engine, progress: Progress) -> None:
    """Raises InvalidArgument for whatever is refused of the source."""
    work.begin(job)
    root, found, count = str(work.root), set[str](), len(job.pieces)
    lean = msgspec.structs.replace(job, pieces=[])
    tasks = [(lean, number, piece, root) for number, piece in enumerate(job.pieces)]
    for at, parts in enumerate(workers.map(partition, tasks)):
        found |= parts.keys()
        progress("divided", at + 1, count)
    for _ in workers.map(check_distinct, [(count, int(shard), root) for shard in sorted(found)]):
        pass


def _make(job: Job, work: Work, workers: Engine, progress: Progress) -> list[ShardFiles]:
    _divide(job, work, workers, progress)
    made: list[ShardFiles] = []
    tasks = [(job, one.shard, str(work.root)) for one in job.shards]
    for at, one in enumerate(workers.map(build, tasks)):
        progress("built", at + 1, len(tasks))
        if one is not None:
            made.append(one)
    return made


async def _hand_in(
    client: Client, job: Job, work: Work, files: list[ShardFiles], timeout: float, progress: Progress
) -> Loaded:
    total = sum(sum((work.shard(one.shard) / name).stat().st_size for name in one.names) for one in files)
    at_once, by_shard = asyncio.Semaphore(SHARDS_AT_ONCE), {one.shard: one for one in job.shards}
    sent = loaded = 0

    def told(size: int) -> None:
        nonlocal sent
        sent += size
        progress("sent", sent, total)

    async def one_shard(one: ShardFiles) -> tuple[int, int, dict[str, str]]:
        nonlocal loaded
        async with at_once:
            read = reading(work.shard(one.shard))
            done = await hand_in(client, job.stored, by_shard[one.shard], one, read, timeout, told)
            loaded += 1
            progress("loaded", loaded, len(files))
            return one.rows, done.log, done.lacking

    progress("sent", 0, total)
    progress("loaded", 0, len(files))
    done = await asyncio.gather(*map(one_shard, files))
    progress("sent", total, total)  # nothing was, if all of it was there
    lacking = {address: why for _, _, some in done for address, why in some.items()}
    return Loaded(sum(rows for rows, _, _ in done), len(done), sent, sum(log for _, log, _ in done), total, lacking)
