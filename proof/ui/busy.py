"""A cluster in the middle of its work: two shards and a third that comes, callers, and a follower that is behind."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from needle.client.client import Client
from needle.distributed import RebalanceConfig
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.ui.looking import Look

DOCUMENTS = 3000
SLOWLY = RebalanceConfig(batch_size=50, throttle_rate=1.0)
"""Fifty documents a second: it is under way while somebody looks."""
LATE = 0.7
"""Seconds that each piece takes on the way to the follower."""
WIDTH = 8


@asynccontextmanager
async def busy(directory: Path) -> AsyncIterator[str]:
    """The address of its page, once a key range moves and callers wrote and searched."""
    calm: dict[str, Any] = {"election_timeout": 6.0, "heartbeat_interval": 0.3}
    sharding = {"shards": 2, "replicas": 3}
    async with (
        ProcessCluster(directory, 3, linked=True, sharding=sharding, **calm) as cluster,
        cluster.connect() as client,
    ):
        rng = random.Random(7)
        ids = [f"d{n:05}" for n in range(DOCUMENTS)]
        await client.insert_batch(ids=ids, vectors=[[rng.random() for _ in range(WIDTH)] for _ in ids])
        callers = asyncio.create_task(_call(client, rng))
        await client.add_shard(SLOWLY)

        async def moves() -> bool:
            return bool((await client.refresh_topology(confirmed=True)).moves)

        await wait_for(moves, 120, "a key range on its way")
        leaders = {await client.catalog_leader(), *[await client.leader(shard) for shard in (0, 1)]}
        behind = next((node for node in cluster.nodes if node not in leaders), list(cluster.nodes)[-1])
        for (_, to), link in cluster.links.items():
            link.delay = LATE if to == behind else 0.0
        try:
            yield f"http://{cluster.nodes[next(node for node in cluster.nodes if node != behind)].http}"
        finally:
            callers.cancel()
            cluster.heal()


async def _call(client: Client, rng: random.Random) -> None:
    """Callers, until they are cancelled."""
    for number in range(1_000_000):
        row = [rng.random() for _ in range(WIDTH)]
        await client.insert(f"d{number % DOCUMENTS:05}", row, timeout=60)
        await client.search(row, 3, timeout=60)
        await asyncio.sleep(0.01)


async def view(look: Look) -> None:
    """Shards, the move and its progress, the lag of the follower, the most called keys, and the charts."""
    await look.go("#/", ".verdict")
    page = look.page
    await page.wait_for_selector("table.shards tbody tr:nth-child(4)", timeout=60_000)
    assert await page.locator("table.nodes tbody tr").count() == 3
    assert await page.locator("table.shards tbody tr").count() == 4
    job = await page.inner_text(".job")
    assert re.search(r"Rebalance \d+ running\b", " ".join(job.split())), job
    assert re.search(r"\d+ %, .* of .*B", job), job
    move = page.locator("tr[data-key^=move-]").first
    await move.wait_for(timeout=60_000)
    assert re.search(r"shard [01] \u2192 shard 2", await move.inner_text()), await move.inner_text()
    late = page.locator("table.shards td.cell small", has_text=re.compile(r"^\s*([3-9]\d\d\sms|[1-9][\d.]*\s(s|min))"))
    await late.first.wait_for(timeout=60_000)
    hot = page.locator("table.hot tbody tr").first
    await hot.wait_for(timeout=60_000)
    told = " ".join((await hot.inner_text()).split())
    assert re.search(r"^\S+ to (the end|\S+) [0-2] \S+/s \S+/s [1-9][\d.]* %", told), told
    for title, keys in {"Rates": ("searches", "writes"), "Slowest of 100 (p99)": ("search", "write")}.items():
        chart = page.locator("figure.chart", has_text=title)
        for key in keys:
            shown = chart.locator("figcaption .key", has_text=re.compile(rf"^\s*{key}\s.*[1-9]"))
            await shown.wait_for(timeout=60_000)
        await chart.locator(".line-1[d^=M]").wait_for(state="attached", timeout=60_000)
    await look.shot("busy")
