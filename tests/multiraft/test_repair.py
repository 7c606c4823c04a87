"""Logs that lost entries: what a replica may still do, and how it gets them back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from multiraft.harness import Cluster, DictMachine, Disk, Node, until
from multiraft.wal_util import open_wal
from needle.base.errors import CorruptLog, InvalidArgument
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_records import StartRecord, entry_key
from needle.raft.messages import Message, MessageType


def damage(node: Node, indexes: list[int], *, group: int = 0) -> None:
    """Flip a bit in entries of a node that is down."""
    store = open_wal(f"{node.directory}/log")
    for index in indexes:
        key = entry_key(group, index)
        value = store.get(key)
        assert value is not None, index
        broken = value[:-1] + bytes([value[-1] ^ 16])
        store.commit(lambda txn, key=key, broken=broken: txn.put(key, broken), True)
    store.close()


async def _written(cluster: Cluster) -> dict[str, int]:
    for number in range(12):
        await cluster.put(f"k{number}", number)
    await cluster.converged()
    return {f"k{number}": number for number in range(12)}


async def test_corrupt_entries_are_fetched_from_peers_and_no_vote_is_given_before(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        state = await _written(cluster)
        victim = next(n for n in cluster.running() if not n.host.is_leader(0))
        term = victim.host.engine.groups[0].log.term(4)
        await victim.down()
        victim.disks[0].saved = {
            "index": 4,
            "term": term,
            "conf": victim.disks[0].saved["conf"],
            "data": {k: v for k, v in state.items() if v < 2},
        }
        damage(victim, [7, 9])
        cluster.network.isolate(victim.name)
        await victim.start()
        assert not victim.host.engine.find(0).may_vote
        group = victim.host.engine.groups[0]
        old_term = group.log.repair.lost_term if group.log.repair else 0
        assert group.raft.term == old_term + 1
        assert group.log.last_index() == 6
        posted = group.raft.has_ready()
        ask = Message(
            # force: what refuses must be the repair, not the promise that every restarted node keeps for a while
            MessageType.VOTE,
            to=victim.name,
            frm=next(n for n in cluster.running() if n is not victim).name,
            term=group.raft.term + 5,
            index=99,
            log_term=group.raft.term + 4,
            force=True,
        )
        assert group.raft.refuses(ask) == ""
        group.receive(ask, victim.host.engine.clock.monotonic())
        assert group.raft.term == old_term + 1
        assert group.raft.has_ready() == posted
        with pytest.raises(CorruptLog, match="being repaired"):
            victim.host.force_election(0)
        cluster.network.heal()
        await until(lambda: victim.host.engine.find(0).may_vote)
        assert await cluster.converged() == state
        await victim.restart()
        assert victim.host.engine.find(0).may_vote
        await cluster.put("z", 1)


async def test_a_quorum_with_a_damaged_replica_elects_only_who_has_everything(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        await _written(cluster)
        followers = [n for n in cluster.running() if not n.host.is_leader(0)]
        leader = await cluster.leader()
        behind, victim = followers
        cluster.network.isolate(behind.name)
        await leader.host.propose(0, b'["only-on-two", 1]', 5)
        last = leader.host.status(0).last_index
        for node in (leader, victim, behind):
            await node.down()
        cluster.network.heal()
        victim.disks[0].saved["index"] = last - 1
        victim.disks[0].saved["data"].pop("only-on-two", None)
        damage(victim, [last])
        await victim.start()
        await behind.start()
        assert not victim.host.engine.find(0).may_vote
        # The two that run are a majority, but neither holds the acknowledged entry: they must not elect a leader.
        with pytest.raises(AssertionError):
            await until(lambda: any(n.host.is_leader(0) for n in (victim, behind)), 1.2)
        await leader.start()
        await until(lambda: victim.host.engine.find(0).may_vote)
        assert (await cluster.converged())["only-on-two"] == 1


async def test_what_the_state_machine_holds_needs_no_repair(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        state = await _written(cluster)
        victim = await cluster.leader()
        await victim.down()
        damage(victim, [3, 5])
        await victim.start()
        assert victim.host.engine.find(0).may_vote
        await cluster.put("z", 1)
        assert await cluster.converged() == {**state, "z": 1}


async def test_a_single_voter_refuses_a_damaged_log(tmp_path: Path) -> None:
    cluster = Cluster(str(tmp_path), nodes=1)
    node = cluster.nodes["n1"]
    await node.start()
    for number in range(5):
        await cluster.put(f"k{number}", number)
    await node.down()
    saved = node.disks[0].saved
    node.disks[0].saved = {**saved, "index": 3}
    damage(node, [5])
    with pytest.raises(CorruptLog, match=r"the catalog.*entry 5.*no other replica"):
        await node.start()


async def test_a_lost_log_below_a_state_machine_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(str(tmp_path))
    node = cluster.nodes["n1"]
    node.disks[0] = Disk()
    node.disks[0].saved["index"] = 100
    with pytest.raises(CorruptLog, match=r"has applied 100 entries.*new node id"):
        await node.start()


async def test_a_lost_state_machine_or_a_short_log_is_repaired_by_peers(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        state = await _written(cluster)
        emptied, shortened = [n for n in cluster.running() if not n.host.is_leader(0)]
        for node in (emptied, shortened):
            await node.down()
        store = open_wal(f"{shortened.directory}/log")
        store.commit(lambda txn: txn.delete_range(entry_key(0, 0), entry_key(0, 1 << 40)), True)
        store.close()
        emptied.disks[0] = Disk()
        await shortened.start()
        assert not shortened.host.engine.find(0).may_vote or shortened.disks[0].saved["index"] >= 13
        await emptied.start()
        assert await cluster.converged() == state
        assert not emptied.host.stopped


async def test_a_compacted_log_whose_state_is_gone_gets_a_snapshot(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        state = await _written(cluster)
        victim = next(n for n in cluster.running() if not n.host.is_leader(0))
        await victim.down()
        for node in cluster.nodes.values():
            if node is not victim:
                log = node.host.engine.groups[0].log
                await node.host.engine.durable(LogWrite(log=log, compact=StartRecord(10, log.term(10))))
        victim.disks[0] = Disk()
        store = open_wal(f"{victim.directory}/log")
        store.commit(lambda txn: txn.delete_range(entry_key(0, 0), entry_key(0, 1 << 40)), True)
        store.close()
        await victim.start()
        assert not victim.host.engine.find(0).may_vote
        await until(lambda: victim.host.engine.find(0).may_vote)
        assert await cluster.converged() == state
        await until(lambda: "snapshot.after_install" in victim.reached)


def test_harness_machine_refuses_gaps() -> None:
    from needle.multiraft.ports import Applied

    machine = DictMachine(Disk())
    with pytest.raises(AssertionError):
        machine.apply([Applied(random.Random(1).randint(5, 9), 1, b"", None)])


@pytest.mark.parametrize("written", [0, 12])
async def test_a_state_that_was_deleted_on_purpose_is_fetched_and_term_and_vote_are_kept(
    tmp_path: Path, written: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the log still has all entries or not. Before it has more than it acknowledged it does not vote: else it
    could help one to lead who missed its removal. It is no damage, and nobody is told of one, nor of its end."""
    caplog.set_level("INFO")
    async with Cluster(str(tmp_path)) as cluster:
        for number in range(written):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        victim = next(n for n in cluster.running() if not n.host.is_leader(0))
        term = victim.host.term(0)
        with pytest.raises(InvalidArgument, match="not open"):
            await victim.host.forget_state(0)
        await victim.host.engine.close_group(0)
        commit = victim.host.known_commit(0)
        assert commit >= 1
        await victim.host.forget_state(0)
        await victim.host.forget_state(0)
        assert victim.host.known_commit(0) == commit  # the log's records stay
        victim.disks[0].saved = Disk().saved
        cluster.network.isolate(victim.name)
        victim.machines[0] = DictMachine(victim.disks[0])
        victim.host.engine.open_group(0, victim.machines[0], voters=[])
        assert not victim.host.engine.find(0).may_vote and victim.host.term(0) == term + 1
        assert victim.host.members(0) == []  # those of long ago are nobody to campaign with
        await victim.restart()
        assert not victim.host.engine.find(0).may_vote and victim.host.term(0) == term + 1
        cluster.network.heal()
        await until(lambda: victim.host.engine.find(0).may_vote)
        assert await cluster.converged() == state
        await cluster.put("z", 1)
        assert not _told_of_damage(caplog)
        assert caplog.text.count("had given it up") == caplog.text.count("all of it again, and votes") == 1
        await _loses_its_state(victim)
        await until(lambda: _told_of_damage(caplog) == ["log_damaged", "log_repaired"])


async def _loses_its_state(node: Node) -> None:
    """But for the log, which was compacted."""
    log = node.host.engine.groups[0].log
    last = log.last_index()
    await node.host.engine.durable(LogWrite(log=log, compact=StartRecord(last, log.term(last))))
    await node.down()
    node.disks[0] = Disk()
    await node.start()
    assert not node.host.engine.find(0).may_vote


def _told_of_damage(caplog: pytest.LogCaptureFixture) -> list[str]:
    kinds = [getattr(one, "kind", "") for one in caplog.records]
    return [kind for kind in kinds if kind in ("log_damaged", "log_repaired")]


async def test_a_replica_whose_files_were_not_deleted_after_all_is_whole_and_later_damage_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The node was killed between the note in the log and the deletion, and the shard came back. What is lost then is
    no return."""
    async with Cluster(str(tmp_path)) as cluster:
        state = await _written(cluster)
        victim = next(n for n in cluster.running() if not n.host.is_leader(0))
        await victim.host.engine.close_group(0)
        await victim.host.forget_state(0)
        await victim.restart()
        assert victim.host.engine.find(0).may_vote
        assert not victim.host.engine.groups[0].log.given_up
        assert await cluster.converged() == state
        assert not _told_of_damage(caplog)
        await _loses_its_state(victim)
        await until(lambda: _told_of_damage(caplog) == ["log_damaged", "log_repaired"])
        assert await cluster.converged() == state


async def test_who_founded_a_group_alone_and_gave_it_up_can_hold_it_again(tmp_path: Path) -> None:
    """Its log says that nobody else has a copy, which was so then."""
    async with Cluster(str(tmp_path), nodes=1) as cluster:
        for number in range(12):
            await cluster.put(f"k{number}", number)
        (node,) = cluster.running()
        await node.host.engine.close_group(0)
        await node.host.forget_state(0)
        node.disks[0].saved = Disk().saved
        node.machines[0] = DictMachine(node.disks[0])
        node.host.engine.open_group(0, node.machines[0], voters=[])
        assert not node.host.engine.find(0).may_vote and not node.host.is_leader(0)
