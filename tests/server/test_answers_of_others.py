"""What another node answers, whatever it is, ends no node and no search for a better answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from catalog.catalog_util import spec, topology
from client.fake_shards import FakeShards, virtually
from harness.connected import Connected
from harness.scripted_network import one_shard
from needle.base.config import RaftConfig
from needle.base.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DiskFull,
    Internal,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    ProtocolError,
    StaleEpoch,
    StorageError,
    UnknownMethod,
    WrongCluster,
)
from needle.base.model import WriteResult
from needle.client.directory import Directory
from needle.client.finding import find_topology
from needle.client.known_topology import AskedTopology
from needle.client.router.fan_out import FanOut
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.catalog_commands import CreateCollection, Identity, encode
from needle.protocol.peer_calls import TOPOLOGY, CatalogCall, TopologyAnswer
from needle.server.chores.context import ChoreContext
from needle.server.chores.field_upkeep import FieldUpkeep
from needle.server.replica import HostedReplica
from needle.server.service.catalog import CatalogCalls
from needle.server.upkeep.leaders import LeaderSpread

GARBAGE = b"\xc1what is this"
ANSWERS = [
    GARBAGE,
    Internal("a bug over there"),
    StorageError("its disk, not ours"),
    ProtocolError("too large"),
    UnknownMethod("another release"),
    InvalidArgument("another release"),
]
Told = bytes | NeedleError


def named(answer: Told) -> str:
    return answer.hex() if isinstance(answer, bytes) else answer.code


class Caller(Connected):
    """A network in which `answer` says what each address answers to each method."""

    def __init__(self, answer: Callable[[str, str], Told]) -> None:
        self._answer = answer

    async def call(self, address: str, method: str, body: Any, timeout: float) -> bytes:
        answer = self._answer(address, method)
        if isinstance(answer, NeedleError):
            raise answer
        return answer


@pytest.mark.parametrize("answer", ANSWERS, ids=named)
async def test_background_work_goes_on_whatever_the_leader_answers(answer: Told) -> None:
    """Where it ends with an error, the node ends."""
    hosted = object.__new__(HostedReplica)  # only what asks the leader
    hosted.group, hosted.caught_up = 1, False
    hosted._host = SimpleNamespace(leader=lambda _: "node-2", is_leader=lambda _: False)  # type: ignore[assignment]
    hosted._call = Caller(lambda *_: answer).call
    await hosted._catch_up()
    nothing: Any = None
    at = ChoreContext(1, nothing, hosted._host, nothing, nothing, nothing, nothing)
    await FieldUpkeep(at, hosted._call, nothing)._learn()
    assert not hosted.caught_up


@pytest.mark.parametrize("answer", ANSWERS, ids=named)
async def test_a_preferred_leader_that_cannot_be_understood_gets_no_leadership(answer: Told) -> None:
    node: Any = SimpleNamespace(peers=Caller(lambda *_: answer), now=lambda: 0.0)
    assert not await LeaderSpread(node)._willing(1, "node-2")


def _asking(caller: Caller, addresses: list[str], now: Any) -> ClusterShards:
    return ClusterShards(caller, AskedTopology(caller, addresses, now), rng=random.Random(1))


def shards_of(first: Told, then: Told) -> ClusterShards:
    """A catalog at two addresses; the one that is asked first answers commands with `first`."""
    now, script = topology(), [first, then]

    def answer(_: str, method: str) -> Told:
        return calls.encode(TopologyAnswer("node-1", now)) if method == TOPOLOGY else script.pop(0)

    return _asking(Caller(answer), ["10.0.0.1:5000", "10.0.0.2:5000"], now)


def test_a_node_of_another_kind_of_cluster_says_nothing_of_a_command_to_the_catalog() -> None:
    async def work() -> None:
        done = WriteResult(version=1, index=1)
        shards = shards_of(UnknownMethod("no such call"), calls.encode(done))
        assert await shards.command(CreateCollection(spec("c"), False, 1), 5) == done

    virtually(work())


async def pass_on(peers: object) -> object:
    """A command, through a node that does not know who leads the catalog."""
    service = object.__new__(CatalogCalls)  # only what passes a command on
    service._host = SimpleNamespace(leader=lambda _: None, is_leader=lambda _: False)  # type: ignore[assignment]
    node: Any = SimpleNamespace(
        node_id="node-9",
        catalog=None,
        config=RaftConfig(node_id="node-9", listen="h:9", data_dir="unused"),
        topology=SimpleNamespace(catalog=("node-1", "node-2")),
        peers=peers,
    )
    service._node = node
    command = encode(CreateCollection(spec("c"), False, 1), Identity(1, 1))
    return await service.catalog(CatalogCall(command, 1.0))


@pytest.mark.parametrize(
    "then", [UnknownMethod("no such call"), WrongCluster("not yours"), DiskFull("no room")], ids=lambda e: e.code
)
async def test_a_node_that_passes_a_command_on_keeps_that_an_earlier_copy_may_be_in_the_log(then: NeedleError) -> None:
    script = [ConnectionLost("sent, no answer"), then]
    with pytest.raises(ConnectionLost):
        await pass_on(Caller(lambda *_: script.pop(0)))


def test_a_command_is_passed_on_within_its_callers_time() -> None:
    """Each node that holds the catalog was given all of it, one after the other, when nobody listened any more."""

    async def silent(node: str, method: str, body: bytes, timeout: float) -> bytes:
        await asyncio.sleep(0.7 if node == "node-1" else timeout)
        given.append(calls.decode(body, CatalogCall).timeout)
        raise DeadlineExceeded(f"{node} does not answer")

    async def work() -> None:
        with pytest.raises(DeadlineExceeded, match="node-1"):
            await pass_on(SimpleNamespace(call=silent))

    given: list[float] = []
    virtually(work())
    assert given[0] == 1.0 and 0 < given[1] < 0.31


def test_a_command_to_the_catalog_whose_answer_cannot_be_read_may_have_been_executed() -> None:
    async def work() -> None:
        with pytest.raises(OutcomeUnknown):
            await shards_of(GARBAGE, GARBAGE).command(CreateCollection(spec("c"), False, 1), 5)

    virtually(work())


def test_who_asks_for_the_topology_passes_over_an_answer_that_cannot_be_read() -> None:
    async def work() -> None:
        now = topology()
        there = ["10.0.0.1:5000", "10.0.0.2:5000"]

        def answer(address: str, _: str) -> Told:
            return GARBAGE if address == there[0] else calls.encode(TopologyAnswer("node-1", now))

        assert await find_topology(Caller(answer), there, 1.0) == now
        shards = _asking(Caller(answer), there, type(now)())
        assert await shards.refresh(now.version, 1.0) == now

    virtually(work())


@pytest.mark.parametrize("version", ["newest", "-", True, None, 1.5])
def test_a_version_that_is_none_is_not_waited_for(version: Any) -> None:
    async def work() -> None:
        shards = FakeShards()
        await FanOut(shards.group, shards.topology, shards.refresh).renew(StaleEpoch("other", version=version), 0.1)

    virtually(work())


def test_a_node_that_cannot_be_understood_is_one_that_does_not_answer() -> None:
    async def work() -> None:
        def answer(address: str, _: str) -> Told:
            return GARBAGE if address == "h:1" else ConnectionLost("down")

        now = one_shard()
        directory = Directory(Caller(answer), 0, lambda: now)
        assert await directory.find_leader(0.2) is None
        assert isinstance(directory.refusal(), ProtocolError)

    virtually(work())
