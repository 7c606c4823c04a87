"""Aliases: what the catalog refuses, and that a call is about one collection, whatever its client knew before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import needle
from catalog.catalog_util import spec, topology
from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import (
    CollectionExists,
    CollectionNotFound,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    Unavailable,
)
from needle.base.model import WriteResult
from needle.catalog import collections
from needle.catalog.state import execute
from needle.client import Client
from needle.client.meaning import Meaning, switched
from needle.client.router.router import Router
from needle.protocol.catalog_commands import (
    AlterCollection,
    CatalogCommand,
    CreateCollection,
    DropCollection,
    RemoveAlias,
    SetAlias,
)
from needle.protocol.commands import ChangeWhere, Session
from needle.routing.topology import Topology


def after(*commands: CatalogCommand) -> Topology:
    now = topology()
    for index, command in enumerate(commands, start=2):
        now, result = execute(now, index, command)
        assert not isinstance(result, NeedleError), result
    return now


MADE = [CreateCollection(spec("a"), False, 1), CreateCollection(spec("b"), False, 2)]


def test_an_alias_is_a_name_and_its_change_makes_an_epoch() -> None:
    now = after(*MADE, SetAlias("x", "a"))
    before = now.map
    assert now.collection("x") == now.collection("a") == now.named("a") and now.named("x") is None
    assert before is not None and before == topology().map  # nobody can have gone by another meaning
    same, _ = execute(now, 9, SetAlias("x", "a"))
    assert same is now
    other = after(*MADE, SetAlias("x", "a"), SetAlias("x", "b"))
    assert other.collection("x") == other.named("b") and other.map is not None
    assert (other.map.epoch, other.map.starts, other.map.owners) == (before.epoch + 1, before.starts, before.owners)
    gone = after(*MADE, SetAlias("x", "a"), RemoveAlias("x"))
    assert gone.collection("x") is None and gone.map == other.map and not gone.aliases


def test_a_refusal_is_the_same_in_all_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas compare the codes of what they refused, and of two reasons the first counts."""
    monkeypatch.setattr(collections, "ALIASES_MAX", 1)
    now = after(*MADE, SetAlias("x", "a"))
    _, result = execute(now, 9, SetAlias("y", "nowhere"))
    assert isinstance(result, CollectionNotFound)
    _, result = execute(now, 9, SetAlias("y", "a"))
    assert isinstance(result, InvalidArgument) and "at most 1" in result.message


@pytest.mark.parametrize(
    ("command", "refused", "says"),
    [
        (SetAlias("a", "b"), CollectionExists, "can be no alias"),
        (SetAlias("y", "none"), CollectionNotFound, "none"),
        (SetAlias("y", "x"), InvalidArgument, "not an alias"),
        (SetAlias("y", "y"), InvalidArgument, "another name"),
        (SetAlias("x", "x"), InvalidArgument, "another name"),
        (RemoveAlias("a"), CollectionNotFound, "no alias"),
        (RemoveAlias("y"), CollectionNotFound, "no alias"),
        (CreateCollection(spec("x"), True, 9), CollectionExists, "is an alias"),
        (DropCollection("a", 2), InvalidArgument, "'x'"),
        (AlterCollection("x", 2, 9), CollectionNotFound, "x"),
        (AlterCollection("a", 77, 9), CollectionNotFound, "a"),
    ],
)
def test_what_cannot_be_is_refused(command: CatalogCommand, refused: type[NeedleError], says: str) -> None:
    now = after(*MADE, SetAlias("x", "a"))
    same, result = execute(now, 9, command)
    assert isinstance(result, refused) and says in result.message and same is now


def test_a_call_goes_by_the_epochs_at_which_its_alias_meant_that() -> None:
    first = after(*MADE, SetAlias("x", "a"))
    second = after(*MADE, SetAlias("x", "a"), SetAlias("x", "b"))
    assert first.map is not None and second.map is not None
    meaning = Meaning("x", 2)
    meaning.check(first)
    assert meaning.epoch(first) == meaning.epoch(second) == first.map.epoch < second.map.epoch
    with pytest.raises(Unavailable) as refused:
        meaning.check(second)
    assert switched(refused.value) and not switched(Unavailable("else")) and not switched(None)
    assert Meaning("x", 3).epoch(first) == -1


class SwitchingShards:
    """They do what they are asked. The client hears that alias x leads elsewhere as the first of them answers."""

    def __init__(self, shards: int) -> None:
        self.known = topology(shards=shards)
        for index, command in enumerate([*MADE, SetAlias("x", "a")], start=2):
            self.known, _ = execute(self.known, index, command)
        self.done: list[str] = []

    def group(self, _: int) -> SwitchingShards:
        return self

    def topology(self) -> Topology:
        return self.known

    async def refresh(self, version: int, timeout: float) -> Topology:
        return self.known

    async def confirmed(self, timeout: float) -> Topology:
        return self.known

    async def write(self, make: Callable[[Session], Any], _: float) -> WriteResult:
        self.done.append(make(Session(1, 1)).collection)
        self.known, _ = execute(self.known, 9, SetAlias("x", "b"))
        return WriteResult(version=5, index=5, count=1)


async def test_a_change_by_a_filter_that_is_done_is_not_begun_again_in_another_collection() -> None:
    shards = SwitchingShards(1)
    result = await Router(shards).change_where(ChangeWhere("x", b"{}", None), 5)
    assert (result.count, shards.done) == (1, ["a@2"])


@pytest.mark.parametrize("by", ["filter", "ids"])
async def test_a_change_that_is_done_in_part_says_so_and_is_not_begun_again(by: str) -> None:
    shards = SwitchingShards(2)
    router = Router(shards)
    if by == "filter":
        call = router.change_where(ChangeWhere("x", b"{}", None), 5)
    else:
        call = router.delete("x", [f"{n}" for n in range(20)], 5)
    with pytest.raises(OutcomeUnknown):
        await call
    assert shards.done == ["a@2"]


A, B = 12, 17


async def filled(client: Client) -> None:
    for name, count in (("a", A), ("b", B)):
        await client.create_collection(name, dimensions=2)
        ids, vectors = [f"{n:02}" for n in range(count)], [[1.0, float(n)] for n in range(count)]
        await client.insert_each(ids=ids, vectors=vectors, metadatas=[{"of": name}] * count, collection=name)


async def test_who_knew_another_meaning_does_nothing_by_it(tmp_path: Path) -> None:
    """Clients that have heard nothing of it since: after `set_alias` has returned, none of their calls is about the
    collection of before."""
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await filled(client)
            with pytest.raises(CollectionNotFound):
                await other.count(collection="x")
            await client.set_alias("x", "a")
            assert await other.count(collection="x") == A and await other.aliases() == {"x": "a"}
            names = [f"new-{n}" for n in range(8)]
            for turn, (name, count) in enumerate((("b", B), ("a", A), ("b", B))):
                calls = (
                    lambda: other.count(collection="x"),
                    lambda: other.search([1, 1], 50, collection="x"),
                    lambda: other.search_many([[1, 1], [1, 2]], 50, collection="x"),
                    lambda: other.get(["00", "01"], collection="x"),
                    lambda: other.counts(collection="x"),
                    lambda: other.patch(["00", "01", "02"], set={"of": "patched"}, collection="x"),
                    lambda: other.patch_where({"of": "patched"}, set={"of": "again"}, collection="x"),
                    lambda: other.insert("new-0", [1, 9], collection="x"),
                    lambda: other.insert_each(ids=names, vectors=[[1, 9]] * 8, collection="x"),
                    lambda: other.delete(names, collection="x"),
                    lambda: other.describe_collection("x"),
                )
                stale = other.topology()
                await client.set_alias("x", name)
                for call in calls:
                    other._shards._known._now = stale  # as if it had heard nothing
                    found = await call()
                    if isinstance(found, int):
                        assert found == count
                described = await client.describe_collection("x")
                assert (described.name, described.documents, described.aliases) == (name, count, ["x"])
                changed = await client.count({"of": "again"}, collection=name)
                assert changed == 3, turn
                await client.patch_where({"of": "again"}, set={"of": name}, collection=name)
            assert await client.count({"of": "a"}, collection="a") == A
            assert await client.count({"of": "b"}, collection="b") == B
            cursor = (await other.scan_page(limit=3, collection="x")).cursor
            await client.set_alias("x", "a")
            with pytest.raises(InvalidArgument, match="another meaning"):
                await other.scan_page(limit=3, collection="x", cursor=cursor)
            for wrong, refused in (
                (client.set_alias("a", "b"), CollectionExists),
                (client.set_alias("y", "none"), CollectionNotFound),
                (client.set_alias("y", "x"), InvalidArgument),
                (client.set_alias(" y", "a"), InvalidArgument),
                (client.remove_alias("y"), CollectionNotFound),
                (client.drop_collection("x"), InvalidArgument),
                (client.drop_collection("a"), InvalidArgument),
                (client.alter_collection("x", ef_search=10**9), InvalidArgument),
                (client.describe_collection("none"), CollectionNotFound),
            ):
                with pytest.raises(refused):
                    await wrong
            await client.alter_collection("x", ef_search=200)
            assert (await other.describe_collection("a")).index.ef_search == 200
            await client.remove_alias("x")
            with pytest.raises(CollectionNotFound):
                await other.count(collection="x")
            await asyncio.to_thread(blocking, list(processes.addresses.values()))


async def test_a_call_while_an_alias_changes_is_about_one_collection(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await filled(client)
            await client.set_alias("x", "a")
            switching = asyncio.create_task(switch(client))
            seen = []
            while not switching.done():
                hits = await other.search([1, 1], 50, collection="x")
                seen.append(len(hits))
                of = {hit.metadata["of"] for hit in hits}
                assert of == ({"a"} if len(hits) == A else {"b"}) and len(hits) in (A, B)
            await switching
            assert {A, B} == set(seen)


async def switch(client: Client) -> None:
    for turn in range(20):
        await client.set_alias("x", "ba"[turn % 2])


def blocking(addresses: list[str]) -> None:
    with needle.connect_sync(addresses) as client:
        client.set_alias("z", "b")
        assert client.aliases() == {"z": "b"} and client.describe_collection("z").documents == B
        assert client.count(collection="z") == sum(client.counts(collection="z").values()) == B
        client.remove_alias("z")
