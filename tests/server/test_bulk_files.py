"""How a replica gets a file that its next entry names: from peers that have it, or what becomes of it if none has."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from needle.base.errors import CorruptDocuments, FileAwaited, Unavailable
from needle.base.ids import NodeId
from needle.base.parts import Payload
from needle.protocol import calls
from needle.protocol.bulk_calls import BulkBytesAnswer, BulkBytesCall
from needle.protocol.commands import DropCollection
from needle.server.chores.bulk_files import GONE_SECONDS, UNKNOWN_SECONDS, UNREACHED_SECONDS, BulkFiles
from needle.shard.bulk.staged import LOADS_MAX, read_name, rows_name
from needle.shard.state_machine import Replica
from shard.replica_util import Log
from shard.test_bulk import COUNT, index_file, load, load_with, opened, other_rows, stage

DOWN = None


class Peers:
    """The other replicas as this one reaches them, and its clock. replicas: by node; DOWN is one that does not
    answer."""

    def __init__(self, mine: Replica, **replicas: Replica | None) -> None:
        self.now, self.mine = 100.0, mine
        self._replicas = {NodeId(int(name[1:])): replica for name, replica in replicas.items()}
        status = SimpleNamespace(voters=[*self._replicas, 9], learners=[], node_id=9, leader=2)
        host = SimpleNamespace(status=lambda _: status, stopped=False)
        clock = SimpleNamespace(monotonic=lambda: self.now)
        at: Any = SimpleNamespace(replica=mine, pool=self, group=1, name="shard 0", host=host, clock=clock)
        self.chore = BulkFiles(at, self._call)

    async def run(self, work: Any, *arguments: Any) -> Any:
        return work(*arguments)

    async def _call(self, node: NodeId, _: str, body: bytes, __: float) -> Payload:
        replica = self._replicas[node]
        if replica is None:
            raise Unavailable("it is down")
        call = calls.decode(body, BulkBytesCall)
        data = replica.staged.read(call.name, call.offset, call.length)
        if data is not None:
            return calls.encode(BulkBytesAnswer(True, False, data))
        vectors = replica.held.vectors_of(1)
        return calls.encode(BulkBytesAnswer(False, vectors is not None and vectors.next_ordinal > 0, b""))

    def look(self, after: float = 0.0) -> None:
        self.now += after
        awaited = self.mine.staged.awaited
        assert awaited is not None
        asyncio.run(self.chore._get(awaited))


def waiting(replica: Replica, entries: list[Any]) -> None:
    try:
        replica.apply(entries)
    except FileAwaited:
        return
    raise AssertionError("it has the file")


def test_a_file_comes_from_a_peer_though_files_of_other_loads_are_here(tmp_path: Path) -> None:
    log = Log()
    one, mine = opened(tmp_path / "1", log), opened(tmp_path / "mine", log)
    stage(one)
    other_rows(mine.staged, LOADS_MAX)
    entries = log.add(load())
    waiting(mine, entries)
    Peers(mine, n1=DOWN, n2=one).look()
    [done] = mine.apply(entries)
    assert done.count == COUNT


def test_what_all_peers_are_past_is_lost_after_a_while(tmp_path: Path) -> None:
    log = Log()
    one, mine = opened(tmp_path / "1", log), opened(tmp_path / "mine", log)
    stage(one)
    entries = log.add(load())
    one.apply(entries)
    one.staged.forget(1)
    waiting(mine, entries)
    peers = Peers(mine, n1=one, n2=one)
    peers.look()
    peers.look(GONE_SECONDS / 2)
    assert mine.staged.lost == ""
    peers.look(GONE_SECONDS / 2)
    assert mine.staged.lost != ""


def test_a_peer_that_is_down_delays_that_and_does_not_prevent_it(tmp_path: Path) -> None:
    log = Log()
    one, mine = opened(tmp_path / "1", log), opened(tmp_path / "mine", log)
    stage(one)
    entries = log.add(load())
    one.apply(entries)
    one.staged.forget(1)
    waiting(mine, entries)
    peers = Peers(mine, n1=one, n2=DOWN)
    peers.look()
    peers.look(GONE_SECONDS)
    assert mine.staged.lost == "", "the one that is down may have it"
    peers.look(UNREACHED_SECONDS)
    try:
        mine.apply(entries)
    except CorruptDocuments:
        return
    raise AssertionError("no snapshot is asked for")


def test_while_no_peer_says_that_it_is_past_the_entry_nothing_is_lost(tmp_path: Path) -> None:
    log = Log()
    one, mine = opened(tmp_path / "1", log), opened(tmp_path / "mine", log)
    waiting(mine, log.add(load()))
    peers = Peers(mine, n1=one, n2=DOWN)
    for _ in range(3):
        peers.look(10 * UNREACHED_SECONDS)
    assert mine.staged.lost == ""
    stage(one)
    peers.look()
    [done] = mine.apply(log.entries[1:])
    assert done.count == COUNT


def test_index_files_of_a_load_go_with_their_collection_though_nobody_else_knew_of_them(tmp_path: Path) -> None:
    """It was dropped before the pass in which the keeper of index files hears of them."""
    log = Log()
    replica = opened(tmp_path / "1", log)
    segment, name, data = index_file(tmp_path / "made")
    stage(replica)
    replica.staged.put(name, len(data), 0, data)
    replica.apply(log.add(load_with(segment)))
    given = Path(replica.held.segment_directory) / name
    peers = Peers(replica)
    asyncio.run(peers.chore._tidy(peers.now))
    assert given.exists() and replica.staged.has(name), "for replicas that have not got it yet"
    replica.apply(log.add(DropCollection("c")))
    asyncio.run(peers.chore._tidy(peers.now))
    assert not given.exists() and replica.staged.names() == []


def test_files_of_a_collection_that_nobody_makes_go_after_a_while(tmp_path: Path) -> None:
    log = Log()
    mine = opened(tmp_path / "mine", log)
    stage(mine)  # of a collection that is there, and waits for its load
    here = set(mine.staged.names())
    data = next(Path(mine.staged.path(name)).read_bytes() for name in here)
    mine.staged.put(rows_name(999, read_name(next(iter(here))).checksum), len(data), 0, data)
    mine.staged.put(rows_name(998, "0" * 32), 100, 0, b"part")
    peers = Peers(mine)
    for after in (0.0, UNKNOWN_SECONDS - 1):
        peers.now += after
        asyncio.run(peers.chore._tidy(peers.now))
        assert mine.staged.collections() == {1, 998, 999}
    asyncio.run(peers.chore._tidy(peers.now + 1))
    assert set(mine.staged.names()) == here and mine.staged.collections() == {1}
