"""The first four chapters of docs/troubleshooting.md: each fault is caused on real nodes, the commands of the chapter
are run as they stand there, show what the page says, and mend it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import needle
from harness.commands import Run
from harness.leading import led_by
from harness.page_chapter import Chapter
from needle.base.errors import NeedleError
from needle.local.process_cluster import ProcessCluster, wait_for

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

VECTOR = [1.0] * 8
SLOW_LINK = 0.15
"""Seconds in each direction, of one node's links; writes are given that long and more."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    ranges = {"shards": 2, "replicas": 3, "strategy": "range", "boundaries": ["m"]}
    async with ProcessCluster(
        module_path, linked=True, sharding=ranges, election_timeout=1.0, heartbeat_interval=0.1
    ) as made:
        yield made


@pytest.fixture
def page(
    request: pytest.FixtureRequest,
    cluster: ProcessCluster,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> Chapter:
    """The chapter that the test is marked with."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
    return Chapter(request.param, cluster, tmp_path, run)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [name], indirect=True)


@of("Split brain")
async def test_split_brain(page: Chapter, cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        await page.well()
        await led_by(client, "node-1")
        await client.insert("a", VECTOR)
        cluster.isolate("node-1")

        async def noticed() -> bool:
            terms = await page.terms()
            leaders = [node for node, (state, _) in terms.items() if state == "Leader"]
            return leaders in (["node-2"], ["node-3"]) and terms[leaders[0]][1] > terms["node-1"][1]

        await wait_for(noticed, 60, "one leader, in a later term than node-1")
        assert "node-1" in await page.next(None)
        await client.insert("b", VECTOR, timeout=30)
        said = await page.next(1, 0)
        for link in ("node-1 to node-2", "node-1 to node-3", "node-2 to node-1", "node-3 to node-1"):
            assert f"link-cut: {link}" in said
        assert "link-cut: node-2 to node-3" not in said and said.splitlines()[-1] == "2"
        await page.next(0, None)  # it is still cut off
        assert page.verbs == ["restart node-1"] and (await page.terms()).get("node-1", ("", 0))[0] != "Leader"
        cluster.heal()
        await page.well()
        assert "leads" in await page.next(0)
        page.finished()
        assert await client.count() == 2 and not [one for one in await page.findings() if "link-cut" in one]
        await client.delete(["a", "b"])


@pytest.mark.runbook
@of("Election failures")
async def test_election_failures(page: Chapter, cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        await page.well()
        cluster.kill("node-2", "node-3")
        await wait_for(lambda: refused(client, "node-2"), 60, "an error that names node-2")
        said = await page.next(1, 0)
        assert "no leader" in said and "1 of 3 nodes answer" in said
        await client.insert("c", VECTOR, timeout=60)
        cluster.restart("node-3")
        await page.well()

        for node in ("node-1", "node-2"):
            await page.line(f"needle maintenance enter {node}")
        cluster.kill("node-3")
        assert "Follower, maintenance" in await page.line("needle status", 1)
        await wait_for(lambda: refused(client, "in maintenance"), 60, "an error that says why")
        assert "node-2 is back" in await page.next(0)
        await client.insert("d", VECTOR, timeout=60)
        cluster.restart("node-3")
        await cluster.ready("node-3")
        await page.line("needle maintenance exit node-1 --timeout 60")
        await page.well()

        for link in cluster.links.values():
            link.cut()
        await wait_for(lambda: unled(page), 60, "no leader, though all nodes answer")
        assert (await page.next(1)).count("link-cut: ") == 6
        cluster.heal()
        await page.well()
        await patience(page, cluster)
        assert "leads" in await page.next(0)
        page.finished()
        assert await client.count() == 2
        await client.delete(["c", "d"])


async def refused(client: needle.Client, why: str) -> bool:
    """Whether a write is refused for this reason."""
    with pytest.raises(NeedleError) as raised:
        await client.insert("c", VECTOR, timeout=2)
    return why in str(raised.value)


async def unled(page: Chapter) -> bool:
    return any("no leader: shard 0: 3 of 3 nodes answer" in one for one in await page.conditions())


async def patience(page: Chapter, cluster: ProcessCluster) -> None:
    """A network that is too slow for the election timeout, until that is raised."""
    for link in cluster.links.values():
        link.delay = 0.1
    assert any(one.startswith("election-timeout: ") for one in await page.findings())
    for node in cluster.nodes.values():
        node.settings["election_timeout"] = 5.0
    said = await page.next(0, None)
    assert sorted(page.verbs[-3:]) == ["restart node-1", "restart node-2", "restart node-3"]
    assert "link-slow" in said and "election-timeout" not in said
    cluster.heal()
    await page.well()


@pytest.mark.runbook
@of("Slow replication")
async def test_slow_replication(page: Chapter, cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        await page.well()
        await led_by(client, "node-1")
        cluster.pause("node-3")
        try:
            await client.insert("e", VECTOR, timeout=60)
            await wait_for(lambda: lags(page, "node-3"), 60, "node-3 lagging")
            said = await page.next(None, None)
            assert "not-probed: node-3" in said and "replication lag" in said
        finally:
            cluster.resume("node-3")
        await page.next(0, None)
        assert page.verbs == ["restart node-3"]
        await page.well()

        for link in cluster.links_of("node-1"):
            link.delay = SLOW_LINK
        assert await seconds_of_a_write(client) > 2 * SLOW_LINK
        findings = await page.findings()
        slow = [one for one in findings if one.startswith("link-slow: ")]
        assert slow and all("node-1" in one for one in slow), findings
        await page.next(0)
        assert await client.leader(0) != "node-1"
        assert await seconds_of_a_write(client) < 2 * SLOW_LINK
        page.finished()
        cluster.heal()
        await client.delete(["e", "f"])


async def lags(page: Chapter, node: str) -> bool:
    return any(one.startswith("replication lag") and node in one for one in await page.conditions())


async def seconds_of_a_write(client: needle.Client) -> float:
    """Of the quickest of five."""

    async def one() -> float:
        begun = time.perf_counter()
        await client.insert("f", VECTOR, timeout=60)
        return time.perf_counter() - begun

    return min([await one() for _ in range(5)])


@of("Data skew")
async def test_data_skew(page: Chapter, cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        await page.well()
        for first, count in (("a", 3000), ("z", 600)):
            for begin in range(0, count, 300):
                ids = [f"{first}{n:05}" for n in range(begin, begin + 300)]
                await client.insert_batch(ids=ids, vectors=[VECTOR] * 300, timeout=60)
        await wait_for(lambda: uneven(page), 60, "uneven shards")
        said = await page.next(0, 0)
        assert "shards uneven: shard 0 has 3000 documents" in said and "0.67 by documents" in said
        said = await page.next(0, 0, None)
        assert "shard 0" in said
        await page.well()
        stats = await page.shown("cluster", "stats")
        assert stats["documents_imbalance"] < 0.2
        assert await page.next(0)
        page.finished()
        assert await client.count() == 3600


async def uneven(page: Chapter) -> bool:
    return any(one.startswith("shards uneven") for one in await page.conditions())
