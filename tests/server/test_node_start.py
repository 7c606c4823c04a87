"""A node that is asked something in the moment in which it begins to listen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from needle.base.config import RaftConfig
from needle.base.errors import ConfigError
from needle.base.ids import shard_group
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.server.node import Node
from needle.server.ports import system_ports
from needle.server.system_node import system_node


async def ready(node: Node) -> None:
    await wait_for(lambda: not node.not_ready(), 30, "the node being ready")


async def test_a_shard_that_comes_while_the_node_begins_to_listen_is_looked_after(tmp_path: Path) -> None:
    at = f"127.0.0.1:{free_ports(1)[0]}"
    config = RaftConfig(node_id="a", cluster_nodes=[f"a={at}"], data_dir=str(tmp_path / "a"), dimensions=2)
    first = system_node(config, system_ports(config))
    await first.start()
    await ready(first)
    known = first.topology
    await first.stop()

    ports = system_ports(config)

    def early(handler: Any) -> Any:
        listener = ports.listen(handler)
        start = listener.start

        async def started() -> None:
            await start()
            another = msgspec.structs.replace(known.shards[0], shard=1)
            await node.adopt(
                msgspec.structs.replace(known, version=known.version + 1000, shards=(*known.shards, another))
            )

        listener.start = started  # type: ignore[method-assign]
        return listener

    node = system_node(config, dataclasses.replace(ports, listen=early))
    await node.start()
    try:
        assert shard_group(1) in node.groups
        await ready(node)
    finally:
        await node.stop()


async def test_a_node_that_may_not_listen_there_makes_no_directory(tmp_path: Path) -> None:
    config = RaftConfig(node_id="a", cluster_nodes=["a=0.0.0.0:5001"], data_dir=str(tmp_path / "a"), dimensions=2)
    with pytest.raises(ConfigError, match="listen"):
        await system_node(config, system_ports(config)).start()
    assert not (tmp_path / "a").exists()
