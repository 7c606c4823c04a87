"""Where the log is cut: for members that catch up while writes go on, by bytes, at rest, and near the disk's bound."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.harness import FAST, Cluster, Node, put, until
from needle.base.errors import Overloaded
from needle.multiraft.log.log_sizes import ENTRY_OVERHEAD, LogSizes
from needle.multiraft.retention import Bounds, Member, keep_after

CALM = replace(FAST, election_timeout=1.0, heartbeat_interval=0.1)
"""The node that leads is to lead until the end, also on a busy machine."""
SMALL_STEPS = replace(CALM, snapshot_threshold=8, snapshot_chunk_bytes=64)
SMALL_LOG = replace(CALM, log_bytes_max=1 << 20)
"""Segments of 64 KiB; compacted at 32 KiB, refuses writes at 768 KiB."""


async def _behind(cluster: Cluster, writes: int) -> tuple[Node, Node]:
    """(leader, a follower that is down and lacks so many writes)."""
    await cluster.put("before", 1)
    await cluster.converged()
    leader = await cluster.leader()
    away = next(node for node in cluster.running() if node is not leader)
    await away.down()
    for number in range(writes):
        await cluster.put(f"k{number}", number)
    return leader, away


async def _cut(cluster: Cluster, index: int) -> None:
    """Write until the leader has given up who does not answer, and its log starts after `index`."""
    while (await cluster.leader()).host.status(0).first_index <= index:
        await cluster.put("filler", 1)


async def test_a_member_that_was_away_catches_up_by_one_snapshot_while_writes_go_on(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=SMALL_STEPS) as cluster:
        leader, away = await _behind(cluster, 60)
        written = 0

        async def write() -> None:
            """Between two chunks: more than the log holds by its own while one snapshot travels."""
            nonlocal written
            for _ in range(4):
                written += 1
                await cluster.put(f"k{written % 60}", f"again {written}")

        await _cut(cluster, 40)
        cluster.network.before_answer = write
        await away.start()
        await until(lambda: away.host.applied_index(0) >= leader.host.applied_index(0) > 60)
        assert written > 2 * SMALL_STEPS.snapshot_threshold
        assert leader.reached.count("snapshot.after_export") == 1
        cluster.network.before_answer = None
        for number in range(40):
            await cluster.put(f"after{number}", number)
        await until(lambda: leader.host.status(0).last_applied - leader.host.status(0).first_index < 20)
        await cluster.converged()


async def test_a_member_a_bounded_way_behind_is_served_from_the_log(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=SMALL_STEPS, away=100 * (ENTRY_OVERHEAD + 20)) as cluster:
        leader, away = await _behind(cluster, 60)
        await away.start()
        await cluster.converged()
        assert leader.reached.count("snapshot.after_export") == 0
        await away.down()
        for number in range(200):
            await cluster.put(f"k{number}", number)
        await _cut(cluster, 100)
        await away.start()
        await cluster.converged()
        assert leader.reached.count("snapshot.after_export") == 1


async def test_replicas_that_follow_keep_what_an_archive_lacks_too(tmp_path: Path) -> None:
    """They may lead next: what they had cut was lost to the archive when the leader died."""
    config = replace(SMALL_STEPS, log_bytes_max=1 << 28)
    async with Cluster(str(tmp_path), config=config) as cluster:
        await cluster.put("before", 1)
        await cluster.converged()
        told, untold = [node for node in cluster.running() if node is not await cluster.leader()]
        has = told.host.applied_index(0)
        told.host.note_archived(0, "target", has, 1)
        while untold.host.status(0).first_index <= has + 8:
            await cluster.put("filler", 1)
        await cluster.converged()
        assert told.host.status(0).first_index <= has + 1
        told.host.note_archived(0, "target", told.host.applied_index(0), 2)
        while told.host.status(0).first_index <= has + 8:
            await cluster.put("filler", 1)


async def test_a_whole_log_is_kept_for_an_archive_that_has_nothing_yet(tmp_path: Path) -> None:
    """What it had was said to be before the log's beginning, as if no log could help it: in the seconds until the
    archive of a new shard has something, the log was cut, and the archive began with a gap."""
    config = replace(SMALL_STEPS, log_bytes_max=1 << 28)
    async with Cluster(str(tmp_path), config=config) as cluster:
        await cluster.put("before", 1)
        await cluster.converged()
        told, untold = [node for node in cluster.running() if node is not await cluster.leader()]
        told.host.note_archived(0, "target", 0, 0)
        while untold.host.status(0).first_index <= 10:
            await cluster.put("filler", 1)
        await cluster.converged()
        upto = told.host.applied_index(0)
        found = told.host.committed(0, 1, upto, 1 << 20)
        assert found is not None and [one.index for one in found] == [*range(2, upto + 1)]
        assert told.host.committed(0, 0, upto, 1 << 20) is not None
        assert untold.host.committed(0, 1, upto, 1 << 20) is None


async def test_what_a_log_still_has_is_kept_for_an_archive_that_lacks_more(tmp_path: Path) -> None:
    """Another replica may have the rest. Each for itself cut on, for it had not all that the archive lacked."""
    config = replace(SMALL_STEPS, log_bytes_max=1 << 28)
    async with Cluster(str(tmp_path), config=config) as cluster:
        told, untold = [node for node in cluster.running() if node is not await cluster.leader()]
        while told.host.status(0).first_index <= 10:
            await cluster.put("filler", 1)
        await cluster.converged()
        begins = told.host.status(0).first_index
        told.host.note_archived(0, "target", 1, 0)
        while untold.host.status(0).first_index <= begins + 20:
            await cluster.put("filler", 1)
        await cluster.converged()
        assert told.host.committed(0, begins, told.host.applied_index(0), 1 << 20) is not None


async def test_a_log_is_kept_for_an_archive_that_is_only_expected(tmp_path: Path) -> None:
    """Who was just started does not know yet what an archive has."""
    config = replace(SMALL_STEPS, log_bytes_max=1 << 28)
    async with Cluster(str(tmp_path), config=config) as cluster:
        await cluster.put("before", 1)
        await cluster.converged()
        told, untold = [node for node in cluster.running() if node is not await cluster.leader()]
        told.host.expect_archive(0)
        while untold.host.status(0).first_index <= 10:
            await cluster.put("filler", 1)
        await cluster.converged()
        assert told.host.committed(0, 1, told.host.applied_index(0), 1 << 20) is not None


async def test_few_large_entries_are_compacted_by_their_bytes(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), nodes=3, config=SMALL_LOG) as cluster:
        for number in range(150):
            await cluster.put(f"k{number % 5}", f"{number:>20000}")
        await cluster.converged()
        for node in cluster.running():
            assert node.host.engine.bytes_used() < SMALL_LOG.log_bytes_max // 2
            assert node.host.status(0).first_index > 100
            assert not node.fatal
        await cluster.nodes["n1"].restart()
        await cluster.put("after", 1)
        await cluster.converged()


async def test_a_log_that_cannot_be_cut_refuses_writes_and_serves_again_by_itself(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), nodes=1, config=SMALL_LOG) as cluster:
        node = cluster.nodes["n1"]
        await cluster.put("first", 1)
        machine = node.machines[0]
        checkpoint = machine.checkpoint
        machine.lazy = True
        machine.checkpoint = lambda: 1  # type: ignore[method-assign]
        with pytest.raises(Overloaded, match="log_bytes_max = 1048576"):
            for number in range(100):
                await node.host.propose(0, put(f"k{number}", f"{number:>20000}"), 30.0)
        with pytest.raises(Overloaded):
            await node.host.propose(0, put("small", 1), 30.0)
        assert not node.fatal
        assert node.host.engine.bytes_used() <= SMALL_LOG.log_bytes_max
        machine.lazy = False
        machine.checkpoint = checkpoint  # type: ignore[method-assign]
        await cluster.put("after", 1)
        assert node.host.engine.bytes_used() < SMALL_LOG.log_bytes_max // 2
        assert "k20" in node.machines[0].data


async def test_a_follower_whose_log_is_full_takes_no_entries_and_no_harm(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=SMALL_LOG) as cluster:
        await cluster.put("first", 1)
        leader = await cluster.leader()
        full = next(node for node in cluster.running() if node is not leader)
        bounds = full.host.engine.bounds
        full.host.engine.bounds = Bounds(**dict.fromkeys(Bounds.__struct_fields__, 0))
        before = (full.host.status(0).last_index, leader.host.term(0))
        for number in range(10):
            await cluster.put(f"k{number}", number)
        assert (full.host.status(0).last_index, leader.host.term(0)) == before
        full.host.engine.bounds = bounds
        await cluster.converged()


async def test_a_group_at_rest_gives_its_log_back(tmp_path: Path) -> None:
    config = replace(FAST, log_bytes_max=1 << 28, compact_idle=0.2, snapshot_keep=0.4)
    async with Cluster(str(tmp_path), config=config) as cluster:
        for number in range(30):
            await cluster.put(f"k{number % 2}", f"{number:>200000}")
        await until(lambda: all(node.host.engine.groups[0].log.sizes.total <= 1 << 20 for node in cluster.running()))
        segments = [name for name in os.listdir(f"{tmp_path}/n1/log") if name.endswith(".wal")]
        await until(lambda: all(node.host.engine.bytes_used() <= 1 << 25 for node in cluster.running()))
        assert len(segments) <= 2
        await cluster.put("after", 1)
        await cluster.converged()


_sizes = st.lists(st.integers(0, 500), max_size=12)


@given(start=st.integers(0, 5), sizes=_sizes, cut=st.integers(0, 20), more=_sizes, drop=st.integers(0, 30))
def test_sizes_are_those_of_a_list(start: int, sizes: list[int], cut: int, more: list[int], drop: int) -> None:
    found = LogSizes(start)
    model = {start + 1 + at: size + ENTRY_OVERHEAD for at, size in enumerate(sizes)}
    found.append(sizes)
    found.cut(max(cut, start + 1))
    model = {index: size for index, size in model.items() if index < max(cut, start + 1)}
    end = max(model, default=start)
    found.append(more)
    model |= {end + 1 + at: size + ENTRY_OVERHEAD for at, size in enumerate(more)}
    found.drop(drop)
    model = {index: size for index, size in model.items() if index > drop}
    assert found.total == sum(model.values())
    for index in range(found.last + 2):
        assert found.after(index) == sum(size for at, size in model.items() if at > index)
    for bound in (0, 64, 200, 700, 10_000):
        low = found.within(bound)
        assert found.after(low) <= bound
        assert low == found.start or found.after(low - 1) > bound


def test_the_log_is_kept_for_whom_it_helps() -> None:
    sizes = LogSizes(10)
    sizes.append([0] * 100)
    bounds = Bounds.of(ENTRY_OVERHEAD * 32 * 40)  # away: 40 entries; hold: 320
    assert keep_after([], sizes, bounds) == 110
    assert keep_after([Member(80, -1, True), Member(100, -1, True)], sizes, bounds) == 80
    assert keep_after([Member(80, -1, False)], sizes, bounds) == 80
    assert keep_after([Member(60, -1, False)], sizes, bounds) == 110
    assert keep_after([Member(0, -1, True)], sizes, bounds) == 110  # it needs a snapshot; there is none
    assert keep_after([Member(0, 55, True)], sizes, bounds) == 55
    assert keep_after([Member(0, 5, True)], sizes, bounds) == 110  # that snapshot is obsolete
