"""A search of what one shard owns is one coroutine, and is answered as any other: by the newest map, as fresh, in the
same words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from client.fake_shards import FakeGroup, FakeShards, ask, fill, virtually
from needle.base.errors import CollectionNotFound, DeadlineExceeded, InvalidArgument, NeedleError
from needle.base.model import ReadMode, SearchRequest
from needle.client.router import router as routing
from needle.client.router.fan_out import FanOut
from needle.client.router.router import Router
from needle.routing.topology import AliasInfo, Topology

MODES = [ReadMode.STRONG, ReadMode.LEASED, ReadMode.EVENTUAL]
EVERYTHING = (b"", None)


def one_shard() -> FakeShards:
    """Two shards, one of which owns everything."""
    shards = FakeShards(2)
    shards.move(EVERYTHING, 0)
    shards.known = shards.real
    return shards


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of reads that went the long way."""
    found: list[str] = []
    read = FanOut.read

    def noted(self: FanOut, method: str, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        found.append(method)
        return read(self, method, *args, **options)

    monkeypatch.setattr(FanOut, "read", noted)
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "how",
    [{}, {"k": 12}, {"max_distance": 9.0}, {"offset": 2, "k": 7}, {"min_score": -4.0}, {"filter": b'{"a":{"$eq":1}}'}],
    ids=str,
)
def test_the_answer_is_that_of_the_long_way(
    mode: ReadMode, how: dict[str, Any], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        await fill(router, metadata=b'{"a":1}')
        request = msgspec.structs.replace(ask(30, 7), **how)
        told = list[tuple[int, float]]()
        router.stats.on_search = lambda fanout, seconds: told.append((fanout, seconds))
        short = await router.search(request, mode, 5)
        assert reads == []
        monkeypatch.setattr(routing, "search_of_one", lambda *_: None)
        assert await router.search(request, mode, 5) == short
        assert reads == ["search"]
        assert short.batch.ids and short.applied == {0: shards.log[0]} and router.seen[0] == shards.log[0]
        assert [fanout for fanout, _ in told] == [1, 1] and short.size > 0

    virtually(work())


@pytest.mark.parametrize("mode", MODES)
def test_a_map_that_is_old_is_replaced_by_the_newer_one(mode: ReadMode, reads: list[str]) -> None:
    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        await fill(router)
        shards.move(EVERYTHING, 1)
        found = await router.search(ask(30, 3), mode, 5)
        assert found.batch.ids == ["doc-030", "doc-029", "doc-031"]
        assert (found.applied, found.epoch) == ({1: shards.log[1]}, shards.owned().epoch)
        assert reads == ["search"]

    virtually(work())


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_on_other_ranges_is_not_used(mode: ReadMode) -> None:
    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        await fill(router)
        shards.lies[0] = 1
        with pytest.raises(DeadlineExceeded, match="no agreement on the shard map within"):
            await router.search(ask(1), mode, 0.5)
        shards.delay["0/a"] = 0.5
        with pytest.raises(DeadlineExceeded):
            await router.search(ask(1), ReadMode.STRONG, 0.5)

    virtually(work())


def test_a_shard_that_does_not_have_the_collection_yet_is_waited_for(reads: list[str]) -> None:
    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        await fill(router)
        shards.behind = 3
        assert (await router.search(ask(1, 1), ReadMode.STRONG, 5)).batch.ids == ["doc-001"]
        # It is not asked again at once: the catalog is asked first whether the collection is there.
        assert shards.refreshed and reads == ["search"] * 3
        shards.behind = 10**6
        with pytest.raises(DeadlineExceeded, match="a shard does not have collection 'default' of the catalog after"):
            await router.search(ask(1, 1), ReadMode.STRONG, 0.5)

    virtually(work())


def test_a_collection_that_was_made_again_is_the_new_one() -> None:
    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        made = msgspec.structs.replace(shards.real.collections[0], id=6)
        await fill(router)
        shards.known = msgspec.structs.replace(shards.known, collections=(made,), version=shards.known.version - 1)
        assert (await router.search(ask(1, 1), ReadMode.LEASED, 5)).batch.ids == ["doc-001"]
        shards.known = shards.real = msgspec.structs.replace(
            shards.real, collections=(), version=shards.real.version + 1
        )
        with pytest.raises(CollectionNotFound, match="there is no collection 'default'"):
            await router.search(ask(1, 1), ReadMode.LEASED, 5)

    virtually(work())


def test_what_a_shard_says_is_said_in_the_callers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: FakeGroup, call: Any) -> object:
        raise InvalidArgument("collection 'default@7' has other dimensions", field="query", collection="default@7")

    async def work() -> None:
        router = Router(one_shard())
        monkeypatch.setattr(FakeGroup, "_answer", refuses)
        for mode in MODES:
            with pytest.raises(InvalidArgument, match="collection 'default' has") as caught:
                await router.search(ask(1), mode, 5)
            assert caught.value.details["collection"] == "default"

    virtually(work())


@pytest.mark.parametrize(
    "other",
    [
        lambda real: msgspec.structs.replace(real, aliases=(AliasInfo("other", "default"),)),
        lambda real: msgspec.structs.replace(real, map=real.map.with_owner((b"", b"\x10"), 1)),
    ],
    ids=["alias", "two owners"],
)
def test_others_go_the_long_way(other: Callable[[Topology], Topology], reads: list[str]) -> None:
    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        await fill(router, 5)
        shards.known = shards.real = other(shards.real)
        request = msgspec.structs.replace(ask(1, 1), collection="other" if shards.real.aliases else "default")
        found = await router.search(request, ReadMode.STRONG, 5)
        assert found.batch.ids == ["doc-001"] and reads == ["search"]

    virtually(work())


def test_a_session_does_not_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    answer = FakeGroup._answer

    def noted(self: FakeGroup, call: Any) -> object:
        asked.append(call.freshness.min_index)
        return answer(self, call)

    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        await fill(router, 5)
        monkeypatch.setattr(FakeGroup, "_answer", noted)
        await router.search(ask(1), ReadMode.EVENTUAL, 5, session=True)
        await router.search(ask(1), ReadMode.EVENTUAL, 5)
        assert asked == [shards.log[0], 0]

    virtually(work())


def test_a_caller_that_goes_leaves_nothing_behind() -> None:
    async def work() -> None:
        shards = one_shard()
        router = Router(shards)
        await fill(router, 5)
        for mode in MODES:
            shards.delay = dict.fromkeys(("0/a", "0/b", "0/c"), 3.0)
            task = asyncio.ensure_future(router.search(ask(1), mode, 5))
            await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == {asyncio.current_task()}
        shards.delay.clear()
        assert await _ids(router, ask(1, 1)) == ["doc-001"]

    virtually(work())


async def _ids(router: Router, request: SearchRequest) -> list[str] | NeedleError:
    return (await router.search(request, ReadMode.STRONG, 5)).batch.ids
