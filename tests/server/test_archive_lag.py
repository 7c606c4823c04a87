"""How far the archive of the logs is behind, as a shard's leader knows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from needle.multiraft.group_compaction import Archived
from needle.multiraft.host import Host
from needle.protocol.archive_calls import LogCall
from needle.server.service.archiving import Archiving

SECOND = 1_000_000
SHARD = 1


class Leader:
    """Of a shard whose log is empty. now: its clock, in seconds since 1970."""

    def __init__(self) -> None:
        self.now = 1000.0
        compaction = SimpleNamespace(archived=None)
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

    async def told(self, until: float) -> Archived | None:
        await self.service.log(LogCall(SHARD, 0, 0, int(until * SECOND), 1))
        archived: Archived | None = self.compaction.archived
        return archived


async def test_a_clock_that_ran_ahead_does_not_hide_that_the_archive_is_behind() -> None:
    """What the former leader's clock had said counted for as long as it was ahead, though nothing was archived."""
    leader = Leader()
    for until, known in ((900.0, 900), (5000.0, 900), (950.0, 950), (920.0, 950)):
        archived = await leader.told(until)
        assert archived is not None and archived.until == known * SECOND
    leader.now = 1200.0
    archived = await leader.told(5000.0)
    assert archived is not None and archived.until == 950 * SECOND
