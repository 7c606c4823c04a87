"""The coordinator over a cluster on paper: coordinators end before and after any of their commands, two work at a time,
operators pause and resume; the rebalance comes to the same end, by legal steps only."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.planning.planned_world import MIB, Begun, World, info, join, world
from client.fake_shards import virtually
from needle.base.errors import ConnectionLost, Internal, InvalidArgument, NeedleError, NotLeader
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId
from needle.base.model import RaftStatus, WriteResult
from needle.catalog.planning import planner
from needle.catalog.planning.planner import plan
from needle.catalog.planning.rebalance import STUCK_MAX, check_invariants
from needle.catalog.state import execute
from needle.client.measuring import Measuring
from needle.protocol import calls
from needle.protocol.calls import StatusCall
from needle.protocol.catalog_commands import (
    AdvanceMove,
    AskRebalance,
    CatalogCommand,
    ConfirmReplicas,
    DrainNode,
    FinishMove,
    RemoveNode,
    StartMove,
    StartRebalance,
    StepRebalance,
    WeighNode,
)
from needle.protocol.peer_calls import WHO, DiskRoom, Levels, MemoryRoom, WhoAnswer
from needle.routing.copy_rates import MEASURED_ELSEWHERE
from needle.routing.jobs import Job, JobState, Phase, RebalanceConfig
from needle.routing.leadable import LEADABLE
from needle.routing.planned_moves import MoveRange, MoveReplicas
from needle.routing.plans import Plan, Replacement, ReplicaMove, Wish
from needle.routing.stats import ClusterStats, imbalance
from needle.routing.topology import MoveState, NodeState, Topology
from needle.server.upkeep.coordinator import Coordinator
from needle.server.upkeep.getting_on import STILL_SECONDS, Waiting
from needle.server.upkeep.lasting_calls import RATE_SECONDS
from needle.server.upkeep.refused_moves import PATIENCE_SECONDS


class Paper:
    """The catalog, and all nodes as a coordinator sees them. started: moves that are under way. silent: nodes that do
    not answer. breaks: what becomes of a command: told whether it was executed."""

    def __init__(self, made: World, rng: random.Random) -> None:
        self.made, self.rng = made, rng
        self.started: list[tuple[Any, Begun]] = []
        self.silent: set[NodeId] = set()
        self.tight: set[NodeId] = set()
        self.breaks: Callable[[bool], None] = lambda _: None
        self.leads = True
        self.leaderless: set[GroupId] = set()
        self.seen: list[Any] = []
        """All moves that were started."""
        self.held: list[str] = []
        self.lacking: dict[GroupId, str] = {}
        self.copied: dict[int, int] = {}
        self.due: tuple[NodeId, ...] = ()
        self.writes: dict[GroupId, float] = {}
        self.later = 0.0
        self.commands = self.refused = self.calls = 0

    def coordinator(self) -> Coordinator:
        paper = self

        class Node:
            node_id = "node-1"
            caller = SimpleNamespace(call=paper.call)
            catalog = object()
            host = SimpleNamespace(is_leader=lambda _: paper.leads, leader=lambda _: "node-2", stopped=False)
            shards = SimpleNamespace(topology=lambda: paper.made.topology, command=paper.command)
            rng = paper.rng

            @property
            def topology(self) -> Topology:
                return paper.made.topology

            async def blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
                return function(*arguments)

            def now(self) -> float:
                return paper.commands + paper.later

            def status(self, group: GroupId) -> RaftStatus:
                return paper.status("node-1", group)

            def due_to_heal(self, topology: Topology) -> tuple[NodeId, ...]:
                return paper.due

            async def confirmed(self, timeout: float) -> Topology:
                await asyncio.sleep(0)
                return paper.made.topology

            async def wait_topology(self, version: int, timeout: float) -> bool:
                return True

        return Coordinator(Node())  # type: ignore[arg-type]

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        self.commands += 1
        await asyncio.sleep(0)
        self.breaks(False)
        self.tell(command)
        self.breaks(True)
        return WriteResult(version=self.made.index, index=self.made.index)

    def tell(self, command: CatalogCommand) -> None:
        made = self.made
        start = command.start if isinstance(command, StepRebalance) else None
        held = made.topology.holders(start.group) if isinstance(start, MoveReplicas) else None
        able = {group: made._able(group) for group in made._groups()}
        made.index += 1
        made.topology, result = execute(made.topology, made.index, command)
        if isinstance(result, NeedleError):
            self.refused += 1
            raise result
        if start is not None:
            self.seen.append(start)
            self.started.append((start, Begun(made.index, frozenset(held.wanted if held else ()), able)))
        check_invariants(self.job.running, self.job.config.max_concurrent_moves)

    @property
    def job(self) -> Job:
        assert self.made.topology.rebalance is not None
        return self.made.topology.rebalance

    def finish(self) -> None:
        move, begun = self.started.pop(self.rng.randrange(len(self.started)))
        self.made.end(move, begun)

    # --- what nodes answer --------------------------------------------------------------------------------------------
    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.calls += 1
        await asyncio.sleep(0)
        node, born = next((one.id, one.incarnation) for one in self.made.topology.nodes if one.address == address)
        if node in self.silent:
            raise ConnectionLost(f"{node} does not answer")
        if method == WHO:
            free = {one.node: one.free for one in self.made.stats().nodes}[node]
            disk = None if free is None else DiskRoom(free + 5, 1 << 40, 1, 5)
            levels = Levels(0, 1, memory=MemoryRoom(90, 100, node in self.tight))
            return calls.encode(WhoAnswer(node, address, born, "", 1.0, 1, 1, disk=disk, levels=levels))
        return calls.encode(self.status(node, calls.decode(body, StatusCall).group))

    def status(self, node: NodeId, group: GroupId) -> RaftStatus:
        holders = self.made.topology.holders(group)
        assert holders is not None
        found = {one.shard + 1: one for one in self.made.stats().shards}.get(group)
        moving = (move.before for move, _ in self.started if isinstance(move, MoveReplicas) and move.group == group)
        leads = node == min(set(holders.wanted) - self.silent, default="") and group not in self.leaderless
        return RaftStatus(
            node_id=node, group=group, state="Leader" if leads else "Follower", current_term=1, leader=None,
            commit_index=1, last_applied=1, first_index=1, last_index=1, peers=[], learners=[], lease_remaining=0,
            leader_changes=0, voters=list(next(moving, holders.wanted)),
            held_moves=self.held if group == 1 else [], waits_for=self.lacking.get(group, "") if leads else "",
            documents=found.documents if found else 0, live_bytes=found.bytes if found else 0,
            writes=self.writes.get(group, 0.0) if leads else 0.0, copied=self.copied if leads and group == 1 else {},
        )  # fmt: skip


class Died(Exception):
    """A coordinator is no more."""


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def _to_its_end(paper: Paper, deaths: float, pauses: float) -> None:
    rng, coordinators = paper.rng, [paper.coordinator(), paper.coordinator()]

    def breaks(_: bool) -> None:
        if rng.random() < deaths:
            raise Died

    paper.breaks = breaks
    for _ in range(3000):
        if paper.job.over:
            return
        answers = await asyncio.gather(
            *(one._round() for one in rng.sample(coordinators, rng.choice([1, 1, 2]))), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, Died):
                coordinators[rng.randrange(2)] = paper.coordinator()
            elif isinstance(answer, BaseException) and not isinstance(answer, NeedleError):
                raise answer
        if paper.started and rng.random() < 0.6:
            paper.finish()
        if rng.random() < pauses and not paper.job.over:
            resumed = paper.job.state is JobState.PAUSED
            paper.tell(AskRebalance(paper.job.id, "resume" if resumed else "pause"))
    raise AssertionError(f"no end: {paper.job}")


WISHES = [Wish(shards=6, range_bytes_max=40 * MIB), Wish(retire=(0, 2), range_bytes_max=40 * MIB), Wish(balance=False)]


@pytest.mark.parametrize("seed", range(9))
def test_whoever_dies_whenever_it_comes_to_its_end(seed: int) -> None:
    async def work() -> None:
        rng = random.Random(seed)
        wish, made = WISHES[seed % 3], world(documents=400)
        paper = Paper(made, rng)
        if wish == Wish(balance=False):
            paper.made.topology = execute(made.topology, 1000, DrainNode("node-2", True))[0]
            paper.made.closed = {"node-2"}
        paper.made.index += 1
        paper.made.topology = execute(
            made.topology, made.index, StartRebalance(wish, RebalanceConfig(max_concurrent_moves=3))
        )[0]
        await _to_its_end(paper, deaths=0.15, pauses=0.05)
        assert paper.job.state is JobState.DONE, paper.job.why
        assert not paper.started
        assert not paper.job.running
        assert plan(made.topology, made.stats(), wish).moves == ()
        assert imbalance(made.sizes().values()) < 0.2
        assert paper.job.moved_bytes > 0
        if made.closed:
            assert not made.topology.hosted_by("node-2")
            assert "node-2" not in made.topology.catalog

    _run(work())


def _started(wish: Wish, made: World | None = None) -> Paper:
    paper = Paper(made or world(documents=400), random.Random(1))
    paper.made.index += 1
    paper.made.topology = execute(paper.made.topology, paper.made.index, StartRebalance(wish, RebalanceConfig()))[0]
    return paper


def test_a_shard_without_a_leader_is_left_alone_while_the_others_go_on() -> None:
    """It is not empty because nobody says what it holds; and the job neither fails nor is done before that."""

    async def work() -> None:
        paper = _started(Wish(retire=(0,)))
        paper.leaderless = {2}
        for _ in range(4 * STUCK_MAX):
            await paper.coordinator()._round()
            while paper.started:
                paper.finish()
        assert paper.made.topology.shards[0].retired
        moved = [move for move in paper.seen if isinstance(move, MoveRange)]
        assert {move.source for move in moved} == {0} and {move.target for move in moved} == {2, 3}
        assert paper.job.state is JobState.RUNNING and "no leader of shard 1 answers" in paper.job.why
        told = await paper.coordinator().progress(1.0)
        assert told is not None and "no leader of shard 1" in told.why
        paper.leaderless = set()
        for _ in range(STUCK_MAX):
            await paper.coordinator()._round()
            while paper.started:
                paper.finish()
        assert paper.job.state is JobState.DONE

    _run(work())


def test_calls_are_measured_once_the_map_has_stood_still_and_not_while_it_changes() -> None:
    """The rates that shards tell are of the last half minute: by those, ranges would go on and back again."""

    async def work() -> None:
        paper = _started(Wish(heat=1.0))
        paper.writes = {1: 900.0, 2: 100.0, 3: 100.0, 4: 100.0}
        coordinator = paper.coordinator()
        for _ in range(3):
            await coordinator._round()
        assert not paper.seen and "key ranges have moved lately" in paper.job.why
        assert (await coordinator.plan(Wish(heat=1.0), 1.0)).moves != ()  # who asks what would move need not wait
        paper.later += RATE_SECONDS
        for _ in range(50):
            await coordinator._round()
            paper.writes = {
                1: 900.0,
                2: 900.0,
                3: 0.0,
                4: 0.0,
            }  # what has moved counts where it was, and is not told yet
            while paper.started:
                paper.finish()
            if paper.job.over:
                break
        assert paper.job.state is JobState.DONE, paper.job.why
        ranges = [move for move in paper.seen if isinstance(move, MoveRange)]
        assert {move.source for move in ranges} == {0} and {move.target for move in ranges} == {1, 2, 3}

    _run(work())


def test_a_successor_measures_calls_anew_when_the_map_has_stood_still() -> None:
    async def work() -> None:
        paper = _started(Wish(heat=1.0))
        paper.writes = {1: 900.0}
        first, second = paper.coordinator(), paper.coordinator()
        await first._round()
        paper.later += RATE_SECONDS
        await first._round()
        assert paper.started
        while paper.started:
            paper.finish()
        begun = len(paper.seen)
        await second._round()
        assert len(paper.seen) == begun and "key ranges have moved lately" in paper.job.why
        paper.writes, paper.later = dict.fromkeys(range(1, 5), 225.0), paper.later + RATE_SECONDS
        for _ in range(10):
            await second._round()
            while paper.started:
                paper.finish()
        assert paper.job.state is JobState.DONE

    _run(work())


def test_a_plan_says_how_fast_the_latest_moves_copied() -> None:
    async def work() -> None:
        paper = _started(Wish(retire=(0,)))
        coordinator = paper.coordinator()
        await coordinator._round()
        assert (await coordinator.plan(Wish(), 1.0)).rates == MEASURED_ELSEWHERE
        copying = [one.id for one in paper.job.running if isinstance(one.move, MoveRange)]
        looks = []
        for at in range(1, 9):
            paper.copied = dict.fromkeys(copying, 2 * at)
            paper.later += 0.5
            looks.append(paper.commands + paper.later)
            await coordinator._round()
        while paper.started:
            paper.finish()
        await coordinator._round()
        rates = (await coordinator.plan(Wish(), 1.0)).rates
        assert rates.range_documents == pytest.approx(14 / (looks[-1] - looks[0]), rel=0.1)
        assert rates.replica_bytes is None

    _run(work())


def test_who_asks_for_a_plan_is_told_which_shards_it_leaves_alone_after_an_elections_time() -> None:
    async def work() -> None:
        paper = _started(Wish(retire=(0,)))
        paper.leaderless = {2}
        began = asyncio.get_running_loop().time()
        made = await paper.coordinator().plan(Wish(retire=(0,)), 1.0)
        assert made.moves and any("no leader of shard 1" in line for line in made.in_words())
        assert asyncio.get_running_loop().time() > began
        paper.leaderless = set()
        assert not (await paper.coordinator().plan(Wish(retire=(0,)), 1.0)).waiting

    virtually(work())


def _moved_by_hand() -> tuple[Paper, MoveReplicas]:
    """A replica of shard 0 is on its way from one node to another, by hand."""
    made = world()
    held = made.topology.shards[0].wanted
    target = next(one.id for one in made.topology.nodes if one.id not in held)
    paper = _started(Wish(move=ReplicaMove(shard=0, source=held[0], target=target)), made)
    asyncio.run(paper.coordinator()._round())
    ((move, _),) = paper.started
    assert isinstance(move, MoveReplicas)
    return paper, move


def test_it_says_which_node_a_move_of_replicas_waits_for() -> None:
    paper, move = _moved_by_hand()
    paper.lacking = {1: f"{move.added[0]} (in maintenance) does not answer, or is lost", 2: "of no concern"}
    told = asyncio.run(paper.coordinator().progress(1.0))
    assert told is not None and f"shard 0: {move.added[0]} (in maintenance) does not answer" in told.why
    assert "of no concern" not in told.why


def test_what_is_lost_is_rebuilt_beside_a_move_that_waits() -> None:
    """Its target may be in maintenance for days; one rebalance runs at a time."""
    paper, move = _moved_by_hand()
    gone = next(
        one for one in paper.made.topology.serving[1].wanted if one not in (*move.before, *move.after, "node-1")
    )
    paper.silent, paper.made.dead = {gone}, {gone}
    asyncio.run(paper.coordinator()._round())
    assert len(paper.started) == 1  # it is not gone for long yet
    paper.due = (gone,)
    for _ in range(3):
        asyncio.run(paper.coordinator()._round())
    rebuilt = [one for one, _ in paper.started[1:]]
    assert rebuilt and all(isinstance(one, MoveReplicas) and one.removed == (gone,) for one in rebuilt)
    assert paper.job.state is JobState.RUNNING and move in [one.move for one in paper.job.running]


def test_who_does_not_lead_the_catalog_says_who_does() -> None:
    async def work() -> None:
        paper = _started(Wish())
        paper.leads = False
        for ask in (paper.coordinator().progress(1.0), paper.coordinator().plan(Wish(), 1.0)):
            with pytest.raises(NotLeader) as told:
                await ask
            assert told.value.details["leader"] == "node-2"
            assert told.value.details["group"] == CATALOG_GROUP

    _run(work())


def test_a_wish_that_cannot_be_any_more_fails_with_the_reason() -> None:
    async def work() -> None:
        paper = _started(Wish(drain=("node-9",)))
        await paper.coordinator()._round()
        assert paper.job.state is JobState.FAILED
        assert "drain = 'node-9'" in paper.job.why
        with pytest.raises(InvalidArgument, match="is failed"):
            paper.tell(AskRebalance(paper.job.id, "pause"))

    _run(work())


def test_a_cancelled_one_takes_replicas_back() -> None:
    async def work() -> None:
        made = world(documents=400)
        made.topology = execute(made.topology, 1000, DrainNode("node-2", True))[0]
        paper = _started(Wish(shards=5), made)
        coordinator = paper.coordinator()
        await coordinator._round()
        replicas = [(move, begun) for move, begun in paper.started if isinstance(move, MoveReplicas)]
        assert replicas
        while any(not isinstance(move, MoveReplicas) for move, _ in paper.started):
            at = next(n for n, (move, _) in enumerate(paper.started) if not isinstance(move, MoveReplicas))
            made.end(*paper.started.pop(at))
        paper.tell(AskRebalance(paper.job.id, "cancel"))
        told = await coordinator.progress(1.0)
        assert told is not None
        assert Phase.PREPARE in told.phases.values()
        for _ in range(5):
            await coordinator._round()
        assert paper.job.state is JobState.CANCELLED
        for move, _ in replicas:
            if not isinstance(move, MoveReplicas):
                continue
            holders = made.topology.holders(move.group)
            assert holders is not None
            assert set(holders.wanted) == set(move.before)

    _run(work())


async def _ranges_under_way() -> Paper:
    """Key ranges move from shard 0 to the others, and are being copied."""
    paper = _started(Wish(retire=(0,)))
    await paper.coordinator()._round()
    assert {move.source for move, _ in paper.started if isinstance(move, MoveRange)} == {0}
    return paper


def test_a_cancelled_one_gives_ranges_back_and_waits_for_those_that_are_decided() -> None:
    async def work() -> None:
        paper = await _ranges_under_way()
        first, *others = (one.id for one in paper.job.running)
        assert others
        paper.tell(AskRebalance(paper.job.id, "cancel"))
        for _ in range(5):
            await paper.coordinator()._round()
        states = {one.id: one.state for one in paper.made.topology.moves}
        assert set(states.values()) == {MoveState.CANCELLING}
        assert paper.job.state is JobState.CANCELLING
        for id_ in others:
            paper.tell(AdvanceMove(id_, MoveState.GIVEN_UP))
        await paper.coordinator()._round()
        assert [one.id for one in paper.job.running] == [first]
        assert "is decided" in paper.job.why
        for _ in range(2 * STUCK_MAX):
            await paper.coordinator()._round()
        assert paper.job.state is JobState.CANCELLING  # its shards answer: it will end
        paper.tell(AdvanceMove(first, MoveState.SWITCHED, 1, 1))
        paper.tell(FinishMove(first))
        await paper.coordinator()._round()
        assert paper.job.state is JobState.CANCELLED
        assert paper.job.moves == 1
        assert {one.state for one in paper.made.topology.moves} == {MoveState.GIVEN_UP}

    _run(work())


def test_a_cancel_names_the_shard_that_it_waits_for_and_does_not_wait_for_ever() -> None:
    async def work() -> None:
        paper = await _ranges_under_way()
        paper.tell(AskRebalance(paper.job.id, "cancel"))
        paper.silent = set(paper.made.topology.shards[0].replicas)
        for _ in range(3):
            await paper.coordinator()._round()
        assert {one.state for one in paper.made.topology.moves} == {MoveState.CANCELLING}
        assert "shard 0 does not answer" in paper.job.why
        told = await paper.coordinator().progress(1.0)
        assert told is not None
        assert "shard 0 does not answer" in told.why
        for _ in range(STUCK_MAX):
            await paper.coordinator()._round()
        assert paper.job.state is JobState.CANCELLED
        assert "left to end by itself" in paper.job.why
        assert "shard 0 does not answer" in paper.job.why
        paper.silent = set()
        paper.tell(StartRebalance(Wish(), RebalanceConfig(max_concurrent_moves=1)))
        before = len(paper.started)
        await paper.coordinator()._round()
        assert len(paper.started) == before  # what the first one left behind counts
        assert "under way" in paper.job.why

    _run(work())


def test_progress_says_what_is_going_on() -> None:
    async def work() -> None:
        paper = await _ranges_under_way()
        paper.held = ["move 7 to shard 2 begins again"]
        told = await paper.coordinator().progress(1.0)
        assert told is not None
        assert "move 7 to shard 2 begins again" in told.why
        assert f"{len(paper.job.running)} of at most 10 moves at a time run" in told.why
        paper.tell(AskRebalance(paper.job.id, "pause"))
        told = await paper.coordinator().progress(1.0)
        assert told is not None
        assert "until it is resumed" in told.why

    _run(work())


def test_progress_asks_and_plans_once_for_many_who_look(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Wish] = []

    def counted(topology: Topology, stats: ClusterStats, wish: Wish | None = None, named: bool = False) -> Plan:
        planned.append(wish or Wish())
        return plan(topology, stats, wish, named)

    monkeypatch.setattr(planner, "plan", counted)

    async def work() -> None:
        paper = await _ranges_under_way()
        coordinator = paper.coordinator()
        first = await coordinator.progress(1.0)
        asked, made = paper.calls, len(planned)
        for _ in range(20):
            assert await coordinator.progress(1.0) == first
        assert (paper.calls, len(planned)) == (asked, made)
        paper.tell(AskRebalance(paper.job.id, "pause"))
        told = await coordinator.progress(1.0)
        assert told is not None
        assert told.state is JobState.PAUSED
        assert len(planned) == made + 1

    _run(work())


def test_in_a_large_cluster_only_what_changes_is_asked_again() -> None:
    async def work() -> None:
        made = world(shards=200, documents=400)
        paper = Paper(made, random.Random(1))
        measuring, node = Measuring(), SimpleNamespace(call=paper.call)

        def tell(*commands: CatalogCommand) -> None:
            for command in commands:
                made.index += 1
                made.topology, result = execute(made.topology, made.index, command)
                assert isinstance(result, WriteResult)

        async def calls_of(now: float) -> int:
            before = paper.calls
            found = await measuring.measure(node, made.topology, 1.0, now)
            assert not found.stats.unknown
            assert len(found.stats.shards) == 200
            return paper.calls - before

        assert await calls_of(0.0) == 606
        assert await calls_of(0.5) == 0
        assert made.topology.map is not None
        ranges = made.topology.map.ranges(7)
        tell(StartMove(1, made.topology.map.epoch, ranges, 7, 9))
        move = made.topology.moves[0].id
        assert await calls_of(1.0) == 6
        tell(AdvanceMove(move, MoveState.FREEZING), AdvanceMove(move, MoveState.SWITCHED, 1, 1), FinishMove(move))
        assert await calls_of(1.5) == 6
        assert await calls_of(2.0) == 0
        tell(StartMove(2, made.topology.map.epoch, ranges, 9, 7))
        move = made.topology.moves[0].id
        tell(AdvanceMove(move, MoveState.FREEZING), AdvanceMove(move, MoveState.SWITCHED, 2, 2), FinishMove(move))
        assert await calls_of(2.2) == 6
        assert await calls_of(3.0) == 606  # whole again: 200 calls a second
        paper.silent = {"node-1"}
        assert await calls_of(3.2) == 0

    _run(work())


def test_a_defect_of_the_planner_ends_the_rebalance_and_no_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(planner, "plan", broken)

    async def work() -> None:
        paper = _started(Wish(shards=5))
        with pytest.raises(Internal, match="float infinity"):
            await paper.coordinator().plan(Wish(), 1.0)
        await paper.coordinator()._round()
        assert paper.job.state is JobState.FAILED
        assert "float infinity" in paper.job.why

    _run(work())


def _healing_of(made: World, *lost: NodeId) -> Paper:
    """A rebalance that rebuilds what these nodes hold, one move at a time."""
    paper = Paper(made, random.Random(1))
    made.dead = set(lost)
    paper.silent = set(lost)
    made.index += 1
    start = StartRebalance(Wish(lost=lost, balance=False), RebalanceConfig(max_concurrent_moves=1), True)
    made.topology, result = execute(made.topology, made.index, start)
    assert not isinstance(result, NeedleError)
    return paper


def _holds(topology: Topology, node: NodeId) -> bool:
    return bool(topology.hosted_by(node)) or node in topology.catalog


def test_healing_of_two_nodes_goes_on_when_one_is_removed_meanwhile() -> None:
    async def work() -> None:
        made = world(nodes=7, documents=400)
        paper = _healing_of(made, "node-2", "node-5")
        coordinator = paper.coordinator()
        for _ in range(100):
            if not all(_holds(made.topology, node) for node in ("node-2", "node-5")):
                break
            await coordinator._round()
            while paper.started:
                paper.finish()
        empty, left = sorted(("node-2", "node-5"), key=lambda node: _holds(made.topology, node))
        assert not _holds(made.topology, empty) and _holds(made.topology, left)
        paper.tell(RemoveNode(empty))
        for _ in range(100):
            if paper.job.over:
                break
            await coordinator._round()
            while paper.started:
                paper.finish()
        assert paper.job.state is JobState.DONE, paper.job.why
        assert not _holds(made.topology, left)
        with pytest.raises(InvalidArgument, match="lost"):  # who asks again is told
            await coordinator.plan(Wish(lost=(empty,), balance=False), 1.0)

    _run(work())


def test_what_was_about_a_node_that_is_removed_is_not_about_another_one_of_weight_0() -> None:
    """What is left of its wish names nothing, and a wish that never named anything is about all nodes of weight 0."""

    async def work() -> None:
        made = world(nodes=3, documents=400)
        made.documents = [one for one in made.documents if one[0] < b"\x00\x02"]  # what two of four shards own
        join(made, info(4))
        made.index += 1
        made.topology = execute(made.topology, made.index, WeighNode("node-3", 0.0))[0]
        paper = _started(Wish(weights={"node-4": 0.5}), made)
        paper.tell(RemoveNode("node-4"))
        for _ in range(4 * STUCK_MAX):
            if paper.job.over:
                break
            await paper.coordinator()._round()
            while paper.started:
                paper.finish()
        assert paper.job.state is JobState.DONE and paper.job.moves, paper.job.why
        assert "left as it is: node-3 keeps its replica of" in paper.job.why

    _run(work())


def test_one_that_cannot_be_any_more_fails_when_what_it_has_begun_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        paper = await _ranges_under_way()
        count, before = len(paper.job.running), paper.job.revision

        def impossible(*_: object) -> Plan:
            raise InvalidArgument("a shard that it names is gone", field="retire")

        monkeypatch.setattr(planner, "plan", impossible)
        for _ in range(3):
            await paper.coordinator()._round()
        assert paper.job.state is JobState.RUNNING and "is gone" in paper.job.why
        assert paper.job.revision == before + 1  # it is said once
        told = await paper.coordinator().progress(1.0)
        assert told is not None and len(told.phases) == count and "is gone" in told.why
        while paper.started:
            paper.finish()
            await paper.coordinator()._round()
        assert paper.job.state is JobState.FAILED and "is gone" in paper.job.why
        assert not paper.job.running and paper.job.moves == count

    _run(work())


def test_one_that_cannot_be_any_more_can_be_cancelled_while_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        paper = await _ranges_under_way()

        def impossible(*_: object) -> Plan:
            raise InvalidArgument("a shard that it names is gone", field="retire")

        monkeypatch.setattr(planner, "plan", impossible)
        await paper.coordinator()._round()
        paper.tell(AskRebalance(paper.job.id, "cancel"))
        await paper.coordinator()._round()
        assert {one.state for one in paper.made.topology.moves} == {MoveState.CANCELLING}

    _run(work())


def test_a_move_that_is_refused_neither_holds_up_others_nor_fails_what_goes_on() -> None:
    async def work() -> None:
        paper = _started(Wish(retire=(0,)))
        refused: list[MoveRange] = []
        told = paper.tell

        def tell(command: CatalogCommand) -> None:
            start = command.start if isinstance(command, StepRebalance) else None
            if isinstance(start, MoveRange) and start.target == 1:
                refused.append(start)
                raise InvalidArgument("shard 1 takes nothing now", field="target")
            told(command)

        paper.tell = tell  # type: ignore[method-assign]
        for _ in range(2 * STUCK_MAX):
            await paper.coordinator()._round()
        assert len(refused) > STUCK_MAX
        assert {move.target for move in paper.seen} == {2, 3}
        assert paper.job.state is JobState.RUNNING and paper.job.running
        coordinator = paper.coordinator()
        for copied in range(1, 4):  # documents are copied, so it does not wait
            paper.copied = {one.id: copied for one in paper.job.running}
            await coordinator._round()
            paper.later += STILL_SECONDS
            assert paper.job.why == ""
        await coordinator._round()
        assert "takes nothing now" in paper.job.why
        paper.copied = {one.id: 9 for one in paper.job.running}
        await coordinator._round()
        assert paper.job.why == ""
        while paper.started:
            paper.finish()
        for _ in range(2 * STUCK_MAX):
            await paper.coordinator()._round()
        assert paper.job.state is JobState.FAILED and "takes nothing now" in paper.job.why
        assert not paper.job.running

    _run(work())


def test_what_cannot_be_given_up_is_left_in_the_end() -> None:
    """Replicas that the catalog does not take back, because nobody could lead them."""

    async def work() -> None:
        paper, move = await asyncio.to_thread(_moved_by_hand)
        paper.tell(AskRebalance(paper.job.id, "cancel"))
        held = paper.made.topology
        resting = [1 if info.id in move.before else 0 for info in held.nodes]
        infos = tuple(
            msgspec.structs.replace(info, maintenance=rests, knows=LEADABLE)
            for info, rests in zip(held.nodes, resting, strict=True)
        )
        paper.made.topology = msgspec.structs.replace(held, nodes=infos, cluster_version=LEADABLE)
        for _ in range(STUCK_MAX - 1):
            await paper.coordinator()._round()
        assert paper.job.state is JobState.CANCELLING and "maintenance" in paper.job.why
        await paper.coordinator()._round()
        assert paper.job.state is JobState.CANCELLED and "left to end by itself" in paper.job.why
        assert not paper.job.running

    _run(work())


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_node_is_replaced_whoever_dies_whenever(seed: int, dead: bool) -> None:
    """Nobody takes part but the coordinators, which die. What is lost of a dead node is not rebuilt elsewhere."""

    async def work() -> None:
        made = world(documents=400)
        join(made, info(9))
        paper = Paper(made, random.Random(seed))
        paper.made.dead = paper.silent = {"node-2"} if dead else set()
        paper.due = tuple(paper.silent)
        held = {one.shard for one in made.topology.hosted_by("node-2")}
        made.index += 1
        wish = Wish(replace=Replacement(old="node-2", new="node-9"))
        made.topology = execute(made.topology, made.index, StartRebalance(wish, RebalanceConfig()))[0]
        known = made.topology.node("node-2")
        assert known is not None and known.state is NodeState.DRAINING
        await _to_its_end(paper, deaths=0.15, pauses=0.05)
        assert paper.job.state is JobState.DONE, paper.job.why
        known = made.topology.node("node-2")
        assert known is not None and known.state is NodeState.REMOVED
        assert held and {one.shard for one in made.topology.hosted_by("node-9")} == held
        assert all(move.added == ("node-9",) for move in paper.seen if isinstance(move, MoveReplicas))

    _run(work())


def test_a_replacement_waits_for_its_new_node_and_what_is_lost_is_rebuilt_elsewhere_if_that_is_gone_too() -> None:
    async def work() -> None:
        made = world(documents=400)
        join(made, info(9))
        wish = Wish(replace=Replacement(old="node-2", new="node-9"))
        paper = _started(wish, made)
        made.dead = paper.silent = {"node-2", "node-9"}
        for _ in range(2 * STUCK_MAX):
            await paper.coordinator()._round()
        assert paper.job.state is JobState.RUNNING and not paper.seen
        assert "node-9, which is to replace node-2, does not answer" in paper.job.why
        paper.due = ("node-2", "node-9")
        for _ in range(60):
            await paper.coordinator()._round()
            while paper.started:
                paper.finish()
            if paper.job.over:
                break
        assert paper.job.state is JobState.DONE and not made.topology.hosted_by("node-9")
        known = made.topology.node("node-2")
        assert known is not None and known.state is NodeState.REMOVED

    _run(work())


@pytest.mark.parametrize("dead", ["node-2", "node-6"])
def test_who_is_replaced_gives_all_to_the_new_node_while_a_third_one_is_rebuilt(dead: str) -> None:
    """Neither does the new node take the place of the dead one, nor do others get what the old one holds."""

    async def work() -> None:
        made = _two_shards_of_three()
        for number in (7, 9):
            join(made, info(number))
        paper = _started(Wish(replace=Replacement(old="node-1", new="node-9")), made)
        held = {one.shard for one in made.topology.hosted_by("node-1")}
        made.dead = paper.silent = {dead}
        paper.due = (dead,)
        for _ in range(60):
            await paper.coordinator()._round()
            while paper.started:
                paper.finish()
            if paper.job.over:
                break
        assert paper.job.state is JobState.DONE, paper.job.why
        assert held and {one.shard for one in made.topology.hosted_by("node-9")} == held
        for move in paper.seen:
            assert isinstance(move, MoveReplicas)
            assert move.removed in (("node-1",), (dead,)) and (move.removed == ("node-1",)) == (
                move.added == ("node-9",)
            )
        # What the old node holds is not rebuilt before: another one might get in the new one's way, in its zone say.
        for group in (CATALOG_GROUP, *(shard + 1 for shard in held)):
            first = next(move for move in paper.seen if isinstance(move, MoveReplicas) and move.group == group)
            assert first.removed == ("node-1",)
        if dead == "node-6":
            assert not made.topology.hosted_by(dead)

    _run(work())


def _two_shards_of_three() -> World:
    made = world(documents=400, shards=2, nodes=6)
    assert [set(one.wanted) for one in made.topology.serving] == [
        {"node-1", "node-2", "node-3"},
        {"node-4", "node-5", "node-6"},
    ]
    return made


def test_a_move_to_a_node_that_turns_out_short_of_memory_is_planned_anew() -> None:
    """The new node refuses it for as long as it is, and one rebalance runs at a time."""

    async def work() -> None:
        made = world(documents=400, shards=1, nodes=3)
        for number in (4, 5):
            join(made, info(number))
        made.dead = {"node-2"}
        paper = Paper(made, random.Random(1))
        paper.silent, made.index = made.dead, made.index + 1
        wish = Wish(lost=("node-2",), balance=False)
        made.topology = execute(made.topology, made.index, StartRebalance(wish, RebalanceConfig()))[0]
        coordinator = paper.coordinator()
        await coordinator._round()
        shard = next(move for move, _ in paper.started if move.group == 1)
        (first,) = shard.added
        other = next(one for one in ("node-4", "node-5") if one != first)
        paper.tight = {first}
        await coordinator._round()
        paper.later += PATIENCE_SECONDS - 10
        await coordinator._round()
        assert shard in [one.move for one in paper.job.running]  # it may have memory again in a moment
        paper.tight = set()
        await coordinator._round()
        paper.tight, paper.later = {first}, paper.later + 20
        await coordinator._round()
        assert shard in [one.move for one in paper.job.running]
        paper.later += PATIENCE_SECONDS
        await coordinator._round()
        assert shard not in [one.move for one in paper.job.running]
        paper.started = [(move, begun) for move, begun in paper.started if move is not shard]
        held = made.topology.holders(1)
        assert held is not None and held.leaving == (first,)
        made.index += 1
        made.topology = execute(made.topology, made.index, ConfirmReplicas(1, held.assigned))[0]
        for _ in range(20):
            await coordinator._round()
            while paper.started:
                paper.finish()
            if paper.job.over:
                break
        assert paper.job.state is JobState.DONE, paper.job.why
        assert set(made.topology.shards[0].wanted) == {"node-1", "node-3", other}

    _run(work())


def test_a_move_to_a_node_that_is_gone_for_long_is_planned_anew() -> None:
    """Else what is lost stays lost until that one is back, or somebody cancels it, while others have room."""

    async def work() -> None:
        made = world(documents=400, shards=1, nodes=3)
        for number in (4, 5):
            join(made, info(number))
        made.dead = {"node-2"}
        paper = Paper(made, random.Random(1))
        paper.silent, paper.due, made.index = made.dead, ("node-2",), made.index + 1
        wish = Wish(lost=("node-2",), balance=False)
        made.topology = execute(made.topology, made.index, StartRebalance(wish, RebalanceConfig()))[0]
        coordinator = paper.coordinator()
        await coordinator._round()
        moves = [move for move, _ in paper.started]
        shard = next(move for move in moves if move.group == 1)
        (first,) = shard.added
        other = next(one for one in ("node-4", "node-5") if one != first)
        paper.silent |= {first}
        await coordinator._round()
        assert shard in [one.move for one in paper.job.running]  # it may be back in a moment
        paper.due = ("node-2", first)
        await coordinator._round()
        left = [move for move in moves if first in move.added]
        assert not [one.move for one in paper.job.running if first in one.move.added]
        paper.started = [(move, begun) for move, begun in paper.started if move not in left]
        for move in left:
            held = made.topology.holders(move.group)
            assert held is not None and held.leaving == (first,)
            made.index += 1
            made.topology = execute(made.topology, made.index, ConfirmReplicas(move.group, held.assigned))[0]
        for _ in range(20):
            await coordinator._round()
            while paper.started:
                paper.finish()
            if paper.job.over:
                break
        assert paper.job.state is JobState.DONE, paper.job.why
        assert set(made.topology.shards[0].wanted) == {"node-1", "node-3", other}
        assert set(made.topology.catalog) == {"node-1", "node-3", other}

    _run(work())


def test_a_replacement_waits_for_a_new_node_that_is_short_of_memory() -> None:
    async def work() -> None:
        made = world(documents=400)
        join(made, info(9))
        paper = _started(Wish(replace=Replacement(old="node-2", new="node-9")), made)
        paper.tight = {"node-9"}
        for _ in range(2 * STUCK_MAX):
            await paper.coordinator()._round()
        assert paper.job.state is JobState.RUNNING and not paper.seen
        assert "node-9, which is to replace node-2, is short of memory" in paper.job.why
        paper.tight = set()
        await paper.coordinator()._round()
        assert paper.seen

    _run(work())


def test_it_says_for_how_long_what_it_carries_out_has_waited() -> None:
    job = Job(id=7, wish=Wish(), config=RebalanceConfig(), state=JobState.RUNNING)
    waits, waiting, said = msgspec.structs.replace(job, why="a node does not answer"), Waiting(), []
    over = msgspec.structs.replace(waits, state=JobState.FAILED)
    for at, (seen, leads) in enumerate([
        (None, True), (job, True), (waits, True), (msgspec.structs.replace(waits, why="another"), True), (job, True),
        (waits, True), (waits, False), (waits, True), (over, True),
    ]):  # fmt: skip
        waiting.look(seen, leads, 10.0 * at)
        said.append(waiting.seconds(10.0 * at + 5))
    assert said == [None, 0.0, 5.0, 15.0, 0.0, 5.0, None, 5.0, None]


def test_nothing_is_given_up_and_nothing_said_of_it_while_a_rebalance_is_paused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It said so in each round."""

    async def work() -> None:
        made = world(documents=400, shards=1, nodes=3)
        for number in (4, 5):
            join(made, info(number))
        made.dead = {"node-2"}
        paper = Paper(made, random.Random(1))
        paper.silent, paper.due, made.index = made.dead, ("node-2",), made.index + 1
        wish = Wish(lost=("node-2",), balance=False)
        made.topology = execute(made.topology, made.index, StartRebalance(wish, RebalanceConfig()))[0]
        coordinator = paper.coordinator()
        await coordinator._round()
        (first,) = next(move for move, _ in paper.started if move.group == 1).added
        job = made.topology.rebalance
        assert job is not None
        made.topology = msgspec.structs.replace(
            made.topology, rebalance=msgspec.structs.replace(job, state=JobState.PAUSED)
        )
        paper.silent |= {first}
        paper.due = ("node-2", first)
        running = paper.job.running
        for _ in range(5):
            await coordinator._round()
        assert paper.job.running == running
        told = [line for line in caplog.messages if "given up" in line]
        assert told == []
        made.topology = msgspec.structs.replace(
            made.topology, rebalance=msgspec.structs.replace(paper.job, state=JobState.RUNNING)
        )
        for _ in range(3):
            await coordinator._round()
        given_up = [line for line in caplog.messages if "given up" in line]
        assert given_up and len(given_up) == len(set(given_up))

    caplog.set_level(logging.INFO)
    _run(work())
