"""A change feed as server-sent events (WHATWG HTML, 9.2): an answer that has no end.

Invariants: the `id` of an event is the token behind it, so who comes back with it as `last-event-id`, at any node,
misses nothing and hears nothing twice. A reader that takes its time is read less for: what is held for it is a page of
each shard, and a part of the answer. It ends in good order when the node stops, or goes into maintenance, or when its
key opens nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, TooManyRequests, invalid
from needle.base.filters.builder import Filter as Condition
from needle.client.feed import Change, Changes
from needle.server.http.bodies import Body, Filter, Names, Vector, VectorType
from needle.server.http.call import Call, vector_of
from needle.server.http.feeds import Place
from needle.server.http.problems import Problem
from needle.server.http.texts import of_text

TYPE: Final = "text/event-stream"
LOOK_SECONDS: Final = 1.0
"""So often it is looked whether the feed may go on."""
SILENT_SECONDS: Final = 15.0
"""After which a reader that has heard nothing is told the place: proxies end what is silent for longer."""
PART_BYTES: Final = 64 * 1024
PAGE: Final = 100
"""Changes that a shard is asked for at once."""
RETRY: Final = b"retry: 1000\n\n"
"""Milliseconds until a browser comes back."""

_json = msgspec.json.Encoder()


class ReadChanges(Body, frozen=True, kw_only=True):
    """since: "now", "start" for all documents first, or the id of an event, to go on behind it; the header
    `last-event-id` goes before it. filter: as JSON; as if there were only documents that match. vectors: names of
    named vectors that come with documents. timeout: seconds that a shard may say nothing."""

    since: str = "now"
    filter: str | None = None
    with_vectors: bool = True
    vectors: Names | None = None


class Watch(Body, frozen=True, kw_only=True):
    """vector, or a text instead, as in Search: the events are of documents that are at most max_distance from it, or
    score min_score at least. vector_name: near by their vectors of this name, which come with them. since, timeout: as
    in ReadChanges, without "start". filter: as if there were only documents that match."""

    vector: Vector | None = None
    vector_type: VectorType = "float32"
    text: str | None = None
    max_distance: float | None = None
    min_score: float | None = None
    vector_name: str | None = None
    since: str = "now"
    filter: Filter = None
    with_vectors: bool = True


class ChangeEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The data of an event "insert", "update" or "delete" (docs/changes.md). shard: -1 between "reset" and "ready",
    whose data is {}. A deletion has neither vector nor metadata. distance: of a document that is watched for.
    vectors: of the named ones that were asked for, those that it has."""

    id: str
    version: int
    shard: int
    metadata: Any = None
    vector: list[float] | None = None
    distance: float | None = None
    vectors: dict[str, list[float]] | None = None


class Told(AsyncIterator[bytes]):
    """The parts of one feed. Closed before the first one was read, a generator does nothing of what it has to."""

    def __init__(self, call: Call, feed: Changes, place: Place) -> None:
        self._feed, self._place, self._parts = feed, place, _told(call, feed)

    async def __anext__(self) -> bytes:
        return await anext(self._parts)

    async def aclose(self) -> None:
        """Idempotent."""
        self._place.close()
        try:
            await self._parts.aclose()
        finally:
            await self._feed.aclose()


async def changes(call: Call) -> Told:
    """Where it begins is found out before the answer does: errors up to then have a status."""
    body: ReadChanges = call.body
    call.go_on()
    since = call.last_event or body.since
    feed = call.client.changes(
        call.collection, since=since, filter=_filter(body.filter), with_vectors=body.with_vectors,
        vectors=body.vectors, timeout=body.timeout,
    )  # fmt: skip
    return await _begun(call, feed)


async def watch(call: Call) -> Told:
    """As `changes`, of documents that come near."""
    body: Watch = call.body
    call.go_on()
    vector, seconds = await of_text(call, body.vector, body.text)
    if vector is None:
        raise InvalidArgument("give a vector, or a text of which it is made", field="vector")
    near, wanted = await call.beside(
        lambda: (
            vector_of(vector, body.vector_type),
            None if body.filter is None else Condition.parse(body.filter),
        )
    )
    feed = call.client.watch(
        call.collection, near, max_distance=body.max_distance, min_score=body.min_score, vector_name=body.vector_name,
        since=call.last_event or body.since, filter=wanted, with_vectors=body.with_vectors, timeout=seconds,
    )  # fmt: skip
    return await _begun(call, feed)


async def _begun(call: Call, feed: Changes) -> Told:
    feed.page_max = PAGE
    place = call.feeds.begin(call.caller.name)  # from here on, for beginning takes time
    feed.held.told = place.hold
    try:
        await feed.begin()
    except BaseException:
        place.close()
        raise
    return Told(call, feed, place)


def ending(problem: Problem) -> bytes:
    """The last event of a feed that has broken off."""
    return b"event: problem\ndata: " + _json.encode(problem) + b"\n\n"


async def _told(call: Call, feed: Changes) -> AsyncGenerator[bytes]:
    caller, silent, loop = call.caller, 0.0, asyncio.get_running_loop()
    yield RETRY
    while True:
        call.go_on()
        part = await _part(feed)
        silent = 0.0 if part else silent + LOOK_SECONDS
        if silent >= SILENT_SECONDS:
            part, silent = _place(feed), 0.0
        if not part:
            continue
        call.go_on()  # it may have been a second, and its key was revoked meanwhile
        yield part
        # The key's rates, as they are now: what was sent is paid for.
        while (meter := caller.meter) is not None and not part.startswith(b"id"):
            try:
                meter.admit(loop.time())
                break
            except TooManyRequests as error:
                await asyncio.sleep(min(LOOK_SECONDS, float(str(error.details["wait"]))))
                call.go_on()


async def _part(feed: Changes) -> bytes:
    """The changes that come next, once there is one; b"" if there is none for LOOK_SECONDS."""
    parts, size = list[bytes](), 0
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            while not parts or (feed.waiting and size < PART_BYTES):
                parts.append(_event(await anext(feed), feed.token))
                size += len(parts[-1])
    except TimeoutError:
        pass
    return b"".join(parts)


def _event(change: Change, token: str) -> bytes:
    data: ChangeEvent | dict[str, str] = {}
    if change.kind not in ("reset", "ready"):
        vector = None if change.vector is None else change.vector.tolist()
        named = None if change.vectors is None else {name: one.tolist() for name, one in change.vectors.items()}
        data = ChangeEvent(
            id=change.id, version=change.version, shard=change.shard, metadata=change.metadata, vector=vector,
            distance=change.distance, vectors=named,
        )  # fmt: skip
    return b"event: %b\nid: %b\ndata: %b\n\n" % (change.kind.encode(), token.encode(), _json.encode(data))


def _place(feed: Changes) -> bytes:
    """No event: a browser only remembers the id."""
    return b"id: %b\n: nothing has changed\n\n" % feed.token.encode()


def _filter(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except DECODE_ERRORS:
        raise invalid("filter", text, 'a filter as JSON, as {"genre": "scifi"}, percent-encoded') from None
