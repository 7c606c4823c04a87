"""Several hosts in one process: an in-memory network, a state machine without a disk of its own, real write-ahead logs.

A node "crashes" by being abandoned: its host is cut off and only what its disks hold is kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import xxhash

from multiraft.wal_util import open_wal
from needle.base.errors import (
    ConnectionLost,
    CorruptSnapshot,
    DeadlineExceeded,
    InvalidArgument,
    NeedleError,
    ReplicaDamaged,
)
from needle.multiraft.config import HostConfig
from needle.multiraft.engine import Engine
from needle.multiraft.files import Files
from needle.multiraft.host import Host
from needle.multiraft.log.log_store import LogStore
from needle.multiraft.log.wal_store import WalStore, segment_bytes
from needle.multiraft.ports import Applied, KeyValueTxn, SnapshotFile
from needle.multiraft.snapshots.receiver import BLOCKS_METHOD, CHUNK_METHOD, HASHES_METHOD

FAST = HostConfig(election_timeout=0.15, heartbeat_interval=0.03, snapshot_retry=0.2, snapshot_chunk_timeout=0.5)


class Crash(BaseException):
    """The process is gone."""


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Await a condition with a deadline; its first true value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("the condition did not come true in time")
        await asyncio.sleep(0.002)


class ThreadPool:
    def __init__(self, threads: int = 1) -> None:
        self._threads = ThreadPoolExecutor(threads)

    async def run(self, fn: Callable[..., Any], /, *args: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, fn, *args)

    def call(self, done: Callable[..., None], fn: Callable[..., Any], /, *args: object, quick: bool = False) -> None:
        future = asyncio.ensure_future(self.run(fn, *args))
        future.add_done_callback(lambda f: done(None, f.exception()) if f.exception() else done(f.result(), None))

    def close(self) -> None:
        self._threads.shutdown(wait=True)


class Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class Disk:
    """What a state machine has durably: survives a crash of its node."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {"index": 0, "term": 0, "conf": "", "data": {}}
        self.damage: NeedleError | None = None


class DictMachine:
    """Commands are JSON [key, value]; value "refuse" is refused. Every apply is durable unless `lazy`."""

    def __init__(self, disk: Disk, *, lazy: bool = False) -> None:
        self.disk = disk
        self.lazy = lazy
        self.state: dict[str, Any] = json.loads(json.dumps(disk.saved))
        self.indexes: list[int] = []
        self.constant = b""
        """Content of a file that every snapshot holds and that never changes."""
        self.held = ""
        """Where this state machine has that file."""
        self.similar = ""
        """Where it has one that may be like it."""
        self.damage: NeedleError | None = disk.damage
        self.skips = False
        self.checked = 0
        self.refused = False

    @property
    def data(self) -> dict[str, Any]:
        return self.state["data"]

    def applied_index(self) -> int:
        return self.state["index"]

    def applied_term(self) -> int:
        return self.state["term"]

    def conf(self) -> bytes:
        return bytes.fromhex(self.state["conf"])

    def apply(self, entries: Sequence[Applied]) -> list[Any]:
        if self.damage is not None:
            raise self.damage
        results: list[Any] = []
        for entry in entries:
            if self.skips and entry.index <= self.state["index"]:
                results.append(None)
                continue
            assert entry.index == self.state["index"] + 1, (entry, self.state["index"])
            assert entry.term >= self.state["term"]
            self.indexes.append(entry.index)
            self.state["index"], self.state["term"] = entry.index, entry.term
            if entry.conf is not None:
                self.state["conf"] = entry.conf.hex()
            result: Any = None
            if entry.data:
                key, value = json.loads(entry.data)
                if value == "refuse":
                    result = InvalidArgument(f"{key} is refused")
                else:
                    self.data[key] = value
                    result = entry.index
            results.append(result)
        if not self.lazy:
            self.checkpoint()
        return results

    def takes_long(self, entries: Sequence[Applied]) -> bool:
        return any(b"takes long" in entry.data for entry in entries)

    def checkpoint(self) -> int:
        self.disk.saved = {**self.state, "data": dict(self.data)}
        return self.state["index"]

    def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[SnapshotFile]]:
        if self.damage is not None:
            raise ReplicaDamaged(str(self.damage))
        body = json.dumps(self.state).encode()
        os.makedirs(f"{directory}/parts")
        files = []
        for name, content in (("constant", self.constant), ("state.json", body), ("parts/empty", b"")):
            with open(f"{directory}/{name}", "wb") as file:
                file.write(content)
            files.append(SnapshotFile(name, len(content), xxhash.xxh3_128_hexdigest(content)))
        return self.state["index"], self.state["term"], self.conf(), files

    def held_file(self, name: str) -> str | None:
        return self.held if name == "constant" and self.held else None

    def similar_file(self, name: str) -> str | None:
        return self.similar if name == "constant" and self.similar else None

    def check_snapshot(self, directory: str) -> None:
        self.checked += 1
        if self.refused:
            raise CorruptSnapshot("refused by the test")

    def install_snapshot(self, directory: str) -> None:
        self.damage = self.disk.damage = None
        self.skips = True  # what a snapshot holds may come as entries again
        with open(f"{directory}/state.json", "rb") as file:
            self.state = json.loads(file.read())
        self.indexes = []
        self.checkpoint()

    def close(self) -> None:
        pass


class Network:
    """Delivers in the next loop iteration. `cut`: ordered pairs that lose everything; `drop_call` may refuse a
    chunk."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.cut: set[tuple[str, str]] = set()
        self.frames = 0
        self.drop_call: Callable[[str, str], bool] = lambda frm, to: False
        self.calls = 0
        self.before_answer: Callable[[], Awaitable[Any]] | None = None

    def isolate(self, node: str) -> None:
        for other in list(self.hosts):
            self.cut |= {(node, other), (other, node)}

    def heal(self) -> None:
        self.cut = set()

    def deliver(self, frm: str, to: str, body: bytes) -> None:
        host = self.hosts.get(to)
        if host is not None and (frm, to) not in self.cut and frm in self.hosts:
            host.engine.on_raft(frm, body)


class Link:
    """One node's transport."""

    def __init__(self, network: Network, node: str) -> None:
        self.network, self.node = network, node

    def send(self, to: str, body: bytes) -> bool:
        self.network.frames += 1
        asyncio.get_running_loop().call_soon(self.network.deliver, self.node, to, body)
        return True

    async def call(self, to: str, method: str, body: bytes, timeout: float) -> bytes:
        network = self.network
        fetches = method in (CHUNK_METHOD, HASHES_METHOD, BLOCKS_METHOD)
        network.calls += fetches
        dropped = fetches and network.drop_call(self.node, to)
        if to not in network.hosts or (self.node, to) in network.cut or dropped:
            raise ConnectionLost(f"no connection to {to}")
        if network.before_answer is not None and fetches:
            await network.before_answer()
        answer = asyncio.ensure_future(network.hosts[to].engine.on_call(self.node, method, body))
        await asyncio.wait([answer], timeout=timeout)
        if not answer.done():
            raise DeadlineExceeded(f"{method} to {to}: no answer within {timeout:g} s")
        return answer.result()


class FaultyStore:
    """A WalStore whose commits can fail or stall."""

    def __init__(self, inner: WalStore) -> None:
        self.inner = inner
        self.error: NeedleError | None = None
        self.gate: Callable[[], None] = lambda: None
        self.commits = 0
        self.get, self.scan, self.close = inner.get, inner.scan, inner.close
        self.bytes_used = inner.bytes_used

    def commit(self, fill: Callable[[KeyValueTxn], None], sync: bool) -> None:
        self.gate()
        if self.error is not None:
            raise self.error
        self.commits += 1
        self.inner.commit(fill, sync)


class Node:
    """One node's disks, and its host while it runs."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.directory = f"{cluster.root}/{name}"
        self.disks: dict[int, Disk] = {}
        self.machines: dict[int, DictMachine] = {}
        self.fatal: list[NeedleError] = []
        self.armed: tuple[str, int] = ("", 0)
        self.reached: list[str] = []
        self.crashed = False
        self.lazy = False
        self.host: Host
        self.store: FaultyStore

    def _failpoint(self, name: str) -> None:
        self.reached.append(name)
        armed, count = self.armed
        if name == armed:
            self.armed = (armed, count - 1)
            if count == 1:
                self.crashed = True
                self.cluster.network.hosts.pop(self.name, None)
        if self.crashed:
            raise Crash(name)

    async def start(self, voters: Sequence[str] | None = None) -> None:
        cluster = self.cluster
        self.crashed, self.armed, self.fatal = False, ("", 0), []
        self.store = FaultyStore(
            open_wal(f"{self.directory}/log", segment_bytes=segment_bytes(cluster.config.log_bytes_max))
        )
        self.log_pool, self.apply_pool, self.long_pool = ThreadPool(), ThreadPool(), ThreadPool()
        try:
            self.logs = LogStore(
                self.store,
                node_id=self.name,
                cluster_id="test",
                draw=lambda: secrets.randbits(63),
                failpoint=self._failpoint,
            )
            engine = Engine(
                self.name,
                cluster.config,
                transport=Link(cluster.network, self.name),
                store=self.logs,
                log_pool=self.log_pool,
                apply_pool=self.apply_pool,
                long_pool=self.long_pool,
                clock=Clock(),
                rng=random.Random(f"{cluster.seed}{self.name}"),
                on_fatal=self.fatal.append,
                snapshot_dir=f"{self.directory}/snapshots",
                files=Files(),
                failpoint=self._failpoint,
            )
            self.host = Host(engine)
            engine.bounds = msgspec.structs.replace(engine.bounds, **cluster.bounds)
            for group in cluster.groups:
                machine = DictMachine(self.disks.setdefault(group, Disk()), lazy=self.lazy)
                self.machines[group] = machine
                engine.open_group(group, machine, voters=cluster.names if voters is None else voters)
            await engine.start()
        except BaseException:
            self.store.close()
            raise
        cluster.network.hosts[self.name] = self.host

    def crash_at(self, name: str, count: int = 1) -> None:
        """Die when the failpoint is reached for the count-th time from now."""
        self.armed = (name, count)

    async def down(self) -> None:
        """Abandon the host, as kill -9 would: nothing is flushed, only the disks stay."""
        self.cluster.network.hosts.pop(self.name, None)
        self.crashed = True
        await self.host.engine.stop()
        self.store.gate = lambda: None
        self.log_pool.close()
        self.apply_pool.close()
        self.long_pool.close()
        self.store.close()

    async def restart(self) -> None:
        await self.down()
        await self.start()


class Cluster:
    """Nodes n1.. that replicate `groups`. bounds: of retention.Bounds; nothing is kept for who is away unless said."""

    def __init__(
        self, root: str, *, nodes: int = 3, groups: int = 1, config: HostConfig = FAST, seed: int = 1, **bounds: int
    ) -> None:
        self.bounds = {"away": 0, **bounds}
        self.root, self.config, self.seed = root, config, seed
        self.network = Network()
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.groups = list(range(groups))
        self.nodes = {name: Node(self, name) for name in self.names}

    async def __aenter__(self) -> Cluster:
        asyncio.get_running_loop().set_exception_handler(_quiet_crashes)
        for node in self.nodes.values():
            await node.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            await node.down()

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.name in self.network.hosts]

    async def leader(self, group: int = 0, seconds: float = 60.0, but: str = "") -> Node:
        """The leader that a majority of the running nodes follow."""

        def agreed() -> Node | None:
            for node in self.running():
                if node.name == but or not _has(node, group) or not node.host.is_leader(group):
                    continue
                followers = [n for n in self.running() if _has(n, group) and n.host.leader(group) == node.name]
                if len(followers) * 2 > len(self.names):
                    return node
            return None

        found: Node = await until(agreed, seconds)
        return found

    async def put(self, key: str, value: Any, group: int = 0, timeout: float = 30.0) -> int:
        """Write through whoever leads, retrying what is safe to retry; the index."""
        end = time.monotonic() + timeout
        while True:
            node = await self.leader(group)
            try:
                result: int = await node.host.propose(group, put(key, value), max(0.1, end - time.monotonic()))
                return result
            except NeedleError as error:
                if not error.retryable or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.005)

    async def converged(self, group: int = 0, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until all running nodes hold the same state."""

        def same() -> bool:
            states = [(n.machines[group].applied_index(), n.machines[group].data) for n in self.running()]
            return all(state == states[0] for state in states)

        await until(same, seconds)
        return self.running()[0].machines[group].data


def put(key: str, value: Any) -> bytes:
    return json.dumps([key, value]).encode()


def _quiet_crashes(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), Crash):
        loop.default_exception_handler(context)


def _has(node: Node, group: int) -> bool:
    return not node.host.stopped and group in node.host.groups()
