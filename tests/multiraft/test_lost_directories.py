"""Data directories that were emptied, replaced by an older copy, or contradict others: none is accepted in silence."""

from __future__ import annotations

import asyncio
import copy
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from multiraft.harness import FAST, Cluster, DictMachine, Disk, Link, Node, put, until
from multiraft.wal_util import open_wal
from needle.base.errors import ConnectionLost, InvalidArgument, LostState, NeedleError
from needle.multiraft.codec import decode_frame, encode_frame
from needle.multiraft.log.log_records import IDENTITY_KEY, META_KEY, PEER_PREFIX
from needle.raft.messages import Message, MessageType

CALM = replace(FAST, election_timeout=0.6)
"""Leaders stay, however busy the machine is."""


async def _written(cluster: Cluster, count: int = 12) -> None:
    for number in range(count):
        await cluster.put(f"k{number}", number)
    await cluster.converged()


async def _followers(cluster: Cluster) -> tuple[Node, Node, Node]:
    leader = await cluster.leader()
    left, right = [node for node in cluster.running() if node is not leader]
    return leader, left, right


def _wipe(node: Node) -> None:
    shutil.rmtree(node.directory)
    node.disks = {}


def _copy(node: Node, where: Path) -> dict[int, object]:
    """A copy of the node's directory, and of what its state machines hold."""
    shutil.copytree(node.directory, where)
    return copy.deepcopy({group: disk.saved for group, disk in node.disks.items()})


def _put_back(node: Node, where: Path, saved: dict[int, object]) -> None:
    shutil.rmtree(node.directory)
    shutil.copytree(where, node.directory)
    for group, state in saved.items():
        node.disks[group].saved = state  # type: ignore[assignment]


async def _is_lost(cluster: Cluster, node: Node) -> None:
    """The node says that it does not go on, and so do those that it speaks to; they go on without it."""
    await until(lambda: node.host.lost, 15)
    status = node.host.status(0)
    assert status.state == "Lost" and status.lost
    for ask in (node.host.check_serves, node.host.force_election):
        with pytest.raises(LostState, match="does not go on"):
            ask(0)
    await cluster.put("without it", 1)


async def _elects_nobody(nodes: list[Node]) -> None:
    with pytest.raises(AssertionError):
        await until(lambda: any(n.host.is_leader(0) for n in nodes), 1.5)


@pytest.mark.parametrize("older", ["empty", "of an earlier start", "of this start"])
async def test_an_emptied_or_older_directory_neither_acknowledges_nor_votes(tmp_path: Path, older: str) -> None:
    async with Cluster(str(tmp_path / "nodes"), config=CALM) as cluster:
        await _written(cluster)
        leader, good, victim = await _followers(cluster)
        saved: dict[int, object] = {}
        if older == "of an earlier start":
            await victim.down()
            saved = _copy(victim, tmp_path / "copy")
            await victim.start()
            await cluster.converged()
        elif older == "of this start":
            saved = _copy(victim, tmp_path / "copy")  # as a snapshot of the file system has it
        # These are on the leader and on the node that is about to forget them.
        cluster.network.isolate(good.name)
        for number in range(50):
            await (await cluster.leader()).host.propose(0, put(f"late{number}", number), 10)
        holder = await cluster.leader()
        await victim.down()
        if holder is victim:
            pytest.skip("the leader changed")
        _wipe(victim) if older == "empty" else _put_back(victim, tmp_path / "copy", saved)
        await victim.start()
        await until(lambda: victim.host.lost, 20)
        await until(lambda: victim.name in holder.host.engine.lives.refused(), 20)
        # Those two are a majority, but only the third has what was acknowledged: they must not elect a leader.
        await holder.down()
        cluster.network.heal()
        await _elects_nobody([good, victim])
        await holder.start()
        await _is_lost(cluster, victim)
        assert (await cluster.leader()).machines[0].data["late49"] == 49
        await victim.restart()
        assert victim.host.lost, "it remembers that it is lost"
        await until(lambda: victim.host.status(0).state == "Lost")
        leader = await cluster.leader()
        await until(lambda: victim.name in leader.host.status(0).refused, 20)
        assert victim.name in leader.host.refused()


async def test_a_copy_of_a_leader_that_ran_neither_votes_nor_follows(tmp_path: Path) -> None:
    """It is of this very start, and a leader acknowledges nothing: what it had on disk it has told all the same."""
    async with Cluster(str(tmp_path / "nodes"), config=CALM, groups=2) as cluster:
        for group in cluster.groups:
            await cluster.put("before", 1, group)
            await cluster.converged(group)
        victim, holder, behind = await _followers(cluster)
        saved = _copy(victim, tmp_path / "copy")
        cluster.network.isolate(behind.name)
        for number in range(50):
            await victim.host.propose(0, put(f"late{number}", number), 10)
        told, term = holder.host.engine.lives._peers[victim.name].told, victim.host.term(0)
        await until(lambda: told[0] >= (term, victim.host.applied_index(0)))
        await victim.down()
        _put_back(victim, tmp_path / "copy", saved)
        await victim.start()
        await until(lambda: victim.host.lost, 20)
        await until(lambda: victim.name in holder.host.engine.lives.refused(), 20)
        # Without it nobody but the holder has what was acknowledged, and the holder is away.
        await holder.down()
        cluster.network.heal()
        await _elects_nobody([behind, victim])
        await holder.start()
        await _is_lost(cluster, victim)
        assert (await cluster.leader()).machines[0].data["late49"] == 49


@pytest.mark.parametrize("older", [True, False], ids=["a copy", "its own directory"])
async def test_what_was_told_of_a_replica_counts_before_it_is_opened(tmp_path: Path, older: bool) -> None:
    """A copy may know nothing of a replica that was placed here since: it is opened later, if at all."""
    async with Cluster(str(tmp_path / "nodes"), config=CALM) as cluster:
        await _written(cluster)
        leader, _, victim = await _followers(cluster)
        saved = _copy(victim, tmp_path / "copy")
        cluster.groups = [0, 1]
        for node in cluster.running():
            machine = node.machines[1] = DictMachine(node.disks.setdefault(1, Disk()))
            node.host.engine.open_group(1, machine, voters=cluster.names)
        for number in range(5):
            await cluster.put(f"later{number}", 1, 1)
        await cluster.converged(1)
        listener = (await cluster.leader(1)) if (await cluster.leader(1)) is not victim else leader
        await until(lambda: listener.host.engine.lives._peers[victim.name].told.get(1, (0, 0))[1] > 0)
        await victim.down()
        if older:
            _put_back(victim, tmp_path / "copy", saved)
        cluster.groups = [0]
        await victim.start()
        if older:
            await until(lambda: victim.host.lost, 20)
        else:
            await cluster.put("on", 1)
            await until(lambda: victim.machines[0].data.get("on"))
            assert not victim.host.lost and not any(node.host.engine.lives.refused() for node in cluster.running())


async def test_a_leader_whose_tail_was_overwritten_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It told what it had on disk; then the leader of a later term replaced it, as it may what nobody acknowledged."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        old, left, right = await _followers(cluster)
        inner = Link.send

        def without_entries(link: Link, to: str, body: bytes) -> bool:
            frame = decode_frame(body)
            messages = [(group, msgspec.structs.replace(message, entries=())) for group, message in frame.messages]
            return inner(link, to, encode_frame(frame.nonce, frame.news, messages))

        monkeypatch.setattr(Link, "send", without_entries)
        index = old.host.status(0).last_index
        alone = [asyncio.ensure_future(old.host.propose(0, put(f"alone{number}", 1), 30)) for number in range(20)]
        tellers = [node.host.engine.lives._peers[old.name] for node in (left, right)]
        await until(lambda: all(peer.told[0] == (old.host.term(0), index + 20) for peer in tellers))
        cluster.network.isolate(old.name)
        monkeypatch.setattr(Link, "send", inner)
        await until(lambda: any(node.host.is_leader(0) for node in (left, right)), 20)
        leader = next(node for node in (left, right) if node.host.is_leader(0))
        await leader.host.propose(0, put("instead", 1), 10)
        cluster.network.heal()
        await until(lambda: old.machines[0].data.get("instead"), 20)
        assert old.host.status(0).last_index < index + 20
        for task in alone:
            task.cancel()
        await old.restart()
        await _written(cluster)
        assert not old.host.lost and not any(node.host.engine.lives.refused() for node in cluster.running())


async def test_what_a_leader_cannot_have_told_is_not_held_against_it(tmp_path: Path) -> None:
    """A stranger says it in its name, with entries that it does not have; the leader says otherwise right after."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, follower, _ = await _followers(cluster)
        peer, term = follower.host.engine.lives._peers[leader.name], leader.host.term(0)
        said = Message(MessageType.HEARTBEAT, follower.name, leader.name, term, hint=1 << 40)
        follower.host.engine.on_raft(leader.name, encode_frame(peer.talking, peer.news, [(0, said)]))
        assert peer.told[0] == (term, 1 << 40)
        await until(lambda: peer.told[0] == (term, leader.host.status(0).last_index))
        said = Message(MessageType.HEARTBEAT, follower.name, leader.name, term)  # as of an older release
        follower.host.engine.on_raft(leader.name, encode_frame(peer.talking, peer.news, [(0, said)]))
        assert peer.told[0][1] > 0
        await leader.restart()
        await _written(cluster)
        assert not leader.host.lost


async def test_an_older_directory_is_seen_though_it_cannot_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the very start that the others know last: all it lacks is what it told them. Its own questions are
    lost."""
    async with Cluster(str(tmp_path / "nodes"), config=CALM) as cluster:
        await _written(cluster)
        leader, good, victim = await _followers(cluster)
        saved = _copy(victim, tmp_path / "copy")
        cluster.network.isolate(good.name)
        for number in range(50):
            await leader.host.propose(0, put(f"late{number}", number), 10)
        before = leader.host.engine.lives._peers[victim.name].talking
        await victim.down()
        _put_back(victim, tmp_path / "copy", saved)
        inner = Link.call

        async def call(link: Link, to: str, method: str, body: bytes, timeout: float) -> bytes:
            if link.node == victim.name:
                raise ConnectionLost("lost by the test")
            return await inner(link, to, method, body, timeout)

        monkeypatch.setattr(Link, "call", call)
        await victim.start()
        peer = leader.host.engine.lives._peers[victim.name]
        await until(lambda: peer.talking != before or peer.refused, 20)
        await until(lambda: peer.refused, 3)


async def test_a_follower_hears_that_another_one_has_its_right_directory_back(tmp_path: Path) -> None:
    """Neither has anything to say to the other."""
    async with Cluster(str(tmp_path / "nodes"), config=CALM) as cluster:
        await _written(cluster)
        leader, good, victim = await _followers(cluster)
        older = _copy(victim, tmp_path / "older")
        await victim.restart()
        for node in (leader, good):  # both know of this start
            assert not await node.host.engine.lives.meet(victim.name)
        await victim.down()
        right = _copy(victim, tmp_path / "right")
        _put_back(victim, tmp_path / "older", older)
        await victim.start()
        for node in (leader, good):
            assert await node.host.engine.lives.meet(victim.name)
        await victim.down()
        _put_back(victim, tmp_path / "right", right)
        await victim.start()
        await until(lambda: not leader.host.engine.lives.refused() and not good.host.engine.lives.refused(), 30)
        assert not good.host.is_leader(0) and not victim.host.lost


async def test_a_leader_that_lacks_what_is_committed_elsewhere_stops_and_so_does_who_holds_it(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        holder, behind, victim = await _followers(cluster)
        cluster.network.isolate(behind.name)
        await holder.host.propose(0, put("acknowledged", 1), 10)
        last = holder.host.status(0).last_applied
        nodes = [holder, behind, victim]
        for node in nodes:
            await node.down()
        cluster.network.heal()
        _wipe(victim)
        for node in (holder, behind):  # nobody remembers anybody: as after an upgrade from a release without lives
            store = open_wal(f"{node.directory}/log")
            store.commit(lambda txn: txn.delete_range(PEER_PREFIX, META_KEY), True)
            store.commit(lambda txn: txn.delete(IDENTITY_KEY), True)
            store.close()
        await behind.start()
        await victim.start()
        leader = await until(lambda: next((n for n in (behind, victim) if n.host.is_leader(0)), None), 20)
        for number in range(last + 3):
            await leader.host.propose(0, put(f"other{number}", 1), 10)
        await holder.start()
        await until(lambda: holder.host.lost_replica(0), 20)
        await until(lambda: any(n.host.lost_replica(0) for n in (behind, victim)), 20)
        assert "acknowledged entries were lost" in holder.host.status(0).lost
        with pytest.raises(LostState):
            holder.host.check_serves(0)
        await holder.restart()
        assert holder.host.lost_replica(0), "it is durable"
        # Whoever leads next contradicts the holder as well: nobody serves what was lost.
        assert holder.machines[0].data["acknowledged"] == 1


async def test_an_old_directory_of_another_world_does_not_stop_those_that_know_each_other(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        old, left, right = await _followers(cluster)
        for node in (old, left, right):
            await node.down()
        for node in (left, right):
            _wipe(node)
            await node.start()
        await until(lambda: any(n.host.is_leader(0) for n in (left, right)), 20)
        await cluster.put("a", 1)
        await until(lambda: left.host.engine.lives._established and right.host.engine.lives._established)
        await old.start()
        await until(lambda: len(old.host.engine.lives.refused()) == 2)
        await cluster.put("b", 2)
        assert not left.host.lost and not right.host.lost
        assert old.machines[0].data["k11"] == 11 and "b" not in old.machines[0].data


@pytest.mark.parametrize("place", ["bootstrap.after_log", "bootstrap.after_apply", "log.after_commit"])
async def test_a_founder_that_dies_while_it_is_founded_is_the_same_node_afterwards(tmp_path: Path, place: str) -> None:
    cluster = Cluster(str(tmp_path), config=CALM)
    n1, n2, n3 = cluster.nodes.values()
    await n1.start()
    await n2.start()
    start = n3.start

    n3_failpoint = n3._failpoint

    def dying(name: str) -> None:
        if name == place and not n3.crashed:
            n3.crashed = True
        n3_failpoint(name)

    n3._failpoint = dying  # type: ignore[method-assign]
    with pytest.raises(BaseException, match=place):
        await start()
    n3._failpoint = n3_failpoint  # type: ignore[method-assign]
    n3.log_pool.close()
    n3.apply_pool.close()
    await n3.start()
    try:
        await cluster.put("a", 1)
        assert await cluster.converged() == {"a": 1}
        await n3.restart()
        await cluster.put("b", 1)
        await cluster.converged()
        assert not any(node.host.engine.lives.refused() or node.host.lost for node in cluster.running())
    finally:
        for node in (n1, n2, n3):
            await node.down()


async def test_a_name_cannot_be_given_to_another_directory(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, stays, gone = await _followers(cluster)
        rest = [leader.name, stays.name]
        await leader.host.change_membership(0, rest, [], 10)
        await gone.down()
        _wipe(gone)
        await gone.start(voters=[])
        with pytest.raises(InvalidArgument, match="new name"):
            await leader.host.change_membership(0, rest, [gone.name], 10)
        assert leader.host.engine.lives.refused() and not leader.host.refused() and not leader.host.status(0).refused
        cluster.nodes["n4"] = Node(cluster, "n4")
        await cluster.nodes["n4"].start(voters=[])
        await leader.host.change_membership(0, rest, ["n4"], 10)
        await until(lambda: cluster.nodes["n4"].machines[0].data.get("k11") == 11)


async def test_a_removed_node_may_come_back_with_its_own_directory(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, stays, gone = await _followers(cluster)
        await leader.host.change_membership(0, [leader.name, stays.name], [], 10)
        await gone.restart()
        await leader.host.change_membership(0, [leader.name, stays.name], [gone.name], 10)
        await cluster.put("z", 1)
        await until(lambda: gone.machines[0].data.get("z") == 1)


async def test_frames_of_strangers_have_no_effect(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, follower, _ = await _followers(cluster)
        term = leader.host.term(0)
        forged = Message(
            MessageType.HEARTBEAT, to=follower.name, frm="n3" if follower.name != "n3" else "n2", term=term + 7
        )
        follower.host.engine.on_raft(forged.frm, encode_frame(4711, 0, [(0, forged)]))
        follower.host.engine.on_raft("nobody", encode_frame(4711, 0, [(0, forged)]))
        await cluster.put("z", 1)
        assert follower.host.term(0) == term
        for body in (b"", b"\xff" * 40, encode_frame(2**63, 2**64 - 1, []), b"\x93\x01\x02\x91\x92\x00\xc0"):
            try:
                follower.host.engine.on_raft(forged.frm, body)
            except NeedleError as error:
                assert error.code == "protocol_error"
        await asyncio.sleep(0)
        assert not any(node.fatal for node in cluster.running())


async def test_who_sends_frames_of_another_life_all_the_time_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, follower, _ = await _followers(cluster)
        name = leader.name
        forged = Message(MessageType.HEARTBEAT, to=follower.name, frm=name, term=leader.host.term(0))
        said = f"frames that were not of this life of node {name} are dropped"
        for nonce in range(4711, 4731):
            follower.host.engine.on_raft(name, encode_frame(nonce, 0, [(0, forged)]))
            await until(lambda: not follower.host.engine.lives._peers[name].asking)
        assert [record.getMessage() for record in caplog.records].count(said) == 1


async def test_what_a_node_cannot_have_told_is_not_held_against_it(tmp_path: Path) -> None:
    """One forged acknowledgement in its name, does not cost it its directory."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, _, victim = await _followers(cluster)
        peer, term = leader.host.engine.lives._peers[victim.name], leader.host.term(0)
        said = Message(MessageType.APPEND_RESP, leader.name, victim.name, term, index=1 << 40, log_term=term)
        leader.host.engine.on_raft(victim.name, encode_frame(peer.talking, peer.news, [(0, said)]))
        assert peer.told[0] < (term, 1 << 40)
        await victim.restart()
        await _written(cluster)
        assert not victim.host.lost


async def test_a_follower_holds_nothing_against_a_node_that_was_said_to_it_in_its_name(tmp_path: Path) -> None:
    """It counts on no acknowledgement, so one of entries that only others hold, or of a term, may be anybody's."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, follower, victim = await _followers(cluster)
        assert not await follower.host.engine.lives.meet(victim.name)
        cluster.network.isolate(victim.name)
        for number in range(20):
            await leader.host.propose(0, put(f"late{number}", number), 10)
        await until(lambda: follower.machines[0].data.get("late19") == 19)
        if leader is not await cluster.leader():
            pytest.skip("the leader changed")
        peer, term, index = (
            follower.host.engine.lives._peers[victim.name],
            leader.host.term(0),
            leader.host.applied_index(0),
        )
        assert peer.talking
        before = dict(peer.told)
        for kind in (MessageType.APPEND_RESP, MessageType.HEARTBEAT_RESP, MessageType.VOTE_RESP):
            said = Message(kind, follower.name, victim.name, term, index=index, log_term=term)
            follower.host.engine.on_raft(victim.name, encode_frame(peer.talking, peer.news, [(0, said)]))
        assert peer.told == before
        await victim.restart()
        cluster.network.heal()
        await _written(cluster)
        assert not victim.host.lost and not any(node.host.engine.lives.refused() for node in cluster.running())


async def test_who_was_refused_in_the_life_that_it_still_lives_has_lost_nothing_that_it_told_in_it(
    tmp_path: Path,
) -> None:
    """What it held when it began, an empty log, is no measure of that."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await _written(cluster)
        leader, left, _ = await _followers(cluster)
        for one, other in ((leader, left), (left, leader)):
            one.host.engine.lives.refuse(other.name, "somebody else answered at its address")
        for number in range(20, 30):
            await cluster.put(f"k{number}", number)
        await until(lambda: not any(node.host.engine.lives.refused() for node in cluster.running()), 20)
        await cluster.converged()
        assert [node.host.lost for node in cluster.running()] == ["", "", ""]
