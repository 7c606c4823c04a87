"""The guide's "Cluster Topology" on real nodes: how many may fail, and that one more stops writes until it is back.

"Read Path" is held in tests/cluster/test_reads_and_writes.py and test_old_leaders.py: what each mode may see, and
of whom it asks; its latencies are in `make bench`. Of "Network Configuration" the network for nodes is here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from needle import Client
from needle.base.errors import NeedleError
from needle.local.process_cluster import ProcessCluster, wait_for

VECTOR = [1.0] * 8


async def written(client: Client, key: str) -> bool:
    """Until it is, whoever has to be elected first; NeedleErrors are tried again."""
    await client.insert(key, VECTOR, timeout=10)
    return await client.get(key) is not None


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("nodes", "failures", "quorum"), [(3, 1, 2), (5, 2, 3), (7, 3, 4)])
async def test_so_many_may_fail_and_not_one_more(tmp_path: Path, nodes: int, failures: int, quorum: int) -> None:
    async with ProcessCluster(tmp_path, nodes, election_timeout=2.0, heartbeat_interval=0.2) as cluster:
        names = list(cluster.nodes)
        async with cluster.connect() as client:
            assert set((await client.status()).voters) == set(names)
            await wait_for(lambda: written(client, "all"), 60, "a write to all nodes")
            cluster.kill(*names[:failures])
            await wait_for(lambda: written(client, "most"), 90, f"a write to {quorum} of {nodes} nodes")
            cluster.kill(names[failures])
            with pytest.raises(NeedleError):
                await client.insert("few", VECTOR, timeout=3)
            cluster.restart(names[0])
            await wait_for(lambda: written(client, "again"), 90, f"a write to {quorum} nodes again")
            kept = ["all", "most", "again"]
            assert [one.id for one in await client.get_many(kept) if one is not None] == kept


def peers_of(cluster: ProcessCluster) -> set[str]:
    """The addresses to which the nodes' ports have connections, of this machine's table."""
    ports = {int(node.address.rpartition(":")[2]) for node in cluster.nodes.values()}
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        host, port = line.split()[2].split(":")
        if int(port, 16) in ports and line.split()[3] == "01":  # established
            found.add(".".join(str(byte) for byte in reversed(bytes.fromhex(host))))
    return found


@pytest.mark.timeout(200)
async def test_nodes_have_a_network_of_their_own(tmp_path: Path) -> None:
    """Callers come over 127.0.0.1; `reach` names the second address of each node. That all that replicas need goes
    there is shown wherever links are cut, which are in `reach`, too."""
    cluster = ProcessCluster(tmp_path, insecure=True)
    ports = {name: node.address.rpartition(":")[2] for name, node in cluster.nodes.items()}
    for at, (name, node) in enumerate(cluster.nodes.items()):
        node.settings |= {"listen": f"0.0.0.0:{ports[name]}", "advertise": f"127.0.0.1:{ports[name]}"}
        others = [(other, n) for n, other in enumerate(ports) if n != at]
        node.settings["reach"] = [f"{other}=127.0.7.{n + 1}:{ports[other]}" for other, n in others]
    async with cluster:
        async with cluster.connect() as client:
            await wait_for(lambda: written(client, "a"), 60, "a write")
            assert all(info.address.startswith("127.0.0.1:") for info in (await client.refresh_topology()).nodes)
        mine = [f"127.0.7.{n + 1}" for n in range(3)]

        async def apart() -> bool:
            return set(mine) <= peers_of(cluster)

        await wait_for(apart, 30, "each node reached in the network of the nodes")
