"""What a call failed with goes with its last holder, and takes the batch with it, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest

from harness.scripted_network import VECTOR, client_of, some_shards
from needle.base.errors import (
    ConnectionLost,
    InvalidArgument,
    NeedleError,
    OutOfMemory,
    Overloaded,
    TooManyRequests,
    TooStale,
    UnknownMethod,
)
from needle.client import Client
from needle.client.directory import Caller
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.catalog_commands import DropCollection
from needle.protocol.node_calls import READ_SHARDS, ReadShard, ReadShardsAnswer, ReadShardsCall, Refused
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, TopologyAnswer


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Refusing:
    """Every node says who leads, and refuses what it is asked. each: of several shards it refuses each by itself."""

    def __init__(self, refusal: Callable[[], NeedleError], *, shards: int = 1, each: bool = False) -> None:
        self.made: list[weakref.ref[NeedleError]] = []
        self.asked: list[str] = []
        self.topology = some_shards(shards)
        self._refusal, self._each = refusal, each

    def connected(self, address: str) -> bool:
        return True

    async def connect(self, address: str, timeout: float) -> None: ...

    async def close(self) -> None: ...

    async def call(self, address: str, method: str, body: object, timeout: float) -> bytes:
        if method == TOPOLOGY:
            return calls.encode(TopologyAnswer("n1", self.topology))
        if method == SHARD_LEADER:
            calls.decode(body, GroupCall)  # type: ignore[arg-type]
            return calls.encode(LeaderAnswer("n1", "n1", 1, {"n1": "h:1", "n2": "h:2", "n3": "h:3"}))
        self.asked.append(method)
        if method == READ_SHARDS and self._each:
            call = calls.decode(body, ReadShardsCall)  # type: ignore[arg-type]
            refused = [ReadShard(refused=Refused.of(self._refusal())) for _ in call.shards]
            return calls.encode(ReadShardsAnswer(call.epoch, refused))
        error = self._refusal()
        self.made.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error  # else it is this frame that holds it


def insert(client: Client) -> Awaitable[object]:
    return client.insert("a", VECTOR, {"text": "x" * 1000}, timeout=0.2)


def batch(client: Client) -> Awaitable[object]:
    return client.insert_batch([(f"a{n}", VECTOR, {}) for n in range(10)], timeout=0.2)


def search(client: Client) -> Awaitable[object]:
    return client.search_strong(VECTOR, 3, timeout=0.2)


def count(client: Client) -> Awaitable[object]:
    return client.count({"a": 1}, timeout=0.2)


def eventual(client: Client) -> Awaitable[object]:
    return client.count({"a": 1}, mode="eventual", timeout=0.2)


def drop(client: Client) -> Awaitable[object]:
    return client._shards.command(DropCollection("c", 1), 0.2)


async def check_all_go(network: Refusing, call: Callable[[Client], Awaitable[object]]) -> None:
    caller: Caller = network  # type: ignore[assignment]
    client = client_of(caller, network.topology)
    for info in network.topology.shards:
        await client._shards.group(info.shard).find_leader(1.0)
    with pytest.raises(NeedleError) as raised:
        await call(client)
    last = weakref.ref(raised.value)
    assert network.asked and raised.value.__traceback__ is not None, "users see where it came from"
    del raised
    # A task that ended is held by the loop until its next turn; a session may be opened for a moment longer.
    await wait_for(lambda: last() is None and all(one() is None for one in network.made), 10, "the end of all errors")


@pytest.mark.parametrize("call", [insert, batch, search, eventual, drop])
@pytest.mark.parametrize("kind", [OutOfMemory, Overloaded, TooManyRequests, InvalidArgument, ConnectionLost])
async def test_an_error_goes_with_its_last_holder(
    uncollected: None, call: Callable[[Client], Awaitable[object]], kind: type[NeedleError]
) -> None:
    await check_all_go(Refusing(lambda: kind("refused")), call)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("call", [search, count, eventual])
@pytest.mark.parametrize(
    "kind", [OutOfMemory, Overloaded, TooManyRequests, InvalidArgument, ConnectionLost, TooStale, UnknownMethod]
)
async def test_so_do_errors_of_several_shards(
    uncollected: None, call: Callable[[Client], Awaitable[object]], kind: type[NeedleError], each: bool
) -> None:
    """What other shards had answered by then was held, too."""
    network = Refusing(lambda: kind("refused"), shards=4, each=each)
    await check_all_go(network, call)
    assert call is search or READ_SHARDS in network.asked
