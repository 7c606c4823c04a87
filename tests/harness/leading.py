"""Which node leads, as a test wants it."""

from __future__ import annotations

import needle
from needle.local.process_cluster import wait_for


async def led_by(client: needle.Client, node: str, shard: int = 0) -> None:
    """Hands a shard to a node. What a call has done whose answer was lost counts: it may not be asked for again."""

    async def leads() -> bool:
        if await client.leader(shard, timeout=5.0) != node:
            await client.step_down(node, shard=shard, timeout=5.0)
        return await client.leader(shard, timeout=5.0) == node

    await wait_for(leads, 60, f"{node} leading shard {shard}")
