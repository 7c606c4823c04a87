"""Cut, silent and slow links between real processes: nobody reads a value that was replaced before the read began.

Sources: design/raft.md §2 (the two cases in which etcd's lease mode breaks) and §6 (pre-vote and the returning node).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest

from harness.calm import CALM
from harness.pinned import Pinned
from needle.base.errors import NeedleError
from needle.base.model import ReadMode
from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for

VECTOR = [1.0] * 8


@dataclass
class Answer:
    invoked: float
    mode: ReadMode
    version: int


class Reader:
    """Reads one document from one node without pause and keeps every answer."""

    def __init__(self, pinned: Pinned, mode: ReadMode) -> None:
        self.answers: list[Answer] = []
        self.refusals: list[tuple[float, NeedleError]] = []
        self._pinned = pinned
        self._mode = mode

    async def run(self) -> None:
        while True:
            invoked = monotonic()
            try:
                version = await self._pinned.version("x", self._mode, 0.3)
            except NeedleError as error:
                self.refusals.append((invoked, error))
                await asyncio.sleep(0.002)
            else:
                self.answers.append(Answer(invoked, self._mode, version))


@asynccontextmanager
async def reading(pinned: Pinned) -> AsyncIterator[list[Reader]]:
    """Strong and leased readers of one node at work."""
    readers = [Reader(pinned, mode) for mode in (ReadMode.LEASED, ReadMode.LEASED, ReadMode.STRONG)]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        yield readers
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome


class Writer:
    """Writes one document again and again; knows when each version was acknowledged."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.acknowledged: list[tuple[float, int]] = []

    async def write(self) -> int:
        result = await self._client.insert("x", VECTOR, timeout=10.0)
        self.acknowledged.append((monotonic(), result.version))
        return result.version

    async def run(self) -> None:
        while True:
            await self.write()

    def check(self, readers: list[Reader]) -> None:
        """Every answer is at least as new as every write acknowledged before it was asked for."""
        for answer in (answer for reader in readers for answer in reader.answers):
            newest = max((version for at, version in self.acknowledged if at < answer.invoked), default=0)
            assert answer.version >= newest, f"{answer} is older than {newest}, acknowledged before"


async def majority(cluster: ProcessCluster, without: str) -> str:
    """The leader that the other nodes agree on."""
    others = [name for name in cluster.nodes if name != without]

    async def elected() -> str | None:
        async with cluster.connect(*others) as client:
            seen = {(await client.node_status(cluster.nodes[name].address)).leader for name in others}
        return seen.pop() if len(seen) == 1 and not seen & {None, "", without} else None

    return str(await wait_for(elected, 60, "a leader of the majority"))


async def terms(client: Client, cluster: ProcessCluster) -> dict[str, int]:
    return {name: (await client.node_status(node.address)).current_term for name, node in cluster.nodes.items()}


async def settled(client: Client, cluster: ProcessCluster) -> tuple[str, dict[str, int]]:
    """The leader, and the terms, once all nodes have heard of it: one may be late by an election."""

    async def agreed() -> tuple[str, dict[str, int]] | None:
        seen = {name: await client.node_status(node.address) for name, node in cluster.nodes.items()}
        if len(found := {(status.leader, status.current_term) for status in seen.values()}) != 1:
            return None
        leader = next(iter(found))[0]
        return (leader, {name: status.current_term for name, status in seen.items()}) if leader else None

    found: tuple[str, dict[str, int]] = await wait_for(agreed, 60, "a leader that all nodes know")
    return found


def cut_off(cluster: ProcessCluster, leader: str) -> None:
    cluster.isolate(leader)


def silence_all(cluster: ProcessCluster, leader: str) -> None:
    for proxy in cluster.links_of(leader):
        proxy.silence()


def deaf_leader(cluster: ProcessCluster, leader: str) -> None:
    """It is heard, but hears nothing, neither answers nor calls."""
    for (frm, to), proxy in cluster.links.items():
        if to == leader:
            proxy.silence("forward")
        elif frm == leader:
            proxy.silence("back")


def mute_leader(cluster: ProcessCluster, leader: str) -> None:
    """It hears the others, who do not hear it."""
    for (frm, to), proxy in cluster.links.items():
        if frm == leader:
            proxy.silence("forward")
        elif to == leader:
            proxy.silence("back")


@pytest.mark.parametrize("fault", [cut_off, silence_all, deaf_leader, mute_leader])
async def test_a_leader_that_lost_its_majority_serves_no_old_value(fault, tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, linked=True, **CALM) as cluster:
        async with cluster.connect() as client:
            first = Writer(client)
            await first.write()
        old = await cluster.leader()
        async with Pinned(cluster.nodes[old].address) as pinned, reading(pinned) as readers:
            await wait_for(lambda: all(len(reader.answers) > 10 for reader in readers), 60, "reads before the fault")
            fault(cluster, old)
            new = await majority(cluster, old)
            async with cluster.connect(new) as client:
                writer = Writer(client)
                writer.acknowledged = first.acknowledged
                newest = await writer.write()
                told = monotonic()
                # The old leader is asked for a while after the newer value was acknowledged.
                await wait_for(
                    lambda: all(sum(at > told for at, _ in reader.refusals) > 2 for reader in readers), 60, "refusals"
                )
                writer.check(readers)
                stale = [a for reader in readers for a in reader.answers if a.invoked > told and a.version < newest]
                assert stale == []
                cluster.heal()
                await wait_for(
                    lambda: pinned.version("x", ReadMode.EVENTUAL), 60, "the old leader serving eventual reads"
                )
                await writer.write()
        await cluster.equal_digests()


async def test_after_a_step_down_the_old_leader_serves_nothing_older_than_what_was_acknowledged(tmp_path: Path) -> None:
    async with (
        ProcessCluster(tmp_path, linked=True, **CALM) as cluster,
        cluster.connect() as client,
        cluster.connect() as operator,
    ):
        writer = Writer(client)
        await writer.write()
        handed_over = 0
        for _ in range(12):  # on a busy machine an election may come before the step-down, and give it to another one
            old = await cluster.leader()
            async with Pinned(cluster.nodes[old].address) as pinned, reading(pinned) as readers:
                await wait_for(lambda readers=readers: all(len(r.answers) > 10 for r in readers), 60, "leased reads")
                writing = asyncio.create_task(writer.run())
                try:
                    was_other = await operator.step_down() != old
                    known = len(writer.acknowledged)
                    await wait_for(lambda known=known: len(writer.acknowledged) > known + 20, 60, "writes after it")
                finally:
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
                assert readers[0].answers, "nothing was read"
                writer.check(readers)
                if was_other:
                    assert all(reader.refusals for reader in readers), "the old leader refused nothing"
                    handed_over += 1
            if handed_over == 3:
                return
        raise AssertionError(f"of twelve step-downs {handed_over} were of the node that was read")


async def test_a_follower_that_was_cut_off_does_not_disturb_the_leader(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, linked=True, **CALM) as cluster, cluster.connect() as client:
        writer = Writer(client)
        await writer.write()
        leader, before = await settled(client, cluster)
        lonely = next(name for name in cluster.nodes if name != leader)
        cluster.isolate(lonely)

        async def campaigning() -> bool:
            return (await client.node_status(cluster.nodes[lonely].address)).leader is None

        await wait_for(campaigning, 60, "the lonely node missing its leader")
        async with cluster.connect(*(name for name in cluster.nodes if name != lonely)) as near:
            writer = Writer(near)
            start = monotonic()
            while monotonic() - start < 6 * CALM["election_timeout"]:
                await writer.write()  # several of its election timeouts go by
            cluster.heal()
            version = await writer.write()
        async with Pinned(cluster.nodes[lonely].address) as pinned:

            async def caught_up() -> bool:
                return await pinned.version("x", ReadMode.EVENTUAL) >= version

            await wait_for(caught_up, 60, "the node that was away catching up")
        assert await terms(client, cluster) == before
        assert await cluster.leader() == leader


async def test_a_link_that_is_silent_between_two_followers_matters_to_nobody(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, linked=True, **CALM) as cluster, cluster.connect() as client:
        writer = Writer(client)
        await writer.write()
        leader, before = await settled(client, cluster)
        for link, proxy in cluster.links.items():
            if leader not in link:
                proxy.silence()
        start = monotonic()
        while monotonic() - start < 4 * CALM["election_timeout"]:
            await writer.write()
        assert await terms(client, cluster) == before
        cluster.heal()  # clients, too, take these links: nodes tell them their peers' addresses
        await cluster.equal_digests()


async def test_slow_links_slow_writes_down_and_change_no_leader(tmp_path: Path) -> None:
    async with (
        ProcessCluster(tmp_path, linked=True, **CALM) as cluster,
        cluster.connect() as client,
    ):
        writer = Writer(client)
        await writer.write()
        leader, before = await settled(client, cluster)
        for proxy in cluster.links.values():
            proxy.delay = 0.04
        start = monotonic()
        newest = 0
        for _ in range(20):
            newest = await writer.write()
        assert monotonic() - start > 20 * 0.04, "the links were not slow"
        for mode in (ReadMode.STRONG, ReadMode.LEASED):
            found = await client.get("x", mode=mode)
            assert found is not None and found.version == newest
        assert await terms(client, cluster) == before
        assert await cluster.leader() == leader
        await cluster.equal_digests()
