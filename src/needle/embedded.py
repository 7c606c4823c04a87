"""A database in this process: one node that listens nowhere, and a client of it.

    async with needle.open("data") as client: ...
    with needle.open_sync(":memory:") as client: ...

The node is the one that `needle serve` runs, with its log and its documents on disk, and can be served later. The
client has every method that one of `needle.connect` has. Closing it stops the node.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Final

from needle.base.config import RaftConfig
from needle.base.errors import ConfigError, DeadlineExceeded
from needle.base.model import Metric
from needle.base.schema import refuse
from needle.client.client import Client
from needle.client.embedding import Embedder, check_embedder
from needle.client.sync import SyncClient, sync_client
from needle.connecting import Connecting, cluster_client, system_caller
from needle.routing.topology import Topology
from needle.server.cluster_files import load_topology
from needle.server.files import read_owner
from needle.server.local_caller import LocalCaller
from needle.server.node import Node
from needle.server.ports import Handler, Listener, system_ports
from needle.server.system_node import system_node

MEMORY: Final = ":memory:"
NODE_ID: Final = "local"
NOWHERE: Final = "127.0.0.1:1"
"""Where the node says that it is. Nobody asks it there; `needle serve` gives the directory's node another address."""
READY_SECONDS: Final = 60.0
ELECTION_SECONDS: Final = 0.1
"""There is nobody whose word could be late."""


def open(
    directory: str | os.PathLike[str],
    *,
    dimensions: int | None = None,
    metric: str = Metric.COSINE,
    embedder: Embedder | None = None,
) -> Connecting:
    """A client of a database in `directory`, which is made if it is not there; ":memory:": in a temporary directory,
    which is removed when the client is closed. `await needle.open(...)` or `async with needle.open(...) as client`.

    dimensions, metric: of the collection `default`, if the database is new; without dimensions it has none. embedder:
    as for `needle.connect`. Raises
    ConfigError for a directory of a cluster of several nodes, StorageError if another process has it open, and as
    `RaftCluster.start`.
    """
    return Connecting(_opened(directory, dimensions, metric, check_embedder(embedder)))


def open_sync(
    directory: str | os.PathLike[str],
    *,
    dimensions: int | None = None,
    metric: str = Metric.COSINE,
    embedder: Embedder | None = None,
) -> SyncClient:
    """`open` for code without asyncio: the same methods, blocking; use with `with`. In a process that is forked while
    it is open, its calls raise StorageError: the database belongs to the process that opened it."""
    maker = check_embedder(embedder)
    return sync_client(lambda: _opened(directory, dimensions, metric, maker))


class _OwnNode(LocalCaller):
    """Calls to the node in this process, which ends with them. removed: what else is done away with then."""

    def __init__(self, node: Node, address: str, cluster_id: str, removed: Callable[[], None]) -> None:
        super().__init__(node, address, system_caller(cluster_id))
        self._own = node
        self._removed = removed

    async def close(self) -> None:
        """Stop the node. Idempotent."""
        await super().close()
        await self._own.stop()
        await asyncio.to_thread(self._removed)


class _Nowhere(Listener):
    """Listens to nobody."""

    def __init__(self, handler: Handler) -> None:
        del handler  # it is called directly

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def more(self) -> bool:
        """Nothing is read."""
        return False

    def refuse_older(self, version: int) -> None:
        """There is no other node."""

    def of_founding(self, founding: int) -> None:
        """Nor a client of another cluster."""

    @property
    def address(self) -> str:
        return NOWHERE


async def _opened(
    directory: str | os.PathLike[str], dimensions: int | None, metric: str, embedder: Embedder | None
) -> Client:
    if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
        raise refuse("directory", directory, f"the path of a directory, or {MEMORY!r}")
    path, removed = os.fspath(directory), _nothing
    if path == MEMORY:
        path = await asyncio.to_thread(tempfile.mkdtemp, prefix="needle-")
        removed = partial(shutil.rmtree, path, ignore_errors=True)
    try:
        return await _started(path, dimensions, metric, removed, embedder)
    except BaseException:
        await asyncio.to_thread(removed)
        raise


async def _started(
    path: str, dimensions: int | None, metric: str, removed: Callable[[], None], embedder: Embedder | None
) -> Client:
    owner = await asyncio.to_thread(read_owner, path)
    known = Topology() if owner is None else await asyncio.to_thread(load_topology, path)
    if (others := len(known.nodes) - 1) > 0:
        text = f"directory = {path} belongs to a node of a cluster with {others} more: start it with `needle serve`"
        raise ConfigError(text, field="directory")
    node_id, cluster_id = (owner.node_id, owner.cluster_id) if owner is not None else (NODE_ID, "needle")
    config = RaftConfig(
        node_id=node_id,
        cluster_id=cluster_id,
        cluster_nodes=[f"{node_id}={NOWHERE}"],
        data_dir=path,
        dimensions=dimensions,
        metric=metric,
        election_timeout=ELECTION_SECONDS,
        lease_timeout=ELECTION_SECONDS,
    )
    node = system_node(config, dataclasses.replace(system_ports(config), listen=_Nowhere))
    await node.start()
    caller = _OwnNode(node, NOWHERE, cluster_id, removed)
    try:
        if not await node.maintenance.until(lambda: not node.not_ready(), READY_SECONDS):
            raise DeadlineExceeded(f"not ready after {READY_SECONDS:g} s: {node.not_ready()}")
    except BaseException:
        await caller.close()
        raise
    return cluster_client(caller, [NOWHERE], node.topology, prefer=NOWHERE, embedder=embedder)


def _nothing() -> None:
    """A directory that was named stays."""
