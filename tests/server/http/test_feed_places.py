"""The places of change feeds at a node: taken and given back, however a feed ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.door import Idle, ask, request, serving
from needle.base.access import ADMIN, READER, Identity
from needle.base.errors import Forbidden, Overloaded
from needle.base.rates import Rates
from needle.client.feed import Change
from needle.client.feed_memory import Held
from needle.local.process_cluster import wait_for
from needle.server.http import events
from needle.server.http.bodies import Nothing
from needle.server.http.call import Call
from needle.server.http.feeds import BYTES_MAX, FEEDS_MAX, WAITS_MAX, Feeds, Place
from needle.server.http.memory import BYTES_MAX as REQUESTS_BYTES_MAX
from needle.server.http.memory import Memory, Share
from needle.server.http.problems import HttpError
from needle.server.http.routes import Route
from needle.server.http.streams import EVENTS, stream
from needle.server.service.watched import Watch

ANYONE = Identity("", ADMIN)


class Feed(AsyncIterator[Change]):
    """Of a collection that changes all the time."""

    token = "t"

    def __init__(self, wrong: BaseException | None = None) -> None:
        self.wrong, self.closed, self.held = wrong, False, Held()

    @property
    def waiting(self) -> bool:
        return False

    async def begin(self) -> Feed:
        if self.wrong is not None:
            raise self.wrong
        return self

    async def __anext__(self) -> Change:
        return Change(kind="delete", id="a")

    async def aclose(self) -> None:
        self.closed = True


def call_of(feeds: Feeds, feed: Feed, caller: Identity | None = None) -> Any:
    return SimpleNamespace(
        body=events.ReadChanges(), last_event="", go_on=lambda: None, feeds=feeds, collection="a",
        client=SimpleNamespace(changes=lambda *a, **k: feed),
        caller=caller or ANYONE,
    )  # fmt: skip


async def read(told: Any, sends: int, end: BaseException) -> None:
    """Its reader takes so many messages, and then it ends so."""
    left = sends

    async def send(message: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise end

    await stream(send, told, [], Share(Memory()), "id", ANYONE, EVENTS)


@pytest.mark.parametrize("sends", [0, 1, 2, 5])
@pytest.mark.parametrize("end", [TimeoutError(), asyncio.CancelledError(), ConnectionResetError()])
async def test_a_reader_that_leaves_gives_its_place_back_also_before_the_answer_began(
    sends: int, end: BaseException
) -> None:
    feeds, feed = Feeds(Memory()), Feed()
    told = await events.changes(call_of(feeds, feed))
    assert feeds.open == 1
    with pytest.raises(type(end)):
        await read(told, sends, end)
    assert (feeds.open, feed.closed) == (0, True)


async def test_a_feed_that_never_began_has_no_place() -> None:
    feeds = Feeds(Memory())
    with pytest.raises(TimeoutError):
        await events.changes(call_of(feeds, Feed(TimeoutError())))
    assert feeds.open == 0


async def test_what_feeds_hold_is_a_bounded_part_of_what_requests_hold() -> None:
    memory = Memory()
    feeds = Feeds(memory)
    places = [feeds.begin("") for _ in range(3)]
    places[0].hold(BYTES_MAX - 50_000)
    places[1].hold(60_000)  # who holds little goes on
    with pytest.raises(Overloaded):
        places[1].hold(60_000)
    assert feeds.held == memory.held == BYTES_MAX + 10_000
    places[0].hold(-100_000)
    places[1].hold(60_000)
    other = Share(memory)
    other.take(REQUESTS_BYTES_MAX - memory.held)
    with pytest.raises(Overloaded):
        places[2].hold(100_000)
    other.settle(0)
    for place in places:
        place.close()
        place.close()
        place.hold(5)  # what comes too late
    assert (feeds.open, feeds.held, memory.held) == (0, 0, 0)


async def test_a_feed_without_room_ends_with_a_problem_that_passes() -> None:
    class Full(Feed):
        async def __anext__(self) -> Change:
            self.held.take(BYTES_MAX + 1)
            raise AssertionError

    feeds, sent = Feeds(Memory()), list[bytes]()
    told = await events.changes(call_of(feeds, Full()))

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    assert isinstance(await stream(send, told, [], Share(Memory()), "id", ANYONE, EVENTS), Overloaded)
    assert b"event: problem" in sent[-2] and b'"retryable":true' in sent[-2]
    assert (feeds.open, feeds.held) == (0, 0)


async def test_a_key_that_is_limited_while_its_feed_is_open_is_held_back() -> None:
    key, feeds, parts = Identity("key", READER), Feeds(Memory()), 0
    told = await events.changes(call_of(feeds, Feed(), key))

    async def send(message: Any) -> None:
        nonlocal parts
        parts += bool(message.get("body"))
        await asyncio.sleep(0)
        if parts == 10:
            key.limit(Rates(requests=0.001))

    sending = asyncio.create_task(stream(send, told, [], Share(Memory()), "id", key, EVENTS))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert 10 <= parts <= 12
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert feeds.open == 0


@pytest.mark.parametrize(("shards", "most"), [(0, FEEDS_MAX), (8, 256), (17, 120), (1000, 2), (9000, 1)])
async def test_places_are_as_many_as_calls_may_wait_and_a_key_has_half_of_them(shards: int, most: int) -> None:
    feeds = Feeds(Memory(), lambda: shards)

    def taken(key: str) -> list[Place]:
        found = list[Place]()
        with pytest.raises(HttpError) as caught:
            while True:
                found.append(feeds.begin(key))
        assert caught.value.status == 429
        return found

    places = taken("greedy")
    assert len(places) == max(1, most // 2)
    places += taken("")
    assert len(places) == most
    assert most == 1 or most * shards <= WAITS_MAX
    places.pop(0).close()
    feeds.begin("greedy").close()
    for place in places:
        place.close()
    assert (feeds.open, dict(feeds.of_key)) == (0, {})


@pytest.mark.parametrize(("endless", "seconds"), [(True, 2.0), (False, 3602.0)])
async def test_a_feed_took_as_long_as_until_its_answer_began(
    endless: bool, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    class Clocked(Idle):
        time, observed = 0.0, -1.0

        def now(self) -> float:
            return self.time

        def observe(self, what: str, seconds: float, error: object) -> None:
            self.observed = seconds

    node = Clocked()
    node.service.watch = Watch(node, 60.0, None)

    async def parts(call: Call) -> AsyncIterator[bytes]:
        async def told() -> AsyncIterator[bytes]:
            yield b"a: b\n\n"
            node.time += 3600
            yield b"a: c\n\n"

        node.time += 2
        return told()

    async with serving([Route("GET", "/v1/parts", parts, "", Nothing, None, "reader", events=endless)], node) as server:
        assert (await ask(server, request("GET", "/v1/parts")))[0] == 200
        await wait_for(lambda: server.door._requests == 0, 30, "the end of the request")
    assert node.observed == seconds
    assert any("http_parts" in record.getMessage() for record in caplog.records) != endless


class Later(Feed):
    """Of a collection that changes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.changed = asyncio.Event(), asyncio.Event()

    async def __anext__(self) -> Change:
        self.read.set()
        await self.changed.wait()
        return Change(kind="insert", id="secret")


async def test_what_is_written_once_a_key_is_revoked_is_not_told_to_it() -> None:
    """Whether it may go on was asked before it waited for a change, not before that was given out."""
    feed, revoked = Later(), False
    call = call_of(Feeds(Memory()), feed)

    def go_on() -> None:
        if revoked:
            raise Forbidden("the key was revoked")

    call.go_on = go_on
    told = await events.changes(call)
    assert await anext(told) == events.RETRY
    waiting = asyncio.ensure_future(anext(told))
    await feed.read.wait()
    revoked = True
    feed.changed.set()
    with pytest.raises(Forbidden):
        await waiting
    await told.aclose()
