"""What nodes and shards say becomes conditions exactly while it holds."""

from __future__ import annotations

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.base.ids import CATALOG_GROUP
from needle.catalog.state import execute
from needle.client.cluster_conditions import few_hold_the_catalog, of_nodes, of_shards, uneven
from needle.client.health import ClusterHealth, ShardHealth
from needle.client.missing_replicas import who_replaces
from needle.protocol.catalog_commands import MaintainNode, StartRebalance, WeighNode
from needle.protocol.peer_calls import ClockLevels, DiskRoom, FlushLevels, Levels, WhoAnswer
from needle.routing.jobs import Job, JobState, RebalanceConfig, Running
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Wish
from needle.routing.topology import Holders

DAY = 86_400.0


def of(disk: DiskRoom | None = None, levels: Levels | None = None) -> list[str]:
    who = WhoAnswer("node-1", "node-1:1", 1, "", 1.0, 1, 1, disk=disk, levels=levels)
    return [one.name for one in of_nodes(topology(shards=1, nodes=3), {"node-1": who})]


@pytest.mark.parametrize(
    ("free", "low", "said"),
    [(250, False, []), (200, False, []), (199, False, ["disk nearly full"]), (90, True, ["disk full"])],
)
def test_a_disk_is_nearly_full_before_it_refuses_data(free: int, low: bool, said: list[str]) -> None:
    assert of(disk=DiskRoom(free, 1000, 500, 100, low)) == said


def test_who_lacks_replicas_is_told_when_the_cluster_makes_up_for_none() -> None:
    now = topology()
    nodes, wanted = set(now.addresses()), ("node-1", "node-2", "node-3")
    assert "the cluster does" in who_replaces(now, nodes - {"node-2", "node-3"}, wanted, {"node-2", "node-3"})
    half = nodes - {"node-2", "node-3", "node-4"}
    assert "replaces none by itself" in who_replaces(now, half, wanted, {"node-2", "node-3"})


def test_a_node_in_maintenance_is_not_said_to_be_replaced() -> None:
    """It said that the cluster replaces it after replace_after, and to replace it by hand."""
    now = execute(topology(), 5, MaintainNode("node-2", True))[0]
    told, wanted = now.addresses().keys() - {"node-2"}, ("node-1", "node-2", "node-3")
    said = who_replaces(now, told, wanted, {"node-2"})
    assert "start node-2 again" in said and "needle maintenance exit" in said
    assert "the cluster does" not in said and "node replace" not in said
    both = who_replaces(now, told - {"node-3"}, wanted, {"node-2", "node-3"})
    assert "the cluster does; start node-2 again" in both


def test_where_every_node_holds_a_shard_the_cluster_is_not_said_to_replace_one() -> None:
    now = topology(shards=1, nodes=3)
    said = who_replaces(now, {"node-1", "node-3"}, now.shards[0].wanted, {"node-2"})
    assert "start another one that joins" in said and "the cluster does" not in said
    spare = topology(shards=1, nodes=4)
    (other,) = spare.addresses().keys() - set(spare.shards[0].wanted)
    gone, held = spare.shards[0].wanted[0], spare.shards[0].wanted
    assert "the cluster does" in who_replaces(spare, spare.addresses().keys() - {gone}, held, {gone})
    weighed = execute(spare, 5, WeighNode(other, 0.0))[0]
    assert "joins" in who_replaces(weighed, spare.addresses().keys() - {gone}, held, {gone})


def test_a_catalog_on_fewer_nodes_than_could_hold_it_is_told_with_what_to_type() -> None:
    now = topology(shards=1, factor=2, nodes=3).with_holders(CATALOG_GROUP, Holders(("node-1", "node-2")))
    nodes = set(now.addresses())
    (hint,) = few_hold_the_catalog(now, nodes)
    assert hint.startswith("3 nodes could hold the catalog, and 2 do (node-1, node-2)") and "`needle rebalance`" in hint
    assert few_hold_the_catalog(now, nodes - {"node-3"}) == []  # it is not back
    for command in (
        MaintainNode("node-3", True),
        WeighNode("node-3", 0.0),
        StartRebalance(Wish(), RebalanceConfig()),  # it brings it there
    ):
        assert few_hold_the_catalog(execute(now, 5, command)[0], nodes) == []
    assert few_hold_the_catalog(topology(shards=1, factor=2, nodes=3), nodes) == []
    assert few_hold_the_catalog(now.with_holders(CATALOG_GROUP, Holders(("node-1",), ("node-2",), 7)), nodes) == []


def test_a_disk_that_takes_no_more_files_is_said_to_be_so() -> None:
    disk = DiskRoom(900, 1000, 500, 100, True, "room for 3 more files, and for 320 there has to be")
    (one,) = of_nodes(
        topology(shards=1, nodes=3), {"node-1": WhoAnswer("node-1", "node-1:1", 1, "", 1.0, 1, 1, disk=disk)}
    )
    assert one.name == "disk full" and "room for 3 more files" in one.subject


def test_a_disk_that_keeps_nothing_free_is_never_nearly_full() -> None:
    assert of(disk=DiskRoom(1, 1000, 500, 0)) == []


@pytest.mark.parametrize(("used", "said"), [(600, []), (601, ["log nearly full"])])
def test_a_log_that_cannot_be_cut_is_told(used: int, said: list[str]) -> None:
    assert of(levels=Levels(used, 1000)) == said


@pytest.mark.parametrize(
    ("left", "said"),
    [(None, []), (14 * DAY, []), (14 * DAY - 1, ["certificate expires"]), (-DAY, ["certificate expires"])],
)
def test_a_certificate_is_told_two_weeks_before(left: float | None, said: list[str]) -> None:
    assert of(levels=Levels(0, 1000, left)) == said


def test_files_that_a_node_refuses_are_told_of() -> None:
    assert of(levels=Levels(0, 1000, 50 * DAY, certificate_refused="tls.key")) == ["certificate refused"]


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ((1000, 1000, 1000), []),
        ((1200, 900, 900), []),
        ((1201, 900, 899), ["shards uneven"]),
        ((120, 90, 60), []),  # chance, with so few
        ((5000, 0, None), []),  # nobody counts the third
    ],
)
def test_shards_are_uneven_from_a_fifth_over_the_mean(documents: tuple[int | None, ...], said: list[str]) -> None:
    shards = {
        number: ShardHealth(
            state="healthy",
            leader=None if count is None else "node-1",
            term=1,
            healthy_followers=2,
            total_followers=2,
            documents=count or 0,
            share=0.3,
            problems=[],
        )
        for number, count in enumerate(documents)
    }
    assert [one.name for one in uneven(ClusterHealth(healthy=True, shards=shards, warnings=[]))] == said


@pytest.mark.parametrize(
    ("flushes", "said"),
    [
        (None, []),
        (FlushLevels(1000, 10), []),
        (FlushLevels(1000, 11), ["fsync slow"]),
        (FlushLevels(2, 2), []),  # so few tell nothing
        (FlushLevels(3, 3), ["fsync slow"]),
        (FlushLevels(0, 0, 5.0), []),
        (FlushLevels(1000, 11, 5.1), ["disk hangs"]),
    ],
)
def test_a_slow_disk_and_one_that_hangs_are_told(flushes: FlushLevels | None, said: list[str]) -> None:
    assert of(levels=Levels(0, 1000, flushes=flushes)) == said


@pytest.mark.parametrize(
    ("clock", "said"),
    [
        (None, []),
        (ClockLevels(0.0009, 0.0, 0.001), []),
        (ClockLevels(0.0012, 0.0001, 0.001), ["clock rate off"]),
        (ClockLevels(-0.0012, 0.0001, 0.001), ["clock rate off"]),
        (ClockLevels(0.0012, 0.0003, 0.001), []),  # it may come of the readings
        (ClockLevels(0.0004, 0.0, 0.0), []),  # however small a bound is set, so much is not measured
        (ClockLevels(0.0006, 0.0, 0.0), ["clock rate off"]),
    ],
)
def test_a_clock_of_another_rate_is_told(clock: ClockLevels | None, said: list[str]) -> None:
    assert of(levels=Levels(0, 1000, clock=clock)) == said


@pytest.mark.parametrize(("state", "said"), [(JobState.PAUSED, "--resume"), (JobState.RUNNING, "bring its nodes back")])
def test_a_replica_that_waits_for_a_paused_rebalance_is_told_with_what_to_type(state: JobState, said: str) -> None:
    """It said to bring back nodes that were all well."""
    move = MoveReplicas(group=1, before=("node-1",), after=("node-1", "node-2"), documents=9, bytes=9)
    job = Job(
        id=1, wish=Wish(), config=RebalanceConfig(), state=state, running=(Running(id=2, move=move, nodes=("node-2",)),)
    )
    now = msgspec.structs.replace(topology(shards=1, factor=2, nodes=2), rebalance=job)
    lacks = ShardHealth(
        state="degraded", leader="node-1", term=1, healthy_followers=0, total_followers=1, documents=9, share=1.0,
        problems=[], missing_replicas=1,
    )  # fmt: skip
    (told,) = of_shards(now, ClusterHealth(healthy=False, shards={0: lacks}, warnings=[]), [], {"node-1"})[-1:]
    assert told.alert == "NeedleUnderReplicated" and said in told.action
