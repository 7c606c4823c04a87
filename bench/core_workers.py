"""A prototype, to be measured only (adr/0121): the graph part of searches, by threads of this process as a node does
it, and by worker processes that map the same index file.

A worker is asked over a socket pair, in 16 bytes; vectors, masks and what was found lie in memory that both share.
Searches are gathered by the node's own SearchBatcher either way, so that what differs is who searches. Run by
`python -m bench cores`, in a process of its own: prints what was measured as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import uvloop

from bench.cluster import Spent
from bench.gil_samples import counted
from bench.load import calls
from bench.vectors import Floats
from needle.base.model import CollectionSpec, HitBatch, SearchRequest
from needle.base.runtime import Done
from needle.shard.plan import PublishedSegment
from needle.shard.search_batcher import SearchBatcher
from needle.shard.segments.growing import GrowingSegment
from needle.shard.segments.scoring import TIES_MAX, Bools
from needle.shard.segments.sealed import SealedSegment
from needle.shard.segments.view import Served, VectorsView
from needle.system import ThreadPool

BATCH_MAX: Final = 16
K: Final = 10
WIDTH: Final = K + TIES_MAX
EQUAL: Final = 20
"""So many searches are compared."""
_CALL = struct.Struct("<IIII")  # vectors, k, ef_search, whether by the mask
_DONE = b"\1"


class Given(NamedTuple):
    """What is searched. mask: (rows,) bool, those that a filter allows. ef: width of a beam."""

    path: str
    segment: PublishedSegment
    spec: CollectionSpec
    queries: Floats
    mask: Bools
    ef: int

    def views(self, mask: Bools) -> tuple[VectorsView, VectorsView]:
        """Of the file, which is verified and mapped: all rows, and those of the mask."""
        sealed, growing = SealedSegment(self.path, self.segment, self.spec), GrowingSegment(self.spec.form)
        whole, some = (VectorsView(self.spec, growing, (Served(sealed, one),)) for one in (None, mask))
        return whole, some


class Turn(NamedTuple):
    """Of one way: searches, seconds by the clock, seconds of processor time of this process' event loop, of its threads
    and of the workers, and milliseconds of it as Shares has them."""

    searches: float
    seconds: float
    loop: float
    threads: float
    workers: float
    loop_held: float
    loop_free: float
    threads_held: float
    threads_free: float


class Block:
    """The memory that this process and one worker share: vectors asked for, and for each the ordinals and distances
    found, and how many they are."""

    def __init__(self, dimensions: int, name: str | None = None) -> None:
        sizes = (4 * BATCH_MAX * dimensions, 8 * BATCH_MAX * WIDTH, 4 * BATCH_MAX * WIDTH, 4 * BATCH_MAX)
        self.memory = SharedMemory(name, create=name is None, size=sum(sizes))
        at = [sum(sizes[:n]) for n in range(len(sizes))]
        inside = self.memory.buf
        self.vectors = np.ndarray((BATCH_MAX, dimensions), np.float32, inside, at[0])
        self.ordinals = np.ndarray((BATCH_MAX, WIDTH), np.int64, inside, at[1])
        self.distances = np.ndarray((BATCH_MAX, WIDTH), np.float32, inside, at[2])
        self.counts = np.ndarray((BATCH_MAX,), np.int32, inside, at[3])


def serve(given: Given, name: str, mask: str, own: socket.socket) -> None:
    """A worker, until its socket is closed. name, mask: of shared memory."""
    block, shared = Block(given.spec.dimensions, name), SharedMemory(mask)
    views = given.views(np.ndarray((given.segment.rows,), np.bool_, shared.buf))
    own.sendall(_DONE)
    while data := own.recv(_CALL.size):
        count, k, ef, masked = _CALL.unpack(data)
        for at, (ordinals, distances) in enumerate(views[masked].nearest(block.vectors[:count], k, ef_search=ef)):
            size = block.counts[at] = len(ordinals)
            block.ordinals[at, :size], block.distances[at, :size] = ordinals, distances
        own.sendall(_DONE)


class Workers:
    """Processes that search; takes calls as a thread pool of a node does (`joined_calls.Calls`), but sends what is
    asked instead of calling a function. As many calls at once as there are workers."""

    def __init__(self, given: Given, count: int) -> None:
        self._mask = SharedMemory(create=True, size=given.mask.nbytes)
        np.ndarray(given.mask.shape, np.bool_, self._mask.buf)[:] = given.mask
        self._blocks: list[Block] = []
        self._sockets: list[socket.socket] = []
        self._idle: list[int] = []
        self._running: dict[int, tuple[Done, int]] = {}
        self.processes: list[Any] = []
        context, given = multiprocessing.get_context("spawn"), given._replace(queries=given.queries[:0])
        for n in range(count):
            block, (own, other) = Block(given.spec.dimensions), socket.socketpair()
            process = context.Process(
                target=serve, args=(given, block.memory.name, self._mask.name, other), daemon=True
            )
            process.start()
            other.close()
            own.recv(1)
            self._blocks.append(block)
            self._sockets.append(own)
            self._idle.append(n)
            self.processes.append(process)

    def listen(self) -> None:
        """Once a loop runs."""
        for n, own in enumerate(self._sockets):
            own.setblocking(False)
            asyncio.get_running_loop().add_reader(own.fileno(), self._answered, n)

    def call(self, done: Done, fn: Callable[..., Any], /, *args: Any, quick: bool = False) -> None:
        """See the class."""
        requests: list[SearchRequest] = args[0]
        worker, first = self._idle.pop(), requests[0]
        vectors = b"".join(request.vector for request in requests)
        self._blocks[worker].memory.buf[: len(vectors)] = vectors
        self._running[worker] = done, len(requests)
        self._sockets[worker].send(_CALL.pack(len(requests), first.k, first.ef_search, bool(first.filter)))

    def _answered(self, worker: int) -> None:
        self._sockets[worker].recv(1)
        done, count = self._running.pop(worker)
        block = self._blocks[worker]
        sizes = block.counts[:count].tolist()
        ordinals, distances = block.ordinals[:count].tolist(), block.distances[:count].tolist()
        self._idle.append(worker)
        done([batch(o[:n], d[:n]) for n, o, d in zip(sizes, ordinals, distances, strict=True)], None)

    def close(self) -> None:
        for own, process in zip(self._sockets, self.processes, strict=True):
            own.close()
            process.join()
        for memory in (self._mask, *(block.memory for block in self._blocks)):
            memory.unlink()


def batch(ordinals: list[int], distances: list[float]) -> HitBatch:
    """What the batcher hands on; the ordinals in place of versions, for there are no documents."""
    return HitBatch([], distances, ordinals, [], b"", 0)


def by_threads(given: Given) -> Callable[[list[SearchRequest], Callable[[int], bool]], Sequence[HitBatch]]:
    """What a thread runs: the same search."""
    views = given.views(given.mask)

    def search_many(requests: list[SearchRequest], wanted: Callable[[int], bool]) -> Sequence[HitBatch]:
        queries, first = np.stack([np.frombuffer(one.vector, np.float32) for one in requests]), requests[0]
        found = views[bool(first.filter)].nearest(queries, first.k, ef_search=first.ef_search)
        return [batch(*one) for one in found]

    return search_many


async def measure(given: Given, workers: int, callers: Sequence[int], count: int, rounds: int) -> dict[str, Any]:
    """By number of callers, with and without a mask: turns of each way."""
    pool, processes, search = ThreadPool("search", workers), Workers(given, workers), by_threads(given)
    processes.listen()
    ways = {
        "threads": SearchBatcher(search, pool, batch_max=BATCH_MAX, in_flight_max=workers),
        "workers": SearchBatcher(search, processes, batch_max=BATCH_MAX, in_flight_max=workers),
    }
    pids, found = [process.pid for process in processes.processes], dict[str, dict[str, list[Turn]]]()
    try:
        await _equal(ways, given)
        gc.collect()
        gc.freeze()
        for masked in (False, True):
            for together in callers:
                turns = found[f"{'masked' if masked else 'whole'} {together}"] = {name: [] for name in ways}
                for turn in range(rounds):
                    for name in list(ways)[:: 1 if turn % 2 else -1]:
                        turns[name].append(await _turn(asking(ways[name], given, masked), together, count, pids))
    finally:
        for way in ways.values():
            await way.close()
        pool.close()
        processes.close()
    return found


def asking(way: SearchBatcher, given: Given, masked: bool) -> Callable[[int], Awaitable[HitBatch]]:
    """The n-th search."""
    asked = [
        SearchRequest(collection="c", vector=query.tobytes(), k=K, filter=b"{}" if masked else b"", ef_search=given.ef)
        for query in given.queries
    ]
    return lambda n: way.search(asked[n % len(asked)])


async def _equal(ways: dict[str, SearchBatcher], given: Given) -> None:
    """Both find the same, bit by bit."""
    for masked in (False, True):
        for n in range(EQUAL):
            one, other = [await asking(way, given, masked)(n) for way in ways.values()]
            if (one.versions, one.distances) != (other.versions, other.distances):
                raise RuntimeError(f"search {n}: threads found {one}, workers {other}")


async def _turn(ask: Callable[[int], Awaitable[HitBatch]], callers: int, count: int, pids: Sequence[int]) -> Turn:
    samples, own = Path(os.environ["GIL_SAMPLES"]), os.getpid()
    before = counted(samples, own), Spent.by(own), [Spent.by(pid) for pid in pids]
    took = await calls(callers, count, ask)
    after = counted(samples, own), Spent.by(own), [Spent.by(pid) for pid in pids]
    loop, threads = (b - a for a, b in zip(before[1], after[1], strict=True))
    workers = sum(sum(b) - sum(a) for a, b in zip(before[2], after[2], strict=True))
    return Turn(count, took, loop, threads, workers, *after[0].since(before[0]))


def main() -> None:
    """Argument: JSON of what `bench.cores` gives; the arrays are in files."""
    told = json.loads(sys.argv[1])
    segment = msgspec.convert(told["segment"], PublishedSegment)
    spec = msgspec.convert(told["spec"], CollectionSpec)
    given = Given(told["path"], segment, spec, np.load(told["queries"]), np.load(told["mask"]), told["ef"])
    limit = told["workers"], told["callers"], told["count"], told["rounds"]
    print(json.dumps(uvloop.run(measure(given, *limit))))


if __name__ == "__main__":
    main()
