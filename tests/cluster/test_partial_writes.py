"""Writes of which one shard's part got through and another's did not: nothing is done twice, nothing is denied."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.fake_shards import FakeShards, virtually
from needle.base.commands import Insert, OpenSession, Session, encode
from needle.base.config import RaftConfig
from needle.base.errors import NoQuorum, OutcomeUnknown
from needle.base.protocol import WriteCall
from needle.cluster.router import Router
from needle.server.cluster_proxy import Proxy

IDS = [f"doc-{n:03}" for n in range(20)]


def rows(count: int) -> bytes:
    return np.arange(2 * count, dtype="<f4").tobytes()


def proxy_of(shards: FakeShards) -> Proxy:
    config = RaftConfig(node_id="n", cluster_nodes=["n=h:1"], data_dir="unused")
    return Proxy(SimpleNamespace(config=config, router=Router(shards), topology=shards.real), random.Random(1))


def batch(ids: list[str], session: Session, timeout: float = 0.5) -> WriteCall:
    command = Insert("default", ids, rows(len(ids)), [b"{}"] * len(ids), None, session)
    return WriteCall(1, encode(command), timeout)


async def opened(proxy: Proxy) -> int:
    return (await proxy.write(WriteCall(1, encode(OpenSession(1)), 1.0))).index


def test_a_repeated_batch_writes_only_what_was_not_written() -> None:
    async def work() -> None:
        shards = FakeShards()
        proxy = proxy_of(shards)
        session = Session(await opened(proxy), 1, 1)
        shards.dead = {2}
        with pytest.raises(OutcomeUnknown) as failed:  # another node, which knows nothing of it, must not begin anew
            await proxy.write(batch(IDS, session))
        before = {shard: index for shard, index in shards.log.items() if index}
        assert failed.value.details["documents_written"] == sum(len(held) for held in shards.data.values())
        shards.dead = set()
        done = await proxy.write(batch(IDS, session))
        assert done.count == len(IDS)
        assert sum(len(held) for held in shards.data.values()) == len(IDS)
        assert {shard: index for shard, index in shards.log.items() if shard in before} == before
        assert await proxy.write(batch(IDS, session)) == done

    virtually(work())


def test_a_batch_that_names_an_id_twice_is_not_repeated_in_part() -> None:
    async def work() -> None:
        shards = FakeShards()
        proxy = proxy_of(shards)
        session = Session(await opened(proxy), 1, 1)
        shards.dead = {2}
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                await proxy.write(batch([*IDS, IDS[0]], session))
        assert max(shards.log.values()) == 1

    virtually(work())


def test_a_delete_that_one_shard_has_done_is_not_said_to_have_failed() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        await router.insert_batch("default", IDS, memoryview(rows(20)), [b"{}"] * 20, 5)
        shards.dead = {2}
        with pytest.raises(OutcomeUnknown, match="3 of 4 shards"):
            await router.delete("default", IDS, 0.5)
        assert [shard for shard, held in shards.data.items() if held] == [2]
        with pytest.raises(NoQuorum):
            await router.delete("default", list(shards.data[2]), 0.5)

    virtually(work())
