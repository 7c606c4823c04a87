"""What a recovered directory becomes, and when nothing is recovered."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.base.errors import ConnectionLost, InvalidArgument, Unauthenticated, WrongCluster
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.connecting import system_caller
from needle.multiraft.offline import Standing
from needle.protocol import calls
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.topology import MoveInfo, NodeState, Topology
from needle.server.recovery.others import alive
from needle.server.recovery.plan import Found, Survey, plan_of, recovered

NOW = topology()
NODES = tuple(NOW.addresses())
ME = NODES[0]
DRAWS = [1, 2, 3, 4]


def found(group: int, last: int = 50, **more: Any) -> Found:
    return Found(**{"group": group, "commit": 40, "last": last, "term": 3, "voters": NODES, **more})


def survey(now: Topology = NOW, *, without: tuple[int, ...] = (), catalog: bool = True, last: int = 50) -> Survey:
    held = [shard_group(info.shard) for info in now.serving if info.shard not in without]
    groups = [CATALOG_GROUP, *held] if catalog else held
    return Survey(
        node=ME, cluster_id="shop", topology=now, found=tuple(found(group, last) for group in groups),
        emptied=dict.fromkeys(without, "no replica is here"),
    )  # fmt: skip


def test_it_is_a_cluster_of_one_node_that_nobody_takes_for_the_former() -> None:
    plan = plan_of(survey(), "", 5, DRAWS)
    assert plan.cluster_id == "shop-recovered-00000003"
    assert plan.groups[shard_group(0)] == Standing(51, 4)
    made = recovered(NOW, plan)
    assert made.founding == plan.founding != NOW.founding
    assert made.version == made.catalog_assigned == plan.groups[CATALOG_GROUP].index > NOW.version
    assert made.catalog == (ME,)
    assert list(made.addresses()) == [ME]
    assert {info.state for info in made.nodes if info.id != ME} == {NodeState.REMOVED}
    assert made.node(ME).incarnation == plan.incarnation  # type: ignore[union-attr]
    assert all((info.replicas, info.founders) == ((ME,), ()) for info in made.serving)
    assert made.map == NOW.map and made.collections == NOW.collections and made.keys == NOW.keys
    (note,) = made.recovered
    # Of the entries 41 to 50 nobody knows: others may have been acknowledged in their place.
    assert note.kept == dict.fromkeys((info.shard for info in NOW.serving), 40)
    assert "shard 0 behind index 40" in note.in_words()


def test_a_shard_of_which_nothing_is_there_begins_empty() -> None:
    lost = NOW.serving[-1].shard
    plan = plan_of(survey(without=(lost,), catalog=False), "other", 5, DRAWS)
    assert plan.groups[CATALOG_GROUP] == Standing(NOW.version + 1, 1)
    info = recovered(NOW, plan).shards[lost]
    assert (info.replicas, info.founders, info.assigned, info.since) == ((ME,), (ME,), 0, 0)
    assert "began empty" in recovered(NOW, plan).recovered[-1].in_words()


@pytest.mark.parametrize("cluster_id", ["shop", "x" * 201, "x\ny", " ", "shop-2 "])
def test_the_new_cluster_needs_a_name_of_its_own(cluster_id: str) -> None:
    with pytest.raises(InvalidArgument, match="cluster_id"):
        plan_of(survey(), cluster_id, 5, DRAWS)


def test_what_is_not_recovered() -> None:
    survey().check()
    with pytest.raises(InvalidArgument, match="knows the shape of no cluster"):
        survey(Topology()).check()
    alone = msgspec.structs.replace(survey(), found=tuple(found(one.group, voters=(ME,)) for one in survey().found))
    with pytest.raises(InvalidArgument, match="needs nobody else"):
        alone.check()
    with pytest.raises(InvalidArgument, match="no replica of any shard"):
        survey(without=tuple(info.shard for info in NOW.serving)).check()
    ranges = tuple(NOW.map.ranges(0)[:1])  # type: ignore[union-attr]
    moving = msgspec.structs.replace(NOW, moves=(MoveInfo(id=9, nonce=1, ranges=ranges, source=0, target=1),))
    survey(moving).check()
    with pytest.raises(InvalidArgument, match="were moving from shard 0 to shard 1"):
        survey(moving, without=(1,)).check()
    given = tuple(msgspec.structs.replace(info, since=51) for info in NOW.shards)
    with pytest.raises(InvalidArgument, match="before a move of key ranges at 51"):
        survey(msgspec.structs.replace(NOW, shards=given)).check()


class Answers:
    """By address: an answer, or an error."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    async def call(self, address: str, method: str, body: Any, timeout: float) -> Any:
        answer = self.answers[address]
        if isinstance(answer, Exception):
            raise answer
        return calls.encode(answer)


def who(node: str, **more: Any) -> WhoAnswer:
    return msgspec.structs.replace(WhoAnswer(node, "a:1", 1, "", 1.0, 77, 5), **more)


async def test_what_answers_lives_unless_it_is_surely_somebody_else() -> None:
    caller: Any = Answers({
        "a:1": who("n2"), "b:1": ConnectionLost("refused"), "c:1": Unauthenticated("a key is needed"),
        "d:1": WrongCluster("of another cluster"), "e:1": who("n3", uid=0), "f:1": who("n4", lost="emptied"),
        "g:1": who("n1"),
    })  # fmt: skip
    living, silent = await alive(caller, "n1", caller.answers, connects=nobody)
    assert list(living) == ["a:1", "c:1", "g:1"]
    assert list(silent) == ["b:1", "d:1", "e:1", "f:1"]
    assert "itself runs" in living["g:1"]


async def nobody(_: str) -> bool:
    return False


async def test_who_takes_connections_and_does_not_say_who_he_is_counts_as_alive() -> None:
    """A majority with TLS, asked without, counted as lost; so did one that hung for three seconds."""

    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(end, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    there, gone = f"{host}:{port}", "127.0.0.1:1"
    caller = system_caller("shop")
    try:
        living, silent = await alive(caller, "n1", [there, gone])
        assert list(living) == [there] and "--tls-ca" in living[there] and list(silent) == [gone]
        living, silent = await alive(caller, "n1", [there, gone], [there])
        assert not living and sorted(silent) == sorted([there, gone])
    finally:
        await caller.close()
        server.close()
