"""Real processes whose directory was emptied or rolled back, and real connections of strangers.

docs/troubleshooting.md, "A replica does not go on".
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from harness.calm import CALM
from harness.lives import life_of
from harness.marked_documents import fill, follower_of, vector
from needle.base.ids import shard_group
from needle.base.versions import KNOWN
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.local.published import of_one_cluster
from needle.multiraft.codec import LifeAnswer, encode_frame
from needle.raft.messages import Message, MessageType
from needle.rpc.codec import Hello, encode
from needle.rpc.frame import HELLO, ONEWAY
from needle.rpc.frame import encode_frame as rpc_frame

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("kind", ["emptied", "older copy", "copy of a leader that runs"])
async def test_a_directory_that_forgot_is_not_accepted_and_everybody_says_so(tmp_path: Path, kind: str) -> None:
    older, runs = kind != "emptied", kind == "copy of a leader that runs"
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("first", vector(0))
        name = await (cluster.leader() if runs else follower_of(cluster))
        node, copy = cluster.nodes[name], tmp_path / "copy"
        if runs:
            shutil.copytree(node.data_dir, copy)
        elif older:
            cluster.terminate(name)
            shutil.copytree(node.data_dir, copy)
            cluster.restart(name)
            await cluster.ready(name)
        await fill(client)
        cluster.kill(name)
        shutil.rmtree(node.data_dir)
        if older:
            shutil.copytree(copy, node.data_dir)
        cluster.restart(name)
        if not older:  # the others tell it who it was before it has said a word: it ends
            await wait_for(lambda: not node.running(), 30, "the node noticing it")
            assert node.wait() == 2 and "has another data directory" in node.output()
            await client.insert("goes on", vector(1))
            return
        await wait_for(lambda: f"node {name} does not go on" in node.output(), 30, "the node noticing it")

        async def unready() -> bool:
            code, text = await cluster.http(name, "/readyz")
            return code == 503 and "does not go on" in text

        await wait_for(unready, 30, "the node saying so")
        text = of_one_cluster((await cluster.http(name, "/metrics"))[1])
        assert text.count('needle_replica_lost{shard="0"} 1.0') == 1
        await client.insert("goes on", vector(1))
        leader = await cluster.leader()
        said = cluster.nodes[leader].output
        await wait_for(lambda: f"node {name} is refused" in said(), 30, "the leader saying so")


async def speak(address: str, frm: str, life: LifeAnswer, message: Message) -> None:
    """Send a node one message in the name, and with the life, of another one."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    hello = Hello(version=1, cluster_id="needle", node_id=frm, incarnation=life.life.incarnation, knows=KNOWN)
    writer.write(rpc_frame(HELLO, 0, [encode(hello)]))
    assert await reader.read(100)
    writer.write(rpc_frame(ONEWAY, 0, [encode_frame(life.life.nonce, life.news, [(shard_group(0), message)])]))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def test_frames_of_a_stranger_change_nothing(tmp_path: Path) -> None:
    """They carry the life of a member, as frames of that member do: Raft itself has to refuse them."""
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("before", vector(0))
        leader = await cluster.leader()
        term = (await client.status()).current_term
        other = await follower_of(cluster)
        lives = {name: await life_of(cluster.nodes[name].address) for name in (leader, other)}
        for kind, said in (
            (MessageType.APPEND_RESP, 2**62),
            (MessageType.HEARTBEAT, term),
            (MessageType.APPEND_RESP, 2**64 - 1),
        ):
            for name, node in cluster.nodes.items():
                frm = other if name != other else leader
                await speak(node.address, frm, lives[frm], Message(kind, to=name, frm=frm, term=said))
        await client.insert("after", vector(1))
        assert (await client.status()).current_term == term
        assert all(node.running() for node in cluster.nodes.values())
        for node in cluster.nodes.values():
            assert "is refused: it would raise the term" in node.output()
