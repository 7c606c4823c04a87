"""A rebalance of real processes under load: the node that leads the catalog is killed at each stage, the rebalance goes
on, and nothing is lost. The guide's calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import ConnectionLost, InvalidArgument, OutcomeUnknown, Unavailable
from needle.client.client import Client
from needle.distributed import RebalanceConfig, RebalanceCoordinator, RebalanceHandle, Wish
from needle.local.process_cluster import wait_for
from needle.routing.jobs import JobState
from needle.routing.planned_moves import FoundShard, MoveRange
from needle.routing.plans import Plan
from needle.routing.strategy import ShardStrategy
from needle.routing.topology import MoveState, Topology

LOADED = 3000
SLOWLY = RebalanceConfig(max_concurrent_moves=4, batch_size=100, throttle_rate=0.05)


class Load:
    """One writer, one searcher. there: acknowledged; open: of unknown fate."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.there: set[str] = set()
        self.open: set[str] = set()
        self.searches = 0
        self.ending = False

    async def write(self) -> None:
        number = 0
        while not self.ending:
            await asyncio.sleep(0.005)
            name, number = f"live-{number}", number + 1
            try:
                await self._client.insert(name, np.ones(8, np.float32), timeout=20)
                self.there.add(name)
            except (OutcomeUnknown, ConnectionLost, Unavailable):
                self.open.add(name)

    async def search(self) -> None:
        while not self.ending:
            await asyncio.sleep(0.02)
            before = set(self.there)
            try:
                hits = await self._client.search(np.ones(8, np.float32), 10_000, exact=True, timeout=20)
            except (Unavailable, ConnectionLost):
                continue
            found = [hit.id for hit in hits]
            assert len(found) == len(set(found))
            assert before <= set(found)
            self.searches += 1


async def _filled(client: Client, load: Load) -> None:
    await healthy(client)
    await client.create_collection("default", dimensions=8, metric="l2")
    vectors = np.random.default_rng(1).normal(size=(LOADED, 8)).astype(np.float32)
    names = [f"doc-{n}" for n in range(LOADED)]
    await client.insert_batch(ids=names, vectors=vectors, timeout=30)
    load.there.update(names)


def _at(state: JobState) -> Callable[[Topology], bool]:
    return lambda now: now.rebalance is not None and now.rebalance.state is state


def _runs(kind: type) -> Callable[[Topology], bool]:
    return lambda now: now.rebalance is not None and any(isinstance(one.move, kind) for one in now.rebalance.running)


STAGES: list[Callable[[Topology], bool]] = [
    _at(JobState.PENDING),
    _runs(FoundShard),
    _runs(MoveRange),
    lambda now: bool(now.rebalance and now.rebalance.moved_documents),
]


async def test_a_rebalance_goes_on_when_the_catalogs_leader_dies_at_any_stage(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as operator:
            load = Load(client)
            await _filled(client, load)
            work = [asyncio.create_task(load.write()), asyncio.create_task(load.search())]
            handle = await RebalanceCoordinator(operator).add_shard(SLOWLY, timeout=20)
            for stage in STAGES:

                async def reached(stage: Callable[[Topology], bool] = stage) -> bool:
                    now = await operator.refresh_topology(timeout=0.05)
                    return stage(now) or bool(now.rebalance and now.rebalance.over)

                await wait_for(reached, 60, "the next stage")
                victim = await wait_for(lambda: operator.catalog_leader(timeout=1.0), 30, "a leader of the catalog")
                processes.kill(victim)
                processes.restart(victim)
                await healthy(operator)
            ended = await wait_for(lambda: _over(operator), 60, "the end of the rebalance")
            assert ended is JobState.DONE
            assert await wait_for(handle.is_complete, 60, "the client's knowledge of it")
            load.ending = True
            await asyncio.gather(*work)
            stats = await wait_for(operator.get_stats, 60, "stats")
            assert sorted(stats.shard_sizes) == [0, 1, 2]
            assert stats.documents_imbalance < 0.25
            assert sum(one.writes for one in stats.shard_sizes.values()) > 1
            assert sum(one.searches for one in stats.shard_sizes.values()) > 1
            assert sum(one.writes for one in stats.hot_ranges) > 0.1
            hits = await client.search(np.ones(8, np.float32), 10_000, exact=True)
            found = [hit.id for hit in hits]
            assert len(found) == len(set(found))
            assert load.there <= set(found) <= load.there | load.open
            assert len(load.there) > LOADED + 50
            assert load.searches > 10


async def _over(client: Client) -> JobState | None:
    found = await client.rebalance_progress(timeout=2.0)
    return found.state if found is not None and found.is_complete else None


async def test_a_rebalance_is_planned_paused_cancelled_and_found_again(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=4) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            load = Load(client)
            await _filled(client, load)
            coordinator = RebalanceCoordinator(client)
            assert await coordinator.rebalance() is None

            async def planned() -> Plan | None:  # nobody knows the size of a shard whose leader does not answer now
                found = await coordinator.plan(Wish(retire=(1,)))
                return found if found.documents else None

            plan = await wait_for(planned, 60, "a plan that moves documents")
            assert plan.documents > LOADED / 3
            assert plan.ratio < 1.1
            with pytest.raises(InvalidArgument, match="nodes of this cluster"):
                await coordinator.plan(Wish(drain=("nobody",)))
            with pytest.raises(InvalidArgument, match="batch_size"):
                RebalanceConfig(batch_size=0)
            with pytest.raises(InvalidArgument, match="wish is a Wish"):
                await coordinator.start_rebalance(wish="even")  # type: ignore[arg-type]

            slow = RebalanceConfig(max_concurrent_moves=1, batch_size=100, throttle_rate=0.2)
            handle = await coordinator.remove_shard(1, slow)
            with pytest.raises(InvalidArgument, match=f"rebalance {handle.id} is"):
                await other.add_shard()
            found = await RebalanceCoordinator(other).rebalance()
            assert found is not None
            assert found.id == handle.id
            await found.pause()
            assert (await handle.progress()).state is JobState.PAUSED
            assert not handle.is_complete()
            await found.resume()
            async for progress in handle:
                if progress.phases and 0 < progress.percent_complete < 100:
                    break
            assert progress.moved_bytes < progress.total_bytes
            await _paused_copies_nothing(client, handle)
            assert all("move" in words for words in progress.moves.values())
            await handle.cancel()
            ended = await handle.wait(60)
            assert ended.state is JobState.CANCELLED
            assert sorted((await coordinator.get_stats()).shard_sizes) == [0, 1]
            # What has moved stays, and the same wish ends it.
            done = await (await coordinator.remove_shard(1, RebalanceConfig(throttle_rate=0))).wait(60)
            assert (done.state, done.percent_complete) == (JobState.DONE, 100.0)
            again = await RebalanceCoordinator(other).rebalance(handle.id)  # as after a crash of who began it
            assert again is not None and again.is_complete()
            assert (await again.wait(60)).state is JobState.CANCELLED
            assert [one.state async for one in again] == [JobState.CANCELLED]
            assert (await handle.progress()).state is JobState.CANCELLED and handle.is_complete()
            with pytest.raises(InvalidArgument, match=f"rebalance {handle.id} was cancelled, so there is nothing to"):
                await again.pause()
            with pytest.raises(InvalidArgument, match="rebalance 1 is not known: the last one is"):
                await coordinator.rebalance(1)
            assert sorted((await coordinator.get_stats()).shard_sizes) == [0]
            hits = await other.search(np.ones(8, np.float32), 10_000, exact=True)
            assert sorted(hit.id for hit in hits) == sorted(load.there)
            await _a_replica_comes_slowly(client, coordinator)


async def _paused_copies_nothing(client: Client, handle: RebalanceHandle) -> None:
    """What a batch was under way with when it was paused still comes; then nothing more does, until it goes on."""
    await handle.pause()
    counted: list[int] = []

    async def still() -> bool:
        counted.append((await handle.progress()).moved_documents)
        return len(counted) > 6 and len(set(counted[-6:])) == 1

    paused = await wait_for(still, 60, "a copy that stands still") and counted[-1]
    assert (await handle.progress()).state is JobState.PAUSED
    assert (await client.refresh_topology(confirmed=True)).moves[0].state is MoveState.COPYING
    await handle.resume()

    async def goes_on() -> bool:
        return (await handle.progress()).moved_documents > paused

    await wait_for(goes_on, 60, "the copy going on")


async def _a_replica_comes_slowly(client: Client, coordinator: RebalanceCoordinator) -> None:
    now = await client.refresh_topology(confirmed=True)
    held, (spare, *_) = now.serving[0].wanted, sorted(set(now.addresses()) - set(now.serving[0].wanted))
    began, told = time.monotonic(), set[str]()
    handle = await coordinator.move_replica(
        0, held[-1], spare, RebalanceConfig(batch_size=LOADED // 4, throttle_rate=2.0)
    )
    async for progress in handle:
        told |= set(progress.moves.values())
    assert progress.state is JobState.DONE
    assert time.monotonic() - began >= 8.0
    assert any(", at most " in words for words in told)


async def test_a_shard_is_added_at_ids_that_are_known_or_not_at_all(tmp_path: Path) -> None:
    """Under the strategy `range` keys say nothing of where documents lie: the shards are asked."""
    async with ShardedProcesses(tmp_path, nodes=1) as processes:
        await processes.create(1, 1, ShardStrategy(kind="range"))
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=2, metric="l2")
            coordinator = RebalanceCoordinator(client)
            with pytest.raises(Unavailable, match="shard 1 cannot be added: under the strategy range"):
                await coordinator.add_shard()
            await client.insert_batch(ids=[f"user-{n:04d}" for n in range(400)], vectors=np.ones((400, 2), np.float32))
            await client.delete([f"user-{n:04d}" for n in range(100)])

            async def known() -> bool:  # what was known of the ids a moment ago is told for some seconds
                return bool((await coordinator.plan(Wish(shards=2))).moves)

            assert await wait_for(known, 20, "ids to be known")
            handle = await coordinator.add_shard()
            assert (await handle.wait(30)).state is JobState.DONE
            stats = await coordinator.get_stats()
            assert sorted(stats.shard_sizes) == [0, 1]
            assert stats.documents_imbalance < 0.1
