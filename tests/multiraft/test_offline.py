"""Mending the logs of nodes that are stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from multiraft.harness import Cluster, Node
from multiraft.wal_util import open_wal
from needle.base.errors import CorruptLog
from needle.multiraft import offline
from needle.multiraft.log.log_records import HARD, LOST, LostRecord, encode_record, record_key
from needle.multiraft.log.wal_store import WalStore
from needle.raft.messages import HardState


def _put(node: Node, kind: bytes, record: HardState | LostRecord) -> WalStore:
    store = open_wal(f"{node.directory}/log")
    key = record_key(0, kind)
    store.commit(lambda txn: txn.put(key, encode_record(key, record)), True)
    return store


async def test_a_term_without_room_for_elections_is_refused_and_can_be_lowered(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        await cluster.put("a", 1)
        nodes = list(cluster.nodes.values())
        for node in nodes:
            await node.down()
        for node in nodes:
            commit = node.logs.group(0).hard_state
            _put(node, HARD, HardState(2**64 - 1, "", commit.commit if commit else 0)).close()
            with pytest.raises(CorruptLog, match="needle repair term"):
                await node.start()
            store = open_wal(f"{node.directory}/log")
            (lowered,) = offline.lower_terms(store)
            assert (lowered.before, lowered.after) == (2**64 - 1, offline.TERM_STEP)
            assert offline.lower_terms(store) == []
            store.close()
        for node in nodes:
            await node.start()
        await cluster.put("b", 2)
        assert await cluster.converged() == {"a": 1, "b": 2}
        assert (await cluster.leader()).host.term(0) > offline.TERM_STEP


async def test_a_replica_that_stopped_for_a_contradiction_goes_on_when_people_say_so(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        await cluster.put("a", 1)
        node = (await cluster.converged() and cluster.running())[0]
        await node.down()
        _put(node, LOST, LostRecord("others say otherwise")).close()
        await node.start()
        assert node.host.status(0).state == "Lost"
        await node.down()
        store = open_wal(f"{node.directory}/log")
        assert offline.resume(store) == {0: "others say otherwise"}
        assert offline.resume(store) == {}
        store.close()
        await node.start()
        assert not node.host.lost_replica(0)
        await cluster.put("b", 2)
        assert await cluster.converged() == {"a": 1, "b": 2}
