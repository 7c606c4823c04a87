"""A cut router: a node that does not reach one shard serves the others to its plain clients, and all once healed."""

import io
import random
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from needle.base.errors import NeedleError
from needle.local.process_cluster import wait_for
from proof.chaos.clients import ShardRecorder, Through
from proof.chaos.schedule import Fault
from proof.chaos.site import ROUTER, Site
from proof.chaos.spec import ChaosSpec, profile
from proof.plain_client import PlainClient

VECTOR = [1.0] * 8


async def test_a_node_and_a_client_that_do_not_reach_one_shard(tmp_path: Path) -> None:
    spec = ChaosSpec(seed=1, nodes=3, shards=3, replication_factor=1)
    site = Site(spec, profile(spec), tmp_path)
    try:
        await site.open(ShardRecorder(io.StringIO()))
        keys = [next(key for n in count() if site.owner(key := f"k{n}") == shard) for shard in range(3)]
        holder = {info.shard: info.replicas[0] for info in site.first.shards}
        node = holder[0]
        address = site.cluster.nodes[node].address
        plain = PlainClient(Through(site.caller("plain"), lambda _: address), [address], rng=random.Random(1))
        for key in keys:  # no shard waits for its collection any more, which the catalog has to confirm
            await plain.insert(key, VECTOR, timeout=20)

        injured = await site.injector.begin(Fault(0, "cut-router", "any", 1.0, 0.0), node)
        cut = next(shard for shard in (1, 2) if f"shard {shard}" in injured.note)
        assert not injured.without
        with pytest.raises(NeedleError):
            await plain.insert(keys[cut], VECTOR, timeout=1)
        await plain.insert(keys[0], VECTOR, timeout=20)
        await plain.insert(keys[3 - cut], VECTOR, timeout=20)
        await site.operator.insert(keys[cut], VECTOR, timeout=20)  # others reach it
        await injured.heal()
        await wait_for(partial(plain.insert, keys[cut], VECTOR, timeout=1), 60, "the shard within reach again")

        injured = await site.injector.begin(Fault(1, "cut-router", "any", 1.0, 0.0), ROUTER)
        told = {address: site.over_links(address) for address in site.first.addresses().values()}
        assert set(told.values()).isdisjoint(told), "the client's links are its own"
        await injured.heal()
    finally:
        await site.close()
