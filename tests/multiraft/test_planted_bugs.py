"""Rules that bugs planted on purpose (proof.mutants) showed to be unguarded by the other tests."""

from __future__ import annotations

from pathlib import Path

from multiraft.harness import Cluster


async def test_a_restarted_replica_knows_its_term_and_its_vote(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        await cluster.put("a", 1)
        await cluster.converged()
        leader = await cluster.leader()
        held = leader.host.engine.groups[0].raft
        before = (held.term, held.vote)
        assert before[1] == leader.name
        await leader.down()
        cluster.network.isolate(leader.name)
        await leader.start()
        held = leader.host.engine.groups[0].raft
        assert (held.term, held.vote) == before
