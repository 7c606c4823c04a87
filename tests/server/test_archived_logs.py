"""What a node answers to an archiver of a shard's log."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import Unavailable
from needle.multiraft.host import Host
from needle.protocol.archive_calls import LogCall
from needle.raft.messages import Entry
from needle.server.service.archiving import Archiving

APPLIED, LAST = 9, 7


class _Log:
    start = SimpleNamespace(index=2)

    def last_index(self) -> int:
        return LAST

    def term(self, index: int) -> int:
        return 1

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        if high > LAST + 1:
            raise KeyError((low, high))
        return [Entry(index, 1, 0, b"e%d" % index) for index in range(low, high)]


def _archiving(*, leads: bool) -> Archiving:
    """Of a node whose disk has less of the log than it has applied."""
    host: Any = Host.__new__(Host)
    raft = SimpleNamespace(commit=APPLIED)
    host.engine = SimpleNamespace(find=lambda group: SimpleNamespace(log=_Log(), raft=raft))

    async def read_index(group: int, timeout: float) -> int:
        return APPLIED

    async def blocking(work: Any, *arguments: object) -> Any:
        return APPLIED, "digest"

    host.is_leader, host.read_index, host.note_archived = lambda group: leads, read_index, lambda *said: None
    replica = SimpleNamespace(look=None, held=SimpleNamespace(refused_load=lambda *load: False))
    node: Any = SimpleNamespace(
        host=host,
        hosted=lambda group: SimpleNamespace(replica=replica),
        blocking=blocking,
        ports=SimpleNamespace(clock=SimpleNamespace(wall=lambda: 1.0)),
    )
    return Archiving(node)


def test_a_replica_that_has_applied_more_than_its_disk_has_of_the_log_gives_what_is_there() -> None:
    call = LogCall(1, 4, 4, 0, 1 << 20, follower=True)
    answer = asyncio.run(_archiving(leads=False).log(call))
    assert answer.upto == LAST
    assert [one.index for one in answer.entries or ()] == [5, 6, 7]
    at_the_end = asyncio.run(_archiving(leads=False).log(LogCall(1, LAST, LAST, 0, 1 << 20, follower=True)))
    assert (at_the_end.upto, at_the_end.entries) == (LAST, [])


def test_a_leader_whose_disk_is_late_gives_what_is_there_and_is_asked_again() -> None:
    """It does not say that this is all: writes behind it were acknowledged before its clock was read."""
    answer = asyncio.run(_archiving(leads=True).log(LogCall(1, 4, 4, 0, 1 << 20)))
    assert answer.upto == APPLIED
    assert [one.index for one in answer.entries or ()] == [5, 6, 7]
    with pytest.raises(Unavailable, match="does not have all yet"):
        asyncio.run(_archiving(leads=True).log(LogCall(1, LAST, LAST, 0, 1 << 20)))
    assert asyncio.run(_archiving(leads=True).log(LogCall(1, APPLIED, APPLIED, 0, 1 << 20))).entries == []
