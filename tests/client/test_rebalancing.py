"""What the client asks before it begins a rebalance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from needle.base.errors import InvalidArgument, Unavailable
from needle.base.versions import EMPTIES
from needle.catalog.planning.rebalance import NOTHING
from needle.client.rebalancing import RebalanceMethods, check_asked
from needle.protocol import calls
from needle.protocol.catalog_commands import CatalogCommand, DrainNode, StartRebalance
from needle.routing.jobs import Ended, Job, JobState, RebalanceConfig
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import CATALOG, Plan, ReplicaMove, Wish
from needle.routing.topology import Topology
from needle.server.rebalance_api import RebalanceCoordinator

WAITING = "no leader of shard 1 answers, so what it holds is not known: it is left as it is until then"


class Fake(RebalanceMethods):
    """A catalog whose leader plans `made`."""

    def __init__(self, made: Plan) -> None:
        self._shards: Any = self
        self.made = made
        self.told: list[CatalogCommand] = []
        self.version = EMPTIES

    async def confirmed(self, timeout: float) -> Topology:
        return msgspec.structs.replace(topology(), cluster_version=self.version)

    def group(self, shard: int) -> Any:
        async def ask_leader(method: str, body: Any, timeout: float) -> bytes:
            return calls.encode(self.made)

        return SimpleNamespace(ask_leader=ask_leader)

    async def command(self, command: CatalogCommand, timeout: float) -> Any:
        self.told.append(command)
        return SimpleNamespace(version=7)


@pytest.mark.parametrize("what", ["drain", "start", "move", "split"])
def test_what_waits_for_a_shard_alone_is_refused_before_anything_is_decided(what: str) -> None:
    fake = Fake(Plan(moves=(), unmet=(), before=NOTHING.before, after=NOTHING.after, least=0, waiting=(WAITING,)))
    asked = {
        "drain": lambda: fake.drain_node("node-1"),
        "start": fake.start_rebalance,
        "move": lambda: fake.move_replica(1, "node-1", "node-6"),
        "split": lambda: fake.split_shard(1),
    }[what]
    with pytest.raises(Unavailable, match="no leader of shard 1"):
        asyncio.run(asked())
    assert not fake.told


def test_the_catalog_is_moved_by_its_name_once_all_nodes_know_that() -> None:
    fake = Fake(NOTHING)
    assert asyncio.run(fake.move_replica("catalog", "node-1", "node-6")) == 7
    wish = Wish(move=ReplicaMove(shard=CATALOG, source="node-1", target="node-6"))
    assert fake.told == [StartRebalance(wish, RebalanceConfig())]
    assert fake.told[0].needs() == EMPTIES
    assert StartRebalance(msgspec.structs.replace(wish, move=None), RebalanceConfig()).needs() < EMPTIES
    for wrong in (-1, "catalogue", None):
        with pytest.raises(InvalidArgument, match="shard"):
            asyncio.run(fake.move_replica(wrong, "node-1", "node-6"))  # type: ignore[arg-type]


class Slower(Fake):
    """Somebody else begins a rebalance after this client has looked."""

    async def command(self, command: CatalogCommand, timeout: float) -> Any:
        if isinstance(command, StartRebalance):
            raise InvalidArgument("rebalance 7 is running", field="rebalance")
        return await super().command(command, timeout)


def test_a_drain_is_one_command_so_that_one_that_is_refused_changes_nothing() -> None:
    fake = Fake(NOTHING)
    assert asyncio.run(fake.drain_node("node-1")) == 7
    assert fake.told == [StartRebalance(Wish(balance=False), RebalanceConfig(), empty="node-1")]
    slower = Slower(NOTHING)
    with pytest.raises(InvalidArgument, match="rebalance 7 is running") as caught:
        asyncio.run(slower.drain_node("node-1"))
    assert not slower.told and "--undo" not in caught.value.message


def test_a_drain_that_comes_too_late_in_an_older_cluster_says_what_it_has_changed() -> None:
    fake = Slower(NOTHING)
    fake.version = EMPTIES - 1
    with pytest.raises(InvalidArgument, match=r"rebalance 7 is running; node-1 is to be emptied.*--undo") as caught:
        asyncio.run(fake.drain_node("node-1"))
    assert fake.told == [DrainNode("node-1", True)] and caught.value.details == {"field": "rebalance"}


def test_a_pause_is_seconds_or_a_timedelta() -> None:
    made = RebalanceConfig(throttle_rate=timedelta(milliseconds=100))
    assert made == RebalanceConfig(throttle_rate=0.1) and type(made.throttle_rate) is float
    assert calls.decode(calls.encode(made), RebalanceConfig) == made
    with pytest.raises(InvalidArgument, match=r"throttle_rate = 7200\.0 is not allowed: a number from 0 to 3600"):
        RebalanceConfig(throttle_rate=timedelta(hours=2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: RebalanceConfig(max_concurrent_moves=2.5),
            "max_concurrent_moves = 2.5 .* a whole number from 1 to 100",
        ),
        (lambda: RebalanceConfig(batch_size=True), "batch_size = True .* a whole number from 1 to 10000"),
        (lambda: Wish(shards=2.5), "shards = 2.5 .* a whole number, or None"),
        (lambda: Wish(replicas="3"), "replicas = '3' .* a whole number, or None"),
        (lambda: Wish(range_bytes_max=1e9), "range_bytes_max = 1000000000.0 .* a whole number of bytes"),
        (lambda: Wish(retire=3), r"retire = 3 .* numbers of shards, as in \(3,\)"),
        (lambda: Wish(drain="node-1"), "drain = 'node-1' .* ids of nodes in a tuple"),
        (lambda: Wish(lost=(1,)), r"lost = \(1,\) .* ids of nodes in a tuple"),
    ],
)
def test_what_is_of_another_type_is_refused_when_it_is_made(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        make()


def test_what_nobody_can_rebuild_is_refused_at_once_though_something_else_could_move() -> None:
    move = MoveReplicas(group=2, before=("a",), after=("b",), documents=1, bytes=1, why="")
    why = "shard 1 cannot be rebuilt, because its only replica is on node-1: start node-1 again"
    fake = Fake(msgspec.structs.replace(NOTHING, moves=(move,), beyond_help=(why,)))
    with pytest.raises(InvalidArgument, match=r"lost = 'node-1' is not allowed: .*; shard 1 cannot be rebuilt") as told:
        asyncio.run(fake.start_rebalance(wish=Wish(lost=("node-1",))))
    assert told.value.details["field"] == "lost" and not fake.told


@pytest.mark.parametrize("ask", ["pause", "resume", "cancel"])
def test_to_pause_or_cancel_what_is_over_or_was_never_there_is_refused_in_plain_words(ask: str) -> None:
    def told(now: Topology, id_: int | None) -> str:
        with pytest.raises(InvalidArgument) as refused:
            check_asked(now, ask, id_)  # type: ignore[arg-type]
        assert refused.value.details["field"] == "rebalance"
        return refused.value.message

    never = topology()
    assert told(never, None) == f"this cluster was never rebalanced, so there is nothing to {ask}"
    assert told(never, 9) == "rebalance 9 is not known: there is none"
    job = Job(id=7, wish=Wish(), config=RebalanceConfig(), state=JobState.DONE)
    ended = (Ended(5, JobState.FAILED, "no room", 0, 0, 0, 0), Ended(6, JobState.CANCELLED, "", 0, 0, 0, 0))
    done = msgspec.structs.replace(never, rebalance=job, ended=ended)
    assert told(done, None) == told(done, 7) == f"rebalance 7 is done, so there is nothing to {ask}"
    assert told(done, 9).startswith("rebalance 9 is not known: the last one is 7")
    runs = msgspec.structs.replace(done, rebalance=msgspec.structs.replace(job, state=JobState.RUNNING))
    assert check_asked(runs, ask, None) == check_asked(runs, ask, 7) == 7  # type: ignore[arg-type]
    assert told(runs, 5) == f"rebalance 5 has failed, so there is nothing to {ask}; rebalance 7 is running"
    assert told(runs, 6) == f"rebalance 6 was cancelled, so there is nothing to {ask}; rebalance 7 is running"
    cancelling = msgspec.structs.replace(done, rebalance=msgspec.structs.replace(job, state=JobState.CANCELLING))
    if ask == "cancel":
        assert check_asked(cancelling, "cancel", 7) == 7
    else:  # "it cannot become pending"
        refused = f"rebalance 7 is being cancelled, so it cannot be {ask}d"
        assert told(cancelling, None) == told(cancelling, 7) == refused
    cancelled = msgspec.structs.replace(done, rebalance=msgspec.structs.replace(job, state=JobState.CANCELLED))
    if ask == "cancel":  # a command that is sent again after a lost answer
        assert check_asked(cancelled, "cancel", None) == 7
    else:
        assert told(cancelled, None) == f"rebalance 7 was cancelled, so there is nothing to {ask}"


def test_a_coordinator_says_what_it_takes() -> None:
    with pytest.raises(InvalidArgument, match=r"cluster = 'str' .* a DistributedCluster, a RaftCluster or a Client"):
        RebalanceCoordinator("127.0.0.1:5000")  # type: ignore[arg-type]
