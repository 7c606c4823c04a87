"""A write of a key that is bound or limited, to a node that routes it, is decoded once, and off the event loop if it is
large."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from needle.base.model import WriteResult
from needle.connecting import Credentials, system_caller
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.protocol import calls, commands
from needle.server.service import dispatch
from needle.server.service.served import JUDGED_BYTES_MAX


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("epoch", [False, True])
@pytest.mark.parametrize("kind", ["bound", "limited"])
async def test_a_write_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, epoch: bool, large: bool
) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=1, replication_factor=1, dimensions=2))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    try:
        await cluster.add_local_node("node-1", address, str(tmp_path / "node-1"))
        await cluster.start()
        client = await cluster.client()
        now = client.topology()
        assert now.map is not None
        limits: dict[str, Any] = {"filter": {"tenant": "a"}} if kind == "bound" else {"documents": 1e6}
        key = (await client.create_key("it", "writer", **limits)).key
        name = now.collections[0].stored_name if epoch else "default"
        ids, text = [f"doc-{n}" for n in range(10)], b"x" * (JUDGED_BYTES_MAX // 10 if large else 10)
        rows = b"\0\0\x80?\0\0\0\0" * len(ids)
        insert = commands.Insert(name, ids, rows, [b'{"tenant":"a","text":"%s"}' % text] * len(ids))
        sent = commands.encode(insert)
        assert (len(sent) > JUDGED_BYTES_MAX) == large
        decoded, looked, decode, check = list[int](), list[int](), commands.decode, dispatch.check_lists

        def decoding(data: Any) -> commands.Command:
            if data == sent:  # what a node asks of a shard for it, and what is in the log, are others
                decoded.append(threading.get_ident())
            return decode(data)

        def checking(data: Any, most: int) -> None:
            if data == sent:
                looked.append(threading.get_ident())
            check(data, most)

        caller = system_caller(cluster.config.cluster_id, Credentials(key=key))
        monkeypatch.setattr(commands, "decode", decoding)
        monkeypatch.setattr(dispatch, "check_lists", checking)
        try:
            call = calls.WriteCall(1, sent, 10.0, now.map.epoch if epoch else 0)
            answer = await caller.call(address, calls.WRITE, calls.encode(call), 10.0)
        finally:
            monkeypatch.undo()
            await caller.close()
        assert calls.decode(answer, WriteResult).count == 10
        assert await client.count() == 10
        on_loop = [not large]
        assert [one == threading.get_ident() for one in decoded] == on_loop
        assert [one == threading.get_ident() for one in looked] == on_loop
    finally:
        await cluster.stop()
