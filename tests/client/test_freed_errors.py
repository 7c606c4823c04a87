"""What a call failed with goes with its last holder, and takes the batch with it, without the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest

from harness.scripted_network import VECTOR, client_of, one_shard
from needle.base.errors import ConnectionLost, InvalidArgument, NeedleError, OutOfMemory, Overloaded
from needle.client import Client
from needle.client.directory import Caller
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.catalog_commands import DropCollection
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, TopologyAnswer


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Refusing:
    """Every node says who leads, and refuses what it is asked."""

    def __init__(self, refusal: Callable[[], NeedleError]) -> None:
        self.made: list[weakref.ref[NeedleError]] = []
        self._refusal = refusal

    def connected(self, address: str) -> bool:
        return True

    async def connect(self, address: str, timeout: float) -> None: ...

    async def close(self) -> None: ...

    async def call(self, address: str, method: str, body: object, timeout: float) -> bytes:
        if method == TOPOLOGY:
            return calls.encode(TopologyAnswer("n1", one_shard()))
        if method == SHARD_LEADER:
            calls.decode(body, GroupCall)  # type: ignore[arg-type]
            return calls.encode(LeaderAnswer("n1", "n1", 1, {"n1": "h:1", "n2": "h:2", "n3": "h:3"}))
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


def drop(client: Client) -> Awaitable[object]:
    return client._shards.command(DropCollection("c", 1), 0.2)


@pytest.mark.parametrize("call", [insert, batch, search, drop])
@pytest.mark.parametrize("kind", [OutOfMemory, Overloaded, InvalidArgument, ConnectionLost])
async def test_an_error_goes_with_its_last_holder(
    uncollected: None, call: Callable[[Client], Awaitable[object]], kind: type[NeedleError]
) -> None:
    network = Refusing(lambda: kind("refused"))
    caller: Caller = network  # type: ignore[assignment]
    client = client_of(caller)
    with pytest.raises(NeedleError) as raised:
        await call(client)
    last = weakref.ref(raised.value)
    assert network.made and raised.value.__traceback__ is not None, "users see where it came from"
    del raised
    # A task that ended is held by the loop until its next turn; a session may be opened for a moment longer.
    await wait_for(lambda: last() is None and all(one() is None for one in network.made), 10, "the end of all errors")
