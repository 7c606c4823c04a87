"""Writes of which one shard's part got through and another's did not: nothing is done twice, nothing is denied."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from client.fake_shards import FakeShards, virtually
from needle.base.config import RaftConfig
from needle.base.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NoQuorum,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
)
from needle.base.model import ReadMode, SearchRequest, WriteResult
from needle.client.router.router import Router
from needle.protocol.calls import CollectionsCall, Freshness, GetCall, SearchCall, WriteCall
from needle.protocol.commands import Change, Delete, Insert, OpenSession, Patch, Session, UpdateVectors, encode
from needle.routing.strategy import ShardStrategy
from needle.server.service import numbered_writes
from needle.server.service.proxy import Proxy
from needle.server.service.reads import GET_MAX

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
        with pytest.raises(OutcomeUnknown) as failed:  # another node, which knows nothing of it, must not begin again
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
        assert [list(part.rows) for part in outcomes] == [[7]]
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


def test_a_late_copy_of_a_write_that_was_answered_is_not_executed_again() -> None:
    """Its client has had the answer, on another connection, and has written more since."""

    async def work() -> None:
        shards = FakeShards()
        proxy = proxy_of(shards)
        session = await opened(proxy)
        first = batch(IDS, Session(session, 1, 1))
        await proxy.write(first)
        gone = Delete("default", IDS, None, Session(session, 2, 2))
        assert (await proxy.write(WriteCall(1, encode(gone), 0.5))).count == len(IDS)
        with pytest.raises(SessionExpired, match="not executed again"):
            await proxy.write(first)
        assert not any(shards.data.values())

    virtually(work())


def test_answers_that_nobody_acknowledges_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbered_writes, "ANSWERS_MAX", 8)
    monkeypatch.setattr(numbered_writes, "KEPT_MAX", 20)

    async def work() -> None:
        shards = FakeShards()
        proxy = proxy_of(shards)
        sessions = [await opened(proxy) for _ in range(4)]
        for session in sessions:
            for seq in range(1, 13):
                await proxy.write(batch(IDS[:1], Session(session, seq, 1)))
        held = [len(proxy.numbered.sessions[session].writes) for session in sessions]
        assert max(held) == 8 and sum(held) == 20 == proxy.numbered.kept
        last = max(shards.log.values())
        await proxy.write(batch(IDS[:1], Session(sessions[-1], 12, 1)))
        for session, seq in ((sessions[-1], 4), (sessions[0], 12)):
            with pytest.raises(SessionExpired):
                await proxy.write(batch(IDS[:1], Session(session, seq, 1)))
        assert max(shards.log.values()) == last  # none was executed again
        await proxy.write(batch(IDS[:1], Session(sessions[-1], 13, 13)))
        assert len(proxy.numbered.sessions[sessions[-1]].writes) == 1 and proxy.numbered.kept == 13
        late = await opened(proxy)
        for seq in (*range(2, 10), 1, *range(10, 30)):  # the first one came last
            await proxy.write(batch(IDS[:1], Session(late, seq, 1)))
        assert len(proxy.numbered.sessions[late].writes) == 8 and proxy.numbered.kept == 20

    virtually(work())


def test_what_nobody_acknowledges_is_kept_within_bounds_also_where_nothing_or_only_a_part_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numbered_writes, "KEPT_MAX", 20)
    many = [f"doc-{n:04}" for n in range(100)]

    async def work() -> None:
        shards = FakeShards()
        proxy = proxy_of(shards)
        session = await opened(proxy)
        shards.dead = set(shards.data)
        for seq in range(1, 5):
            with pytest.raises(NoQuorum):
                await proxy.write(batch(IDS, Session(session, seq, 1)))
        assert (
            not proxy.numbered.sessions[session].writes and proxy.numbered.kept == 0
        )  # nothing happened: nothing to remember
        shards.dead = {2}
        for seq in range(5, 15):
            with pytest.raises(OutcomeUnknown):
                await proxy.write(batch(many, Session(session, seq, 1)))
        rows_kept = sum(len(write.written) for write in proxy.numbered.sessions[session].writes.values())
        assert 0 < rows_kept <= 20 * numbered_writes.ROWS_KEPT and proxy.numbered.kept <= 20
        shards.dead = set()
        before = dict(shards.log)
        assert (await proxy.write(batch(many, Session(session, 14, 1)))).count == 100
        assert [shard for shard, index in shards.log.items() if index > before[shard]] == [2]
        assert (
            proxy.numbered.kept
            == proxy.numbered.sessions[session].weight
            == sum(write.weight for write in proxy.numbered.sessions[session].writes.values())
        )
        with pytest.raises(SessionExpired):
            await proxy.write(batch(many, Session(session, 5, 1)))

    virtually(work())


def test_a_refused_write_is_remembered_without_what_it_carried() -> None:
    async def work() -> None:
        proxy = proxy_of(FakeShards())
        session = Session(await opened(proxy), 1, 1)
        command = Insert("default", IDS, rows(20), [b"{}"] * 20, 7, session)  # a condition on several documents
        with pytest.raises(InvalidArgument, match="condition"):
            await proxy.write(WriteCall(1, encode(command), 0.5))
        kept = proxy.numbered.sessions[session.id].writes[1]
        assert isinstance(kept.outcome, InvalidArgument) and kept.outcome.__traceback__ is None and kept.task is None
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="condition"):
                await proxy.write(WriteCall(1, encode(command), 0.5))
        assert kept.outcome.__traceback__ is None

    virtually(work())


def test_a_write_of_a_session_that_is_forgotten_meanwhile_is_answered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbered_writes, "SESSIONS_MAX", 3)

    async def work() -> None:
        shards = FakeShards()
        proxy = proxy_of(shards)
        session = Session(await opened(proxy), 1, 1)
        shards.dead = set(shards.data)
        waiting = asyncio.ensure_future(proxy.write(batch(IDS, session)))
        await asyncio.sleep(0.01)
        for _ in range(4):
            await opened(proxy)
        with pytest.raises(NoQuorum):
            await waiting
        assert proxy.numbered.kept == 0 and not proxy.numbered.keeping

    virtually(work())


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e300, -1.0, 0.0])
def test_a_time_that_cannot_be_is_refused_by_who_routes(timeout: float) -> None:
    async def work() -> None:
        proxy = proxy_of(FakeShards())
        session = await opened(proxy)
        fresh = Freshness(ReadMode.STRONG, 0, 0.0, timeout)
        request = SearchRequest(collection="default", vector=rows(1), k=1)
        for call in (
            lambda: proxy.write(batch(IDS, Session(session, 1, 1), timeout)),
            lambda: proxy.write(batch(IDS, Session(), timeout)),
            lambda: proxy.search(SearchCall(1, request, fresh)),
            lambda: proxy.get(GetCall(1, "default", IDS, False, fresh)),
            lambda: proxy.collections(CollectionsCall(1, fresh)),
        ):
            with pytest.raises((InvalidArgument, DeadlineExceeded), match=r"timeout|before it arrived"):
                await call()

    virtually(work())


def test_a_batch_takes_no_longer_than_its_time_and_only_the_shard_that_failed_is_left_out() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards, batch_bytes_max=16)
        shards.dead = {2}
        loop = asyncio.get_running_loop()
        began = loop.time()
        parts = await router.insert_batch("default", IDS, memoryview(rows(len(IDS))), [b"{}"] * len(IDS), 0.5)
        assert loop.time() - began < 0.6
        mine = {at for at, name in enumerate(IDS) if shards.owned().map.owner(shards.key(name, b"")) == 2}
        outcomes = {at: part.outcome for part in parts for at in part.rows}
        assert sorted(outcomes) == list(range(len(IDS)))
        assert len(mine) > 4
        assert {at for at, outcome in outcomes.items() if isinstance(outcome, WriteResult)} == set(outcomes) - mine
        assert any(type(outcomes[at]) is Unavailable and "not sent" in outcomes[at].message for at in mine)

    virtually(work())


@pytest.mark.parametrize("command", [Delete, Patch, UpdateVectors])
def test_more_ids_than_any_shard_takes_are_refused_before_it_is_found_out_whose_they_are(command: Any) -> None:
    """That is done on the event loop: four million ids held it for a second."""
    proxy = proxy_of(FakeShards(shards=2))
    limit = proxy._node.config.limits.batch_documents_max
    more = {Delete: (), Patch: (Change(),), UpdateVectors: (b"",)}[command]
    call = WriteCall(1, encode(command("default", ["a"] * (limit + 1), *more)), 1.0)
    with pytest.raises(InvalidArgument, match=f"ids = '{limit + 1} documents'"):
        asyncio.run(proxy.write(call))


def test_a_get_of_more_ids_than_any_shard_answers_is_refused_in_the_same_way() -> None:
    proxy = proxy_of(FakeShards(shards=2))
    call = GetCall(1, "default", ["a"] * (GET_MAX + 1), False, Freshness())
    with pytest.raises(InvalidArgument, match=f"ids = '{GET_MAX + 1} ids'"):
        asyncio.run(proxy.get(call))
