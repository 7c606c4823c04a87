"""A leader judges a write only by a state that holds all that earlier leaders committed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from needle.base.errors import CollectionNotFound, DeadlineExceeded, InvalidArgument, NotLeader, Unavailable
from needle.protocol.calls import WriteCall
from needle.protocol.commands import Delete, Session, decode, encode
from needle.routing.shard_map import initial_map
from needle.routing.stored_collections import StoredCollections
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import Ownership, Topology
from needle.server.machine.disk_space import DiskSpace, Endless
from needle.server.machine.memory_space import MemorySpace, endless
from needle.server.machine.space import Space
from needle.server.replica import HostedReplica
from needle.server.service.documents import ShardDocuments
from needle.server.service.served import Deadline, decoded_command
from needle.shard.catalog_known import ANY, CatalogKnown

CALL = WriteCall(1, encode(Delete("books", ["a"], None, Session())), 5.0)


class NewLeader:
    """A host that leads, but has applied its term's first entry only after a confirmed read."""

    def __init__(self) -> None:
        self.term_now = 2
        self.applied_term = 0
        self.rounds = 0
        self.proposed: list[bytes] = []
        self.deposed = False
        self.given: list[float] = []
        self.took = lambda: None

    def is_leader(self, group: int) -> bool:
        return True

    def term(self, group: int) -> int:
        return self.term_now

    async def read_index(self, group: int, timeout: float) -> int:
        self.rounds += 1
        self.given.append(timeout)
        self.took()
        await asyncio.sleep(0)
        if self.deposed:
            raise NotLeader("deposed")
        self.applied_term = self.term_now
        return 1

    async def propose(self, group: int, data: bytes, timeout: float) -> Any:
        self.proposed.append(data)
        self.given.append(timeout)
        return None


class Books:
    """A replica that knows the collection once everything is applied."""

    def __init__(self, host: NewLeader) -> None:
        self._host = host
        self.says = ANY
        """What its log says of the catalog."""
        self.fence, self.made = None, True

    @property
    def view(self) -> Any:
        applied = self._host.applied_term == self._host.term_now
        return SimpleNamespace(catalog=self.says if applied else ANY)

    def validate(self, command: Any) -> Any:
        there = self.made and command.collection == "books"
        if self._host.applied_term != self._host.term_now or not there:
            raise CollectionNotFound(f"there is no collection {command.collection!r}")
        return command


def service() -> tuple[ShardDocuments, NewLeader]:
    host = NewLeader()
    hosted = object.__new__(HostedReplica)  # only what a write uses
    hosted.space, hosted.collections = Space(DiskSpace(Endless(), "nowhere"), MemorySpace(endless)), StoredCollections()
    hosted.group, hosted.replica = 1, Books(host)
    hosted.calls = SimpleNamespace(wrote=lambda *_: None)
    hosted._host, hosted._judged_term = host, 0

    class Node:
        node_id = "node-1"
        topology = Topology()
        ports = SimpleNamespace(clock=SimpleNamespace(wall=lambda: 0.0))

        def __init__(self) -> None:
            self.host = host
            self.groups = {1: hosted}
            self.time = 0.0

        def now(self) -> float:
            return self.time

        async def wait_topology(self, version: int, timeout: float) -> bool:
            return False

        def hosted(self, group: int) -> HostedReplica:
            return hosted

    return ShardDocuments(Node(), None), host


async def write(rpc: ShardDocuments, call: WriteCall) -> None:
    await rpc._write(call, decode(call.command), Deadline(rpc._node, call.timeout))


async def test_a_new_leader_confirms_its_state_once_a_term_before_it_judges() -> None:
    rpc, host = service()
    for term in (2, 5):
        host.term_now = term
        before = host.rounds
        for _ in range(3):
            await write(rpc, CALL)
        assert host.rounds == before + 1
    assert len(host.proposed) == 6


async def test_what_the_log_says_of_the_catalog_counts_when_all_of_it_is_applied() -> None:
    """Not what was applied when the write arrived."""
    rpc, host = service()
    books: Any = rpc._node.hosted(1).replica
    books.says = CatalogKnown(0, 9)
    with pytest.raises(Unavailable, match="version 9 of the catalog"):
        await write(rpc, CALL)
    assert host.proposed == [] and host.rounds == 1


async def test_a_leader_that_cannot_confirm_proposes_nothing_and_tries_again() -> None:
    rpc, host = service()
    host.deposed = True
    for _ in range(2):
        with pytest.raises(NotLeader):
            await write(rpc, CALL)
    assert host.proposed == []
    host.deposed = False
    await write(rpc, CALL)
    assert len(host.proposed) == 1


async def test_what_is_truly_absent_is_refused_without_another_round() -> None:
    rpc, host = service()
    await write(rpc, CALL)
    missing = WriteCall(1, encode(Delete("films", ["a"], None, Session())), 5.0)
    with pytest.raises(CollectionNotFound, match="films"):
        await write(rpc, missing)
    assert host.rounds == 1


async def test_what_is_proposed_holds_nothing_beyond_its_fields() -> None:
    """A caller that puts more behind them is refused; and what is proposed is encoded again."""
    rpc, host = service()
    data = CALL.command
    longer = data[:1] + bytes((data[1] + 1,)) + data[2:] + b"\x91" * 100 + b"\xc0"
    with pytest.raises(InvalidArgument, match=r"does not decode.*another release"):
        decoded_command(longer)
    other = data.replace(b"\xa5books", b"\xd9\x05books")
    assert decode(other) == decode(data)
    await write(rpc, WriteCall(1, other, 5.0))
    assert host.proposed == [data]


@pytest.mark.parametrize("making", [1.5, 3.0])
async def test_all_that_a_write_waits_for_has_one_deadline(making: float) -> None:
    """For freshness, and for a collection that the shard lacks: it is not proposed when its caller has given up."""
    rpc, host = service()
    node: Any = rpc._node
    books = node.hosted(1).replica
    books.made, node.ownership = False, Ownership(initial_map(CONSISTENT_HASH, 1))

    def passes(seconds: float) -> None:
        node.time += seconds

    async def confirmed(timeout: float) -> Any:
        passes(0.5)
        return SimpleNamespace(version=0, collection=lambda name: SimpleNamespace(stored_name="books"))

    async def wait_topology(version: int, timeout: float) -> bool:
        return True

    async def reconcile(group: int, timeout: float) -> None:
        host.given.append(timeout)
        passes(making)
        books.made = True

    node.confirmed, node.wait_topology, node.reconciler = confirmed, wait_topology, SimpleNamespace(reconcile=reconcile)
    host.took = lambda: passes(2.0)
    writing = rpc._shard_write(msgspec.structs.replace(CALL, epoch=node.ownership.epoch))
    if making < 2.5:
        await writing
        assert host.given == [5.0, 2.5, 1.0] and len(host.proposed) == 1
    else:
        with pytest.raises(DeadlineExceeded, match="nothing was done"):
            await writing
        assert host.given == [5.0, 2.5] and host.proposed == []
