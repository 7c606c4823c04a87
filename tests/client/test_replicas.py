"""Asking replicas how they are never fails: what went wrong is told of the one that it concerns."""

from harness.connected import Connected
from needle.base.errors import ConnectionLost
from needle.base.model import RaftStatus
from needle.client.replicas import ask_replicas
from needle.protocol import calls
from needle.routing.topology import NodeInfo, ShardInfo, Topology

GOOD = RaftStatus(
    node_id="n1",
    group=1,
    state="Leader",
    current_term=1,
    leader="n1",
    commit_index=3,
    last_applied=3,
    first_index=1,
    last_index=3,
    peers=[],
    voters=["n1", "n2", "n3"],
    learners=[],
    lease_remaining=0.0,
    leader_changes=1,
)


class _Caller(Connected):
    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        if address == "h:2":
            raise ConnectionLost("down", address=address)
        return calls.encode(GOOD) if address == "h:1" else b"what is this"


async def test_every_replica_has_its_own_answer() -> None:
    names = ("n1", "n2", "n3")
    nodes = tuple(NodeInfo(id=name, address=f"h:{name[1]}", incarnation=1) for name in names)
    topology = Topology(version=1, nodes=nodes, shards=(ShardInfo(shard=0, replicas=names, founders=names),))
    told = await ask_replicas(_Caller(), topology, 1.0)
    assert [(one.node, one.status, one.error[:11]) for one in told] == [
        ("n1", GOOD, ""),
        ("n2", None, "down"),
        ("n3", None, "not a valid"),
    ]
