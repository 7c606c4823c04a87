"""How far the archive of the logs is behind, as a shard's leader knows it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from needle.multiraft.archives import ACTIVE_SECONDS, SECONDS, TARGETS_MAX, UNNAMED, Archives
from needle.multiraft.host import Host
from needle.protocol.archive_calls import LogCall
from needle.server.service.archiving import Archiving
from needle.server.upkeep.archives import SILENT_SECONDS, archive_lags

SECOND = 1_000_000
SHARD = 1


class Leader:
    """Of a shard whose log is empty. now: its clock, in seconds since 1970."""

    def __init__(self) -> None:
        self.now, self.leads = 1000.0, True
        compaction = SimpleNamespace(archives=Archives())
        group, clock = SimpleNamespace(compaction=compaction), SimpleNamespace(monotonic=lambda: self.now)
        self.host: Any = SimpleNamespace(
            engine=SimpleNamespace(find=lambda _: group, clock=clock),
            is_leader=lambda _: self.leads,
            read_index=self._read_index,
            committed=lambda *_: [],
            term_of=lambda *_: 0,
            has_upto=lambda _, index: index,
            note_archived=lambda *said: Host.note_archived(self.host, *said),
        )
        self.compaction = compaction
        self.service = Archiving(
            SimpleNamespace(  # type: ignore[arg-type]
                host=self.host,
                hosted=lambda _: SimpleNamespace(replica=SimpleNamespace(look=None, held=None)),
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
        return Host.archived_until(self.host, SHARD)[0]


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
    assert Host.archived_until(leader.host, SHARD)[0] == 1010 * SECOND, "the last one counts while none asks"


def lag(leader: Leader, archived: float) -> float | None:
    """As the metric, and the alert, has it. archived: what the catalog was told last, in seconds since 1970."""
    topology: Any = SimpleNamespace(archived=int(archived * SECOND), holders=lambda _: ())
    leader.host.groups = lambda: [SHARD]
    leader.host.archived_until = partial(Host.archived_until, leader.host)
    return archive_lags(leader.host, topology, int(leader.now * SECOND)).get(SHARD)


async def test_a_new_leader_knows_what_it_was_told_while_it_followed() -> None:
    """It went by the catalog's word, which may be an hour old: the alert fired after each failover."""
    leader = Leader()
    leader.now = 10_000.0
    leader.leads = False
    await leader.service.log(LogCall(SHARD, 0, 0, 9_990 * SECOND, 0, follower=True))
    leader.leads = True
    assert lag(leader, archived=7_000.0) == 10.0
    leader.now += 500.0
    assert lag(leader, archived=7_000.0) == 510.0, "and nobody asks any more"


async def test_what_is_not_known_is_not_told_until_it_is_known_to_be_late() -> None:
    leader = Leader()
    leader.now = 10_000.0
    leader.compaction.archives = Archives(leader.now)
    assert lag(leader, archived=0.0) is None, "none is expected"
    assert lag(leader, archived=7_000.0) is None
    assert lag(leader, archived=6_000.0) == 4_000.0, "an archiver says so each hour"
    leader.now += SILENT_SECONDS
    assert lag(leader, archived=7_000.0) == 3_000.0 + SILENT_SECONDS
    assert await leader.told(leader.now - 2) and lag(leader, archived=7_000.0) == 2.0


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


def test_the_log_is_kept_for_an_archive_that_is_expected_until_others_have_asked() -> None:
    archives = Archives()
    archives.note(UNNAMED, 0, 0, 0.0)
    assert [(one.match, one.active) for one in archives.members(20.0)] == [(0, True)]
    assert [(one.match, one.active) for one in archives.members(SECONDS)] == [(0, False)]
    assert archives.until(20.0) == 0 and archives.silent(20.0) == 20.0, "it has said nothing"
    archives.note("a", 7, 9, 30.0)
    assert sorted(one.match for one in archives.members(ACTIVE_SECONDS)) == [0, 7], "another one may not have asked yet"
    assert [one.match for one in archives.members(ACTIVE_SECONDS + 1)] == [7]


def test_who_begins_at_an_empty_target_does_not_end_what_is_kept_for_the_one_that_is_expected() -> None:
    """A minute after a second archiver had begun elsewhere a restarted node cut what the first one, which was down,
    lacked: that archive had a gap."""
    archives = Archives()
    archives.note(UNNAMED, 0, 0, 0.0)
    for last in (0, 50):
        archives.note("b", last, 0, 10.0)
    assert sorted(one.match for one in archives.members(SECONDS)) == [0, 50]
    archives.note("a", 7, 9, 100.0)
    assert sorted(one.match for one in archives.members(100.0)) == [7, 50]


async def test_a_replica_that_hears_late_of_an_archive_that_begins_elsewhere_keeps_its_log_for_the_other_one() -> None:
    """All nodes were restarted while one archiver was down, and another one began elsewhere: replicas that did not lead
    heard of it when it had something, took it for the one that was there before, and cut their logs after a minute.
    When one of them led next, the first archive had a gap. So it was with who led next and had not been told."""
    replica = Leader()
    for leads in (False, True):
        replica.leads, replica.compaction.archives = leads, Archives()
        replica.host.expect_archive = None
        Host.expect_archive(replica.host, SHARD)
        for kept in (50, 60):
            await replica.service.log(LogCall(SHARD, 60, kept, 0, 1, target="b", follower=not leads, begun=True))
        kept_for = replica.compaction.archives.members(replica.now + ACTIVE_SECONDS + 1)
        assert sorted(one.match for one in kept_for) == [0, 60]
        await replica.service.log(LogCall(SHARD, 60, 7, 0, 1, target="a", follower=not leads))
        kept_for = replica.compaction.archives.members(replica.now + ACTIVE_SECONDS + 1)
        assert sorted(one.match for one in kept_for) == [7, 60]


async def test_an_archiver_that_stores_nothing_is_late_though_it_asks() -> None:
    """It asked each second, and said that it had nothing: that passed for news of it, so that no alert ever fired."""
    leader = Leader()
    leader.now = 10_000.0
    leader.compaction.archives = Archives(leader.now)
    for _ in range(int(SILENT_SECONDS)):
        assert lag(leader, archived=9_900.0) is None
        leader.now += 1.0
        await leader.told(0.0, "a")
    assert lag(leader, archived=9_900.0) == 100.0 + SILENT_SECONDS


async def test_a_target_that_has_nothing_yet_does_not_hide_how_far_another_is() -> None:
    leader = Leader()
    assert await leader.told(900.0, "a") == 900 * SECOND
    for _ in range(5):
        leader.now += ACTIVE_SECONDS / 2
        assert await leader.told(0.0, "b") == 900 * SECOND
