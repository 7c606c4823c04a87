"""How far the archive of the logs is behind, as a shard's leader knows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from needle.multiraft.archives import ACTIVE_SECONDS, SECONDS, TARGETS_MAX, Archives
from needle.multiraft.host import Host
from needle.protocol.archive_calls import LogCall
from needle.server.service.archiving import Archiving

SECOND = 1_000_000
SHARD = 1


class Leader:
    """Of a shard whose log is empty. now: its clock, in seconds since 1970."""

    def __init__(self) -> None:
        self.now = 1000.0
        compaction = SimpleNamespace(archives=Archives())
        group, clock = SimpleNamespace(compaction=compaction), SimpleNamespace(monotonic=lambda: self.now)
        self.host: Any = SimpleNamespace(
            engine=SimpleNamespace(find=lambda _: group, clock=clock),
            is_leader=lambda _: True,
            read_index=self._read_index,
            committed=lambda *_: [],
            term_of=lambda *_: 0,
            note_archived=lambda *said: Host.note_archived(self.host, *said),
        )
        self.compaction = compaction
        self.service = Archiving(
            SimpleNamespace(  # type: ignore[arg-type]
                host=self.host,
                hosted=lambda _: SimpleNamespace(replica=SimpleNamespace(look=None)),
                ports=SimpleNamespace(clock=SimpleNamespace(wall=lambda: self.now)),
                blocking=self._blocking,
            )
        )

    async def _read_index(self, *_: Any) -> int:
        return 0

    async def _blocking(self, *_: Any) -> tuple[int, str]:
        return 0, ""

    async def told(self, until: float, target: str = "") -> int:
        """Up to which clock all is archived then."""
        await self.service.log(LogCall(SHARD, 0, 0, int(until * SECOND), 1, target=target))
        return Host.archived_until(self.host, SHARD)


async def test_a_clock_that_ran_ahead_does_not_hide_that_the_archive_is_behind() -> None:
    """What the former leader's clock had said counted for as long as it was ahead, though nothing was archived."""
    leader = Leader()
    for until, known in ((900.0, 900), (5000.0, 900), (950.0, 950), (920.0, 950)):
        assert await leader.told(until) == known * SECOND
    leader.now = 1200.0
    assert await leader.told(5000.0) == 950 * SECOND


async def test_one_archive_does_not_hide_that_another_is_behind() -> None:
    leader = Leader()
    assert await leader.told(900.0, "a") == 900 * SECOND
    assert await leader.told(950.0, "b") == 900 * SECOND
    leader.now += ACTIVE_SECONDS + 1
    assert await leader.told(1010.0, "b") == 1010 * SECOND, "the other one has ended"
    leader.now += 2 * ACTIVE_SECONDS
    assert Host.archived_until(leader.host, SHARD) == 1010 * SECOND, "the last one counts while none asks"


def test_the_log_is_kept_for_each_of_a_few() -> None:
    archives = Archives()
    archives.note("a", 5, 0, 0.0)
    archives.note("b", 9, 0, 10.0)
    archives.note("a", 7, 0, 20.0)
    assert {(one.match, one.active) for one in archives.members(20.0)} == {(7, True), (9, True)}
    assert {(one.match, one.active) for one in archives.members(75.0)} == {(7, True), (9, False)}
    assert list(archives.members(20.0 + SECONDS + 1)) == []
    for n in range(TARGETS_MAX):
        archives.note(f"{n}", 100 + n, 0, 30.0)
    assert {one.match for one in archives.members(30.0)} == {100 + n for n in range(TARGETS_MAX)}
