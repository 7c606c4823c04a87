"""Frames and calls that no working peer sends, into a whole host: nothing ends it, and it goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multiraft.harness import FAST, Cluster, until
from needle.base.errors import NeedleError
from needle.multiraft.codec import encode_frame
from needle.multiraft.inbound import CALL_METHODS
from needle.raft.messages import Message, MessageType
from raft.test_any_message import MESSAGES

FRAMES = st.tuples(st.sampled_from(["n1", "n2", "n3", "stranger", ""]), st.booleans(), st.lists(MESSAGES, max_size=4))


def _is_encodable(message: Message) -> bool:
    numbers = (message.term, message.log_term, message.index, message.commit, message.hint, message.hint_term)
    return all(-(2**63) <= number < 2**64 for number in numbers)


async def test_no_frame_and_no_call_ends_a_host(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=FAST) as cluster:
        await cluster.put("a", 1)
        victim = (await cluster.leader(), *cluster.running())[0]
        host = victim.host
        peers, others = host.engine.lives._peers, set(cluster.names) - {victim.name}
        await until(lambda: others <= peers.keys() and all(peers[name].talking for name in others))
        names = {"a": victim.name, "b": "n2", "c": "n3", "d": "stranger", "": ""}

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(FRAMES, st.binary(max_size=40), st.sampled_from(CALL_METHODS), st.binary(max_size=30))
        def throw(frame: tuple[str, bool, list[Message]], raw: bytes, method: str, body: bytes) -> None:
            frm, known, messages = frame
            peer = host.engine.lives._peers.get(frm)
            nonce = peer.talking if known and peer is not None else 4711
            said = [
                (0, Message(m.type, victim.name, frm, *[getattr(m, f) for f in Message.__struct_fields__[3:]]))
                for m in messages
                if _is_encodable(m)
            ]
            for some in (encode_frame(nonce, 0, said), raw):
                try:
                    host.engine.on_raft(frm, some)
                except NeedleError as error:
                    assert error.code == "protocol_error"
            call = host.engine.on_call(names.get(frm, frm), method, body)
            try:
                call.send(None)
            except (StopIteration, NeedleError):
                pass
            finally:
                call.close()
            host.engine._run_turn()
            assert host.engine.failure is None

        throw()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(node.fatal for node in cluster.running())
        assert not any(node.host.lost for node in cluster.running())
        for node in list(cluster.running()):  # frames as from members may depose; the group goes on all the same
            await node.restart()
        await cluster.put("b", 2)


async def test_a_frame_without_a_life_is_not_heard(tmp_path: Path) -> None:
    """0 stands for "nothing is heard yet": neither a stranger nor a peer that is refused comes in with it."""
    async with Cluster(str(tmp_path), config=FAST) as cluster:
        await cluster.put("a", 1)
        leader = await cluster.leader()
        victim, other = (node for node in cluster.running() if node is not leader)
        host = victim.host
        host.engine.lives.refuse(other.name, "for this test")
        term = host.term(0) + 1000
        for frm in ("stranger", other.name):
            vote = Message(MessageType.VOTE, victim.name, frm, term, log_term=term, index=1 << 40, force=True)
            host.engine.on_raft(frm, encode_frame(0, 0, [(0, vote)]))
            assert host.term(0) < term, frm
