"""A leader judges a write only by a state that holds all that earlier leaders committed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import CollectionNotFound, InvalidArgument, NotLeader, Unavailable
from needle.protocol.calls import WriteCall
from needle.protocol.commands import Delete, Session, decode, encode
from needle.routing.stored_collections import StoredCollections
from needle.routing.topology import Topology
from needle.server.machine.disk_space import DiskSpace, Endless
from needle.server.replica import HostedReplica
from needle.server.service.documents import ShardDocuments
from needle.server.service.served import decoded_command
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

    def is_leader(self, group: int) -> bool:
        return True

    def term(self, group: int) -> int:
        return self.term_now

    async def read_index(self, group: int, timeout: float) -> int:
        self.rounds += 1
        await asyncio.sleep(0)
        if self.deposed:
            raise NotLeader("deposed")
        self.applied_term = self.term_now
        return 1

    async def propose(self, group: int, data: bytes, timeout: float) -> Any:
        self.proposed.append(data)
        return None


class Books:
    """A replica that knows the collection once everything is applied."""

    def __init__(self, host: NewLeader) -> None:
        self._host = host
        self.says = ANY
        """What its log says of the catalog."""

    @property
    def view(self) -> Any:
        applied = self._host.applied_term == self._host.term_now
        return SimpleNamespace(catalog=self.says if applied else ANY)

    def validate(self, command: Any) -> Any:
        if self._host.applied_term != self._host.term_now or command.collection != "books":
            raise CollectionNotFound(f"there is no collection {command.collection!r}")
        return command


def service() -> tuple[ShardDocuments, NewLeader]:
    host = NewLeader()
    hosted = object.__new__(HostedReplica)  # only what a write uses
    hosted.space, hosted.collections = DiskSpace(Endless(), "nowhere"), StoredCollections()
    hosted.group, hosted.replica = 1, Books(host)
    hosted._host, hosted._judged_term = host, 0

    class Node:
        node_id = "node-1"
        topology = Topology()
        ports = SimpleNamespace(clock=SimpleNamespace(wall=lambda: 0.0))

        def __init__(self) -> None:
            self.host = host
            self.groups = {1: hosted}

        async def wait_topology(self, version: int, timeout: float) -> bool:
            return False

        def hosted(self, group: int) -> HostedReplica:
            return hosted

    return ShardDocuments(Node(), None), host


async def test_a_new_leader_confirms_its_state_once_a_term_before_it_judges() -> None:
    rpc, host = service()
    for term in (2, 5):
        host.term_now = term
        before = host.rounds
        for _ in range(3):
            await rpc._write(CALL, decode(CALL.command))
        assert host.rounds == before + 1
    assert len(host.proposed) == 6


async def test_what_the_log_says_of_the_catalog_counts_when_all_of_it_is_applied() -> None:
    """Not what was applied when the write arrived."""
    rpc, host = service()
    books: Any = rpc._node.hosted(1).replica
    books.says = CatalogKnown(0, 9)
    with pytest.raises(Unavailable, match="version 9 of the catalog"):
        await rpc._write(CALL, decode(CALL.command))
    assert host.proposed == [] and host.rounds == 1


async def test_a_leader_that_cannot_confirm_proposes_nothing_and_tries_again() -> None:
    rpc, host = service()
    host.deposed = True
    for _ in range(2):
        with pytest.raises(NotLeader):
            await rpc._write(CALL, decode(CALL.command))
    assert host.proposed == []
    host.deposed = False
    await rpc._write(CALL, decode(CALL.command))
    assert len(host.proposed) == 1


async def test_what_is_truly_absent_is_refused_without_another_round() -> None:
    rpc, host = service()
    await rpc._write(CALL, decode(CALL.command))
    missing = WriteCall(1, encode(Delete("films", ["a"], None, Session())), 5.0)
    with pytest.raises(CollectionNotFound, match="films"):
        await rpc._write(missing, decode(missing.command))
    assert host.rounds == 1


async def test_what_is_proposed_holds_nothing_beyond_its_fields() -> None:
    """A caller that puts more behind them is refused; and what is proposed is encoded anew."""
    rpc, host = service()
    data = CALL.command
    longer = data[:1] + bytes((data[1] + 1,)) + data[2:] + b"\x91" * 100 + b"\xc0"
    with pytest.raises(InvalidArgument, match=r"does not decode.*another release"):
        decoded_command(longer)
    other = data.replace(b"\xa5books", b"\xd9\x05books")
    assert decode(other) == decode(data)
    await rpc._write(WriteCall(1, other, 5.0), decode(other))
    assert host.proposed == [data]
