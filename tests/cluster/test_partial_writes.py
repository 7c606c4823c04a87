"""Writes of which one shard's part got through and another's did not: nothing is done twice, nothing is denied."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from cluster.fake_shards import FakeShards, virtually
from needle.base.config import RaftConfig
from needle.base.errors import NoQuorum, OutcomeUnknown
from needle.client.router.router import Router
from needle.protocol.calls import WriteCall
from needle.protocol.commands import Insert, OpenSession, Session, encode
from needle.routing.strategy import ShardStrategy
from needle.server.service.proxy import Proxy

IDS = [f"doc-{n:03}" for n in range(20)]


def rows(count: int) -> bytes:
    return np.arange(2 * count, dtype="<f4").tobytes()


def proxy_of(shards: FakeShards) -> Proxy:
    config = RaftConfig(node_id="n", cluster_nodes=["n=h:1"], data_dir="unused")
    node = SimpleNamespace(config=config, router=Router(shards), topology=shards.real)

    async def at_once(_size: int, fn: Callable[..., object], *arguments: object) -> object:
        return fn(*arguments)

    return Proxy(node, random.Random(1), at_once)


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


def test_of_documents_with_one_id_the_last_is_written_once_also_in_a_batch_that_is_repeated() -> None:
    async def work() -> None:
        shards = FakeShards()
        proxy = proxy_of(shards)
        session = Session(await opened(proxy), 1, 1)
        shards.dead = {2}
        twice = batch([*IDS, IDS[0]], session)
        with pytest.raises(OutcomeUnknown):
            await proxy.write(twice)
        shards.dead = set()
        assert (await proxy.write(twice)).count == len(IDS)
        assert max(shards.log.values()) == 1
        vector = next(held[IDS[0]][1] for held in shards.data.values() if IDS[0] in held)
        assert vector == rows(len(IDS) + 1)[-8:]

    virtually(work())


def test_a_router_writes_the_last_of_an_id_also_where_its_documents_belong_to_different_shards() -> None:
    async def work() -> None:
        shards = FakeShards(strategy=ShardStrategy.custom("tenant"))
        tenants = [msgspec.json.encode({"tenant": n}) for n in range(8)]
        outcomes = await Router(shards).insert_batch("default", ["a"] * 8, memoryview(rows(8)), tenants, 5)
        assert len({id(outcome) for outcome in outcomes}) == 1 and len(outcomes) == 8
        assert [held["a"][1:] for held in shards.data.values() if held] == [(rows(8)[-8:], tenants[-1])]

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
