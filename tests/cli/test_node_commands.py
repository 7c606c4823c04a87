"""`needle node add --everywhere` and `remove --fewer-replicas`: what they have the catalog decide."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import create
from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, RebalanceEnded, Unavailable
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.catalog.planning import rebalance
from needle.catalog.planning.rebalance import NOTHING
from needle.catalog.state import execute
from needle.cli import node_commands, node_share_commands, rebalance_commands
from needle.cli.node_list import usable_without_shards, without_shards
from needle.client import everywhere
from needle.protocol.catalog_commands import (
    AddShard,
    AskRebalance,
    AssignReplicas,
    CatalogCommand,
    ConfirmReplicas,
    CreateCluster,
    DrainNode,
    RemoveNode,
    StartRebalance,
    WeighNode,
    ZoneNode,
)
from needle.routing.jobs import JobState, Progress, RebalanceConfig
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Plan, Wish
from needle.routing.stats import ClusterStats, RebalanceStats, ShardStats, summarize
from needle.routing.topology import NodeState, Topology


def founded(shards: int, factor: int, nodes: int, assignment: list[list[str]] | None = None) -> Topology:
    command: CreateCluster = create(shards, factor, nodes)
    if assignment is not None:
        command = msgspec.structs.replace(command, assignment=assignment)
    return execute(Topology(), 1, command)[0]


class FakeClient:
    """The catalog itself, and nodes that hold at once what they are told; `away`: until it is cleared they do not."""

    def __init__(self, now: Topology) -> None:
        self.now = now
        self.away = False
        self.silent: set[str] = set()
        self.take: tuple[MoveReplicas, ...] = ()

    async def refresh_topology(self, *, confirmed: bool, timeout: float = 1) -> Topology:
        return self.now

    async def rebalance_by_weight(self, node: str, weight: float, config: object, *, timeout: float) -> int:
        return await self._start(WeighNode(node, weight))

    async def rebalance_by_zone(self, node: str, zone: str, config: object, *, timeout: float) -> int:
        return await self._start(ZoneNode(node, zone))

    async def start_rebalance(self, config: object, *, timeout: float) -> int:
        return await self._start(None)

    async def _start(self, first: WeighNode | ZoneNode | None) -> int:
        await self.change_catalog(StartRebalance(Wish(), RebalanceConfig(), first=first), timeout=1)
        return self.now.version

    async def plan_rebalance(self, wish: Wish, *, timeout: float = 1) -> Plan:
        """As of a cluster in which another rebalance moves what `wish` would, but for what others `take`."""
        return msgspec.structs.replace(NOTHING, moves=self.take, unmet=("key ranges of shard 0 are being moved",))

    async def describe_node(self, node: str, *, timeout: float) -> SimpleNamespace:
        assert node in self.now.addresses()
        if node in self.silent:
            raise Unavailable(f"{node} does not answer")
        return SimpleNamespace(lost="")

    async def change_catalog(self, command: CatalogCommand, *, timeout: float) -> None:
        self.now, result = execute(self.now, self.now.version + 1, command)
        if isinstance(result, NeedleError):
            raise result

    async def set_catalog_nodes(self, nodes: Iterable[str], *, timeout: float) -> None:
        await self._hold(CATALOG_GROUP, list(nodes))

    async def set_replicas(self, shard: int, nodes: Iterable[str], *, timeout: float) -> None:
        await self._hold(shard_group(shard), list(nodes))

    async def _hold(self, group: int, nodes: list[str]) -> None:
        held = self.now.holders(group)
        assert held is not None
        await self.change_catalog(AssignReplicas(group, list(held.wanted), nodes), timeout=1)
        if self.away:
            raise DeadlineExceeded("they do not hold it yet")
        held = self.now.holders(group)
        assert held is not None
        await self.change_catalog(ConfirmReplicas(group, held.assigned), timeout=1)

    async def start_replacement(self, old: str, new: str, config: object, *, timeout: float) -> None:
        """It was removed before."""

    async def get_stats(self, *, timeout: float) -> RebalanceStats:
        shards = [ShardStats(shard=info.shard, documents=10, bytes=2000) for info in self.now.serving]
        return summarize(self.now, ClusterStats(shards=tuple(shards)))

    async def plan_everywhere(self, node: str) -> list[MoveReplicas]:
        return await everywhere.sized(self, await everywhere.joining(self, node))

    async def hold_everywhere(self, node: str, *, timeout: float) -> list[int]:
        return await everywhere.carry_out(self, await everywhere.joining(self, node), timeout)

    async def plan_fewer_replicas(self, node: str) -> list[MoveReplicas]:
        return await everywhere.sized(self, await everywhere.leaving(self, node))

    async def hold_fewer_replicas(self, node: str, *, timeout: float) -> list[int]:
        return await everywhere.carry_out(self, await everywhere.leaving(self, node), timeout)

    async def remove_node(self, node: str, *, timeout: float) -> None:
        await self.change_catalog(RemoveNode(node), timeout=1)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[Topology], FakeClient]:
    def make(now: Topology) -> FakeClient:
        made = FakeClient(now)

        def run(_: object, work: Callable[[Any], Awaitable[Any]]) -> Any:
            return asyncio.run(work(made))  # type: ignore[arg-type]

        monkeypatch.setattr(node_commands, "run", run)
        monkeypatch.setattr(rebalance_commands, "run", run)
        return made

    return make


def replicas(now: Topology) -> list[list[str]]:
    return [list(info.replicas) for info in now.shards]


def add(node: str, timeout: float) -> None:
    node_commands.add(node, everywhere=True, cluster="", timeout=timeout)


def remove(node: str, timeout: float) -> None:
    node_commands.remove(node, fewer_replicas=True, cluster="", timeout=timeout)


Make = Callable[[Topology], FakeClient]
EACH = [["node-1", "node-2", "node-3"], ["node-2", "node-3", "node-1"], ["node-3", "node-1", "node-2"]]


def test_each_shard_keeps_its_preferred_leader(client: Make) -> None:
    one = client(founded(3, 3, 4, EACH))
    add("node-4", 10)
    assert replicas(one.now) == [[*nodes, "node-4"] for nodes in EACH]
    remove("node-4", 10)
    assert replicas(one.now) == EACH


def test_what_would_be_held_everywhere_is_printed_and_nothing_is_decided(
    client: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    before = founded(2, 3, 4, EACH[:2])
    one = client(before)
    node_commands.add("node-4", everywhere=True, dry_run=True, cluster="", timeout=10)
    assert one.now == before
    assert capsys.readouterr().out.splitlines() == [
        "1. replica of the catalog also to node-4 (0 B)",
        "2. replica of shard 0 also to node-4 (2.0 KiB)",
        "3. replica of shard 1 also to node-4 (2.0 KiB)",
        "3 moves copy 3.9 KiB; takes about 2 s at this pace, if it copies 28.6 MiB/s of a replica: that was measured "
        "elsewhere, for no move has shown it here yet",
    ]
    add("node-4", 10)
    node_commands.add("node-4", everywhere=True, dry_run=True, cluster="", timeout=10)
    assert capsys.readouterr().out == "nothing has to move\n"
    held = one.now
    node_commands.remove("node-4", fewer_replicas=True, dry_run=True, cluster="", timeout=10)
    assert one.now == held
    assert capsys.readouterr().out.splitlines()[1:] == [
        "2. remove the replica of shard 0 on node-4",
        "3. remove the replica of shard 1 on node-4",
        "3 moves copy 0 B; takes about 2 s at this pace",
        "then node-4 is forgotten",
    ]


def test_what_helps_a_node_without_shards_is_said_as_it_is() -> None:
    told = without_shards(founded(1, 3, 4), ["node-4"])
    assert "may be nothing" in told and "`needle node add node-4 --everywhere`" in told
    apart = without_shards(founded(2, 1, 4, [["node-1"], ["node-2"]]), ["node-3", "node-4"])
    assert apart == "note: no shard is on node-3, node-4: `needle rebalance` brings replicas there"


def test_nothing_is_said_of_a_node_that_was_emptied_on_purpose() -> None:
    now = founded(1, 3, 5)
    last = msgspec.structs.replace(now.nodes[-1], state=NodeState.DRAINING)
    assert usable_without_shards(now) == ["node-4", "node-5"]
    assert usable_without_shards(msgspec.structs.replace(now, nodes=(*now.nodes[:-1], last))) == ["node-4"]
    light = msgspec.structs.replace(now.nodes[-1], weight=0.0)
    assert usable_without_shards(msgspec.structs.replace(now, nodes=(*now.nodes[:-1], light))) == ["node-4"]


def test_of_a_node_that_was_removed_before_nobody_is_said_to_have_its_place(
    client: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    client(founded(1, 3, 4))
    node_commands.replace("node-9", "node-3", json=True, cluster="", timeout=10)
    told = capsys.readouterr()
    assert json.loads(told.out) == {"removed": "node-9", "replaced_by": None}
    assert "in the place of" not in told.err and "stop node-9" in told.err


def test_the_catalog_keeps_its_nodes(client: Make) -> None:
    one = client(founded(1, 1, 4))
    assert one.now.catalog == ("node-1", "node-2", "node-3") and replicas(one.now) == [["node-1"]]
    add("node-4", 10)
    assert one.now.catalog == ("node-1", "node-2", "node-3", "node-4")
    remove("node-4", 10)
    assert one.now.catalog == ("node-1", "node-2", "node-3")
    remove("node-2", 10)
    assert one.now.catalog == ("node-1", "node-3")


def test_the_catalog_gets_another_node_for_one_that_goes(client: Make) -> None:
    one = client(founded(1, 5, 5))
    remove("node-1", 10)
    assert one.now.catalog == ("node-2", "node-3", "node-4")


def test_where_shards_are_on_different_nodes_only_those_have_fewer_replicas_that_nobody_can_take(client: Make) -> None:
    one = client(founded(2, 3, 5, [["node-1", "node-2", "node-3"], ["node-3", "node-4", "node-5"]]))
    after = ("node-1", "node-2", "node-4")
    before = tuple(one.now.shards[0].replicas)
    one.take = (MoveReplicas(group=1, before=before, after=after, documents=0, bytes=0),)
    remove("node-3", 10)
    assert replicas(one.now) == [list(after), ["node-4", "node-5"]]
    assert one.now.catalog == ("node-1", "node-2", "node-4") and "node-3" not in one.now.addresses()


def test_a_catalog_that_nobody_takes_comes_to_an_odd_number(client: Make) -> None:
    one = client(founded(1, 5, 5))
    everywhere = [f"node-{n}" for n in range(1, 6)]
    one.now = execute(one.now, one.now.version + 1, AssignReplicas(0, list(one.now.catalog), everywhere))[0]
    remove("node-1", 10)
    assert one.now.catalog == ("node-2", "node-3", "node-4")


@pytest.mark.parametrize(
    ("catalog", "silent", "left"),
    [
        ([1, 2, 3, 4, 5], [1, 2], [1, 4, 5]),  # without a majority that answers nothing could be changed any more
        ([1, 2, 3, 4, 5], [1], [2, 4, 5]),
        ([1, 2, 3], [4], [1, 2, 5]),
    ],
)
def test_the_catalog_is_left_to_nodes_that_answer(
    client: Make, catalog: list[int], silent: list[int], left: list[int]
) -> None:
    def names(numbers: list[int]) -> list[str]:
        return [f"node-{n}" for n in numbers]

    one = client(founded(1, 5, 5))
    one.now = execute(one.now, 2, AssignReplicas(0, list(one.now.catalog), names(catalog)))[0]
    one.silent = set(names(silent))
    remove("node-3", 10)
    assert list(one.now.catalog) == names(left)


def test_who_is_only_giving_a_replica_up_keeps_it_when_the_node_goes_that_was_to_get_it(client: Make) -> None:
    """node-4 was taking the place of node-3, and is removed: node-3 has the data still, unless it is dead."""
    for factor in (1, 3):
        before = [f"node-{n}" for n in range(4 - factor, 4)]
        coming = [*before[:-1], "node-4"]
        for silent, left in (set[str](), before), ({"node-3"}, before[:-1]):
            one = client(founded(1, factor, 4, [before]))
            one.now = execute(one.now, 2, AssignReplicas(1, before, coming))[0]
            one.silent = silent
            if left:
                remove("node-4", 10)
                assert replicas(one.now) == [left]
            else:
                with pytest.raises(InvalidArgument, match="only node that holds the data of shard 0"):
                    remove("node-4", 10)


def test_a_change_that_was_not_waited_for_goes_on_and_may_be_repeated(client: Make) -> None:
    one = client(founded(3, 3, 4, EACH))
    one.away = True
    with pytest.raises(DeadlineExceeded):
        add("node-4", 10)
    assert all("node-4" in nodes for nodes in replicas(one.now))  # decided for every shard, whoever waits
    one.away = False
    add("node-4", 10)
    remove("node-1", 10)
    assert sorted(one.now.addresses()) == ["node-2", "node-3", "node-4"]


def test_half_of_the_shards_may_have_the_node_already(client: Make) -> None:
    one = client(founded(2, 3, 4, [["node-1", "node-2", "node-3", "node-4"], ["node-2", "node-1", "node-3"]]))
    add("node-4", 10)
    assert all("node-4" in nodes for nodes in replicas(one.now))


def test_what_cannot_be_is_refused_and_changes_nothing(client: Make) -> None:
    one = client(founded(2, 1, 4, [["node-1"], ["node-2"]]))
    before = one.now
    with pytest.raises(InvalidArgument, match="on different nodes each"):
        add("node-2", 10)
    with pytest.raises(InvalidArgument, match="node-2 is the only node that holds the data of shard 1"):
        remove("node-2", 10)
    alone = client(founded(1, 1, 1))
    with pytest.raises(InvalidArgument, match="only node that holds the data"):
        remove("node-1", 10)
    assert one.now == before and len(alone.now.addresses()) == 1


def test_a_node_that_was_removed_is_not_waited_for(client: Make) -> None:
    one = client(founded(1, 3, 4))
    remove("node-4", 10)
    gone = one.now.node("node-4")
    assert gone is not None and gone.state is NodeState.REMOVED
    with pytest.raises(InvalidArgument, match="was removed"):
        add("node-4", 1)


def test_a_node_that_is_waited_for_is_named_at_once(client: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = client(founded(1, 3, 3))
    with pytest.raises(DeadlineExceeded):
        add("nobody", 0.01)
    assert "nobody has not joined yet" in capsys.readouterr().err
    assert made.now.node("nobody") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda: node_share_commands.weight("node-1", "2", no_wait=True, cluster=""),
        lambda: node_share_commands.zone("node-1", "rack-1", no_wait=True, cluster=""),
        lambda: node_commands.remove("node-1", cluster=""),
        lambda: node_commands.remove("node-1", fewer_replicas=True, cluster=""),
        lambda: node_commands.remove("node-1", fewer_replicas=True, dry_run=True, cluster=""),
    ],
    ids=["weight", "zone", "remove", "fewer replicas", "dry run"],
)
def test_what_has_to_wait_for_another_rebalance_says_so_and_changes_nothing(
    client: Make, change: Callable[[], None]
) -> None:
    now, _ = execute(founded(1, 3, 4), 2, StartRebalance(Wish(), RebalanceConfig()))
    one = client(now)
    with pytest.raises(InvalidArgument, match=r"rebalance 2 is about to begin\..*--cancel"):
        change()
    assert one.now == now


def test_a_command_whose_rebalance_somebody_cancelled_has_not_done_its_work(client: Make) -> None:
    one = client(founded(1, 3, 4))

    async def progress(id: int, *, timeout: float) -> Progress:
        job = one.now.rebalance
        assert job is not None
        job = msgspec.structs.replace(job, state=JobState.CANCELLED)
        return rebalance.progress(job, NOTHING, (), 0.0)

    one.rebalance_progress = progress  # type: ignore[attr-defined]
    with pytest.raises(RebalanceEnded, match=r"was cancelled; what was not moved yet stays"):
        node_share_commands.weight("node-1", "2", cluster="")


@pytest.mark.parametrize(
    ("state", "why"), [(JobState.FAILED, "has failed: "), (JobState.CANCELLED, "was cancelled"), (JobState.PAUSED, "")]
)
def test_the_status_of_a_rebalance_that_did_not_do_its_work_fails(client: Make, state: JobState, why: str) -> None:
    one = client(execute(founded(1, 3, 4), 2, StartRebalance(Wish(), RebalanceConfig()))[0])

    async def progress(id: int | None, *, timeout: float) -> Progress:
        job = one.now.rebalance
        assert job is not None
        return rebalance.progress(msgspec.structs.replace(job, state=state), NOTHING, (), 0.0)

    one.rebalance_progress = progress  # type: ignore[attr-defined]
    if why:
        with pytest.raises(RebalanceEnded, match=f"rebalance 2 {why}") as raised:
            rebalance_commands.rebalance(status=True, cluster="")
        assert not raised.value.retryable and raised.value.details == {"id": 2, "state": state.value}
    else:
        rebalance_commands.rebalance(status=True, cluster="")


def test_what_is_held_everywhere_is_told_with_json(client: Make, capsys: pytest.CaptureFixture[str]) -> None:
    client(founded(2, 3, 4, [["node-1", "node-2", "node-3"]] * 2))
    node_commands.add("node-4", everywhere=True, cluster="", json=True)
    assert msgspec.json.decode(capsys.readouterr().out) == {"node": "node-4", "shards": [0, 1], "catalog": True}


@pytest.mark.parametrize(
    "command", [node_commands.add, node_commands.remove, node_commands.drain], ids=["add", "remove", "drain"]
)
def test_a_command_is_not_longer_than_its_timeout_while_somebody_has_it_paused(
    client: Make, monkeypatch: pytest.MonkeyPatch, command: Callable[..., None]
) -> None:
    one, looks = client(founded(1, 3, 4)), 0

    async def progress(id: int, *, timeout: float) -> Progress:
        nonlocal looks
        looks += 1
        assert looks < 100, "it waits without end"
        job = one.now.rebalance
        assert job is not None
        return rebalance.progress(msgspec.structs.replace(job, state=JobState.PAUSED), NOTHING, (), 0.0)

    async def plan(wish: Wish | None = None, *, timeout: float = 1) -> Plan:
        return NOTHING

    async def drain(node: str, config: object, *, timeout: float = 1) -> int:
        return await one.start_rebalance(config, timeout=1)

    monkeypatch.setattr(rebalance_commands, "LOOK_SECONDS", 0.001)
    one.rebalance_progress, one.plan_rebalance, one.drain_node = progress, plan, drain  # type: ignore[attr-defined,method-assign,assignment]
    with pytest.raises(DeadlineExceeded, match=r"is paused; `needle rebalance --resume`, then repeat"):
        command("node-1", cluster="", timeout=0.02)


def test_what_is_undone_has_no_plan_and_is_not_done_either(client: Make) -> None:
    now, _ = execute(founded(1, 3, 4), 2, DrainNode("node-4", True))
    one = client(now)
    with pytest.raises(NeedleError, match=r"--undo = 'with --dry-run' is not allowed"):
        node_commands.drain("node-4", undo=True, dry_run=True, cluster="")
    assert one.now == now


def test_a_cancel_names_the_nodes_that_get_nothing_new_all_the_same(
    client: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    draining, _ = execute(founded(1, 3, 4), 2, DrainNode("node-2", True))
    one = client(execute(draining, 3, StartRebalance(Wish(balance=False), RebalanceConfig()))[0])

    async def cancel(id: int | None, *, timeout: float) -> None:
        assert one.now.rebalance is not None
        await one.change_catalog(AskRebalance(one.now.rebalance.id, "cancel"), timeout=1)

    async def progress(id: int | None, *, timeout: float) -> Progress:
        assert one.now.rebalance is not None
        return rebalance.progress(one.now.rebalance, NOTHING, (), 0.0)

    one.cancel_rebalance = one.pause_rebalance = one.resume_rebalance = cancel  # type: ignore[attr-defined]
    one.rebalance_progress = progress  # type: ignore[attr-defined]
    rebalance_commands.rebalance(cancel=True, cluster="", json=True)
    told = capsys.readouterr()
    assert json.loads(told.out)["state"] == "cancelled"
    assert told.err.splitlines() == [
        "node-2 is to be emptied still, and gets nothing new: `needle node drain --undo node-2` has it used again"
    ]
    one.now, _ = execute(one.now, one.now.version + 1, DrainNode("node-2", False))
    rebalance_commands.rebalance(pause=True, cluster="")
    rebalance_commands.rebalance(cancel=True, cluster="")
    assert capsys.readouterr().err == ""
    one.now, _ = execute(one.now, one.now.version + 1, AddShard(1, ["node-1"]))
    rebalance_commands.rebalance(cancel=True, cluster="")
    assert capsys.readouterr().err.splitlines() == [
        "shard 1 stays, and owns no keys: `needle rebalance` gives it its share, `needle shard remove 1` takes it away"
    ]


@pytest.mark.parametrize("dry_run", [False, True])
def test_who_names_the_new_node_first_does_not_have_it_forgotten(client: Make, dry_run: bool) -> None:
    """Its name could not be used again, and the old node would stay."""
    one = client(founded(1, 3, 4))
    before = one.now
    with pytest.raises(InvalidArgument, match=r"`needle node replace node-2 node-4` puts that on node-4"):
        node_commands.replace("node-4", "node-2", dry_run=dry_run, cluster="", timeout=10)
    assert one.now == before
    one.silent = {"node-4"}  # it has died, and others have taken over what it held
    node_commands.replace("node-4", "node-2", cluster="", timeout=10)


async def test_who_waits_for_a_node_asks_again_where_nobody_answers() -> None:
    """A leader that is late once ended a wait of ten minutes."""
    answers: list[NeedleError | str] = [DeadlineExceeded("late"), Unavailable("no leader"), "there"]

    async def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, NeedleError):
            raise answer
        return answer

    assert await node_commands._until_answered(ask, time.monotonic() + 60) == "there"
    answers = [InvalidArgument("never"), "there"]
    with pytest.raises(InvalidArgument):
        await node_commands._until_answered(ask, time.monotonic() + 60)
    answers = [DeadlineExceeded("late"), "there"]
    with pytest.raises(DeadlineExceeded):
        await node_commands._until_answered(ask, time.monotonic() - 1)
