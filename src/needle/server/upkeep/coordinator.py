"""Carries a rebalance out, on the node that leads the catalog: a round looks at what is so, plans, and begins what may.

All that a successor needs is in the catalog: what is wished, what is under way, what is done. Invariants: it plans by
what was measured while the catalog stood still, and leaves alone a shard whose leader does not answer; each step is
one entry of the catalog's log, refused if anything of the rebalance has changed since the look. How ranges and
replicas move is for `mover` and `replicas`, on the nodes that lead the shards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final, Protocol

import msgspec

from needle.base.errors import Internal, InvalidArgument, NeedleError, NotLeader, Unavailable
from needle.base.events import REBALANCE_ENDED, REBALANCE_STEP, REBALANCE_WAITS, tell
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, shard_group
from needle.base.model import RaftStatus
from needle.base.runtime import Rng
from needle.catalog.machine import CatalogMachine
from needle.catalog.planning import planner, rebalance, rebuilding
from needle.catalog.planning.heat import calls_of
from needle.catalog.planning.rebalance import Round
from needle.catalog.planning.running import Seen, fate, now_running, others, unsettled
from needle.client.directory import Caller
from needle.client.measuring import Measured, Measuring, measure
from needle.multiraft.host import Host
from needle.protocol.catalog_commands import StepRebalance
from needle.routing.jobs import Ended, Job, JobState, Progress, Running
from needle.routing.planned_moves import Move
from needle.routing.plans import Plan, Wish
from needle.routing.stats import ClusterStats
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.ports import Catalog
from needle.server.upkeep.getting_on import GettingOn, Waiting
from needle.server.upkeep.lasting_calls import LastingCalls
from needle.server.upkeep.learned_rates import Lately, LearnedRates
from needle.server.upkeep.refused_moves import RefusedMoves

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 0.5
LOOK_SECONDS_MAX: Final = 5.0
ASK_SECONDS: Final = 2.0
STEP_SECONDS: Final = 10.0
LOOKS_MAX: Final = 5
SETTLE_LOOKS: Final = 4
"""Who asks for a plan waits for so many while a shard has no leader."""
FRESH_SECONDS: Final = 1.0
"""Progress is told by what was measured and planned at most so long ago, if the catalog is the same since."""
PLAN_SHARE: Final = 9.0
"""A plan that took long is not made again before so many times that: planning takes a tenth of a core at most."""
_replace = msgspec.structs.replace
_CHANGED: Final = ("revision", "rebalance", "epoch", "before")
"""Fields of a refusal that says: look again."""


class Followed(Catalog, Protocol):
    """The way to the catalog, and what is known of it."""

    def topology(self) -> Topology: ...


class CoordinatingNode(Protocol):
    """The node, which leads the catalog at times."""

    node_id: str
    host: Host
    topology: Topology
    caller: Caller
    catalog: CatalogMachine | None
    beats: Beats

    @property
    def shards(self) -> Followed: ...
    @property
    def rng(self) -> Rng: ...
    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]: ...
    def now(self) -> float: ...
    def status(self, group: GroupId, digest: bool = False) -> RaftStatus: ...
    def due_to_heal(self, topology: Topology) -> Collection[NodeId]:
        """Nodes that have been gone for long, whose replicas others are to get."""
        ...

    async def confirmed(self, timeout: float) -> Topology: ...
    async def wait_topology(self, version: int, timeout: float) -> bool: ...


class _Look(msgspec.Struct, frozen=True):
    """What was seen and planned. version: of the catalog. at: seconds."""

    version: int
    at: float
    seen: Seen
    plan: Plan


class Coordinator:
    """See the module."""

    def __init__(self, node: CoordinatingNode) -> None:
        self._node = node
        self._measuring = Measuring()
        self._calls = LastingCalls()
        self._refused, self._getting_on, self._waiting = RefusedMoves(), GettingOn(), Waiting()
        self._lately, self._learned = Lately(), LearnedRates()
        self._look: _Look | None = None
        self._took = 0.0
        """Seconds of the last plan."""
        self._settled: Topology | None = None
        """By which there was nothing to do."""

    async def run(self) -> None:
        """Until the node stops: a round, then again; less often while nothing can start."""
        node, waits = self._node, 0
        while not node.host.stopped:
            pause = max(LOOK_SECONDS * (1 + waits), PLAN_SHARE * self._took)
            await node.beats.next(min(pause, LOOK_SECONDS_MAX), lambda: node.topology is self._settled)
            job = node.topology.rebalance
            self._waiting.look(job, self._leads(), node.now())
            self._calls.follow(node.topology.map.epoch if node.topology.map is not None else 0, node.now())
            waits = job.stuck if job is not None else 0
            self._settled = node.topology if job is None or job.over else None
            if job is None or job.over or not self._leads():
                continue
            if job.state is JobState.PAUSED and not job.running:
                continue
            try:
                await self._round()
            except NeedleError as error:
                log.info("rebalance %d does not go on now: %s", job.id, error)

    def waited(self) -> float | None:
        """Seconds; see Levels."""
        return self._waiting.seconds(self._node.now())

    # --- what it is asked ---------------------------------------------------------------------------------------------
    async def plan(self, wish: Wish, timeout: float) -> Plan:
        """What would move; shards without a leader are left alone, also after an election's time. Raises NotLeader on a
        node that does not lead the catalog, InvalidArgument for a wish that cannot be."""
        for _ in range(SETTLE_LOOKS):
            topology, found = await self._seen(timeout)
            if not found.stats.unknown:
                break
            await asyncio.sleep(LOOK_SECONDS)  # leadership may be on its way to another node
        return _replace(await self._planned(topology, found, wish), rates=self._learned.rates())

    async def progress(self, timeout: float) -> Progress | None:
        """How far the last rebalance is; None if there never was one. Raises NotLeader."""
        self._check_leads()
        topology = await self._node.confirmed(timeout)
        job = topology.rebalance
        if job is None:
            return None
        if job.over:
            return Ended.of(job).progress()
        try:
            look = await self._fresh(topology, timeout)
            job = look.seen.topology.rebalance or job
        except Unavailable as error:
            told = rebalance.progress(job, rebalance.NOTHING, job.running, 0.0)
            why = job.why or error.message
            return _replace(told, total_bytes=max(told.total_bytes, job.planned_bytes), why=why)
        running = now_running(job.running, look.seen)
        rate = self._lately.rate(job, running, self._node.now())
        return rebalance.progress(job, look.plan, running, rate, look.seen.waiting(running))

    async def _fresh(self, topology: Topology, timeout: float) -> _Look:
        """What was seen and planned for the running job; not long ago, if the catalog is the same since."""
        last, age = self._look, max(FRESH_SECONDS, PLAN_SHARE * self._took)
        if last is not None and last.version == topology.version and self._node.now() - last.at < age:
            return last
        topology, found = await self._seen(timeout)
        job = topology.rebalance
        plan = rebalance.NOTHING
        if job is not None and not job.over:
            try:
                plan = await self._planned_with_healing(topology, found, job.pressing())
            except (InvalidArgument, Internal) as error:  # it fails when what it has begun is over
                log.debug("rebalance %d has no plan any more: %s", job.id, error)
        self._look = _Look(topology.version, self._node.now(), self._looked_at(topology, found), plan)
        return self._look

    # --- a round ------------------------------------------------------------------------------------------------------
    async def _round(self) -> None:
        try:
            topology, found = await self._seen(STEP_SECONDS)
            job = topology.rebalance
            if job is None or job.over:
                return
        except NotLeader:
            raise
        except Unavailable as error:
            await self._say(error.message)
            return
        seen = self._looked_at(topology, found)
        made = job
        left: list[Running] = []
        for one in job.running:
            ended = fate(one, seen)
            if ended is None:
                left.append(one)
            elif ended:
                made = rebalance.finished(made, one.move)
        made, running, plan = _replace(made, running=tuple(left)), now_running(left, seen), rebalance.NOTHING
        self._learned.look(made, running, self._node.now())
        try:
            if job.state is not JobState.CANCELLING:
                plan = await self._planned_with_healing(topology, found, made.pressing())
                self._look = _Look(topology.version, self._node.now(), seen, plan)
        except (InvalidArgument, Internal) as error:  # it was possible once: a node or a shard that it names is gone
            if (left_of_it := rebalance.impossible(made, error.message)) != job:
                await self._step(StepRebalance(left_of_it, job.revision))
            return
        except NotLeader:
            raise
        except Unavailable as error:
            await self._say(error.message)
            return
        self._lately.rate(made, running, self._node.now())
        free = {one.node: one.free for one in found.stats.nodes}
        holders = {group: known.all for group in seen.voters if (known := topology.holders(group)) is not None}
        foreign = others(topology, running)
        refused = self._refused.look(running, seen, found.stats, self._gone(topology, found), self._node.now())
        led: Round = await self._node.blocking(  # a plan may have thousands of moves
            rebalance.look,
            made,
            plan,
            running,
            free,
            holders,
            unsettled(topology),
            foreign,
            found.stats.unknown,
            refused,
        )
        await self._take(job, topology, led, running, self._getting_on.look(running, self._node.now()))

    async def _seen(self, timeout: float) -> tuple[Topology, Measured]:
        """The catalog, and what was measured while it said that."""
        node = self._node
        for _ in range(LOOKS_MAX):
            self._check_leads()
            topology = await node.confirmed(timeout)
            if not await node.wait_topology(topology.version, timeout):
                raise Unavailable(f"node {node.node_id} does not act yet on what the catalog says")
            seconds = min(timeout, ASK_SECONDS)
            found = await self._measuring.measure(node.caller, node.shards.topology(), seconds, node.now())
            if _lasting(await node.confirmed(timeout)) == _lasting(topology):
                return topology, found
        raise Unavailable("the catalog changes all the time: what is where could not be measured")

    def _leads(self) -> bool:
        return self._node.catalog is not None and self._node.host.is_leader(CATALOG_GROUP)

    def _check_leads(self) -> None:
        if not self._leads():
            leader = self._node.host.leader(CATALOG_GROUP) if self._node.catalog is not None else None
            raise NotLeader(f"node {self._node.node_id} does not lead the catalog", leader=leader, group=CATALOG_GROUP)

    def _looked_at(self, topology: Topology, found: Measured) -> Seen:
        voters = {shard_group(shard): frozenset(one.voters) for shard, one in found.leaders.items()}
        learners = {shard_group(shard): frozenset(one.learners) for shard, one in found.leaders.items()}
        catalog = self._node.status(CATALOG_GROUP)
        voters[CATALOG_GROUP], learners[CATALOG_GROUP] = frozenset(catalog.voters), frozenset(catalog.learners)
        fetched = {shard_group(shard): one.fetched for shard, one in found.leaders.items()}
        fetched[CATALOG_GROUP] = catalog.fetched
        copied = {move: count for one in found.leaders.values() for move, count in one.copied.items()}
        held = tuple(why for one in found.leaders.values() for why in one.held_moves)
        lacking = {shard_group(shard): one.waits_for for shard, one in found.leaders.items()}
        lacking[CATALOG_GROUP] = catalog.waits_for
        return Seen(
            topology=topology,
            voters=voters,
            learners=learners,
            copied=copied,
            fetched=fetched,
            held=held,
            lacking=lacking,
        )

    async def _planned_with_healing(self, topology: Topology, found: Measured, wish: Wish) -> Plan:
        """A rebalance may wait for long, for a node in maintenance say, and there is one at a time: so it also rebuilds
        what is lost meanwhile, and does not fail where that cannot be."""
        job, names = topology.rebalance.id if topology.rebalance is not None else 0, wish.names
        wish = rebalance.of_now(wish, topology)
        plan = await self._planned(topology, found, wish, job, names)
        gone = self._gone(topology, found)
        named = rebuilding.pending(wish, gone)
        lost = sorted(gone - {*wish.lost, named.old if named is not None else ""})
        if not lost:
            return plan
        calm = rebuilding.left_alone(topology, wish, named)
        healing = await self._planned(calm, found, Wish(lost=tuple(lost), balance=False))
        rebuilt = rebuilding.rebuilt(topology, healing, lost, named)
        return _replace(plan, moves=(*rebuilt, *plan.moves), least=plan.least + sum(move.bytes for move in rebuilt))

    def _gone(self, topology: Topology, found: Measured) -> set[NodeId]:
        """Nodes that the cluster does without, by what is known of them now."""
        return set(self._node.due_to_heal(topology)) - found.stats.alive

    async def _called(self, topology: Topology, found: Measured, wish: Wish, job: int) -> ClusterStats:
        """What was measured, with the calls if they count. Raises Unavailable while a rebalance waits for them."""
        if not wish.heat:
            return found.stats
        self._calls.follow(topology.map.epoch if topology.map is not None else 0, self._node.now())
        calls = self._calls.of(job)
        if calls is None:
            if job and self._calls.unsettled(self._node.now()):
                raise Unavailable("key ranges have moved lately: what keys are called is measured in half a minute")
            hot = await measure(self._node.caller, topology, ASK_SECONDS, hot=True)
            calls = await self._node.blocking(calls_of, topology, hot.stats)
            if job:
                self._calls.keep(job, calls)
        return _replace(found.stats, calls=calls)

    async def _planned(
        self, topology: Topology, found: Measured, wish: Wish, job: int = 0, named: bool = False
    ) -> Plan:
        """job: the rebalance that is carried out, 0 for who only wants to know. named: see planner.plan."""
        stats = await self._called(topology, found, wish, job)

        def made() -> Plan:
            try:
                return planner.plan(topology, stats, wish, named)
            except NeedleError:
                raise
            except Exception as error:  # it would end the node, and then each next one that leads the catalog
                log.exception("no plan could be made of %r", wish)
                raise Internal(f"no plan could be made: {error!r}. This is a defect of Needle") from error

        began = self._node.now()
        plan: Plan = await self._node.blocking(made)
        self._took = self._node.now() - began
        return plan

    async def _take(
        self, job: Job, topology: Topology, led: Round, running: Sequence[Running], getting_on: bool
    ) -> None:
        """Have the catalog take the steps that a look led to, one after the other. One that is refused keeps none of
        the others from being taken: they are about other groups. getting_on: whether something of `running` does."""
        back = [one.id for one in running if one.id in led.give_up]
        steps: list[tuple[Move | None, int]] = [(move, 0) for move in led.start] + [(None, id_) for id_ in back]
        made, epoch = led.job, topology.map.epoch if topology.map is not None else 0
        why, taken = "", False
        if not steps and made != job:
            steps = [(None, 0)]
        for move, give_up in steps:
            nonce = self._node.rng.getrandbits(63)
            try:
                now = await self._step(StepRebalance(made, job.revision, move, nonce, epoch, give_up))
            except InvalidArgument as error:
                if error.details.get("field") in _CHANGED:
                    return
                why = why or (f"{move.in_words()}: {error.message}" if move is not None else error.message)
                continue
            if now is None or now.id != job.id or now.revision != job.revision + 1:
                return  # somebody else has changed it since
            if move is not None:
                tell(REBALANCE_STEP, rebalance=job.id, step=move.in_words())
            self._refused.tell(give_up, running)
            if now.over:
                why = now.why or f"{now.moved_bytes} bytes moved"
                tell(REBALANCE_ENDED, rebalance=now.id, state=now.state, why=why)
            job = made = now
            taken = True
        left = rebalance.refused(job if led.job.over else _replace(led.job, stuck=job.stuck), why, getting_on)
        if why and not taken and left != job:
            await self._step(StepRebalance(left, job.revision))

    async def _step(self, command: StepRebalance) -> Job | None:
        result = await self._node.shards.command(command, STEP_SECONDS)
        if not await self._node.wait_topology(result.version, STEP_SECONDS):
            raise Unavailable(f"node {self._node.node_id} does not act yet on what the catalog says")
        return self._node.topology.rebalance

    async def _say(self, why: str) -> None:
        """What it waits for, if that is news."""
        self._check_leads()
        job = (await self._node.confirmed(STEP_SECONDS)).rebalance
        if job is not None and not job.over and job.why != why:
            tell(REBALANCE_WAITS, rebalance=job.id, why=why)
            await self._step(StepRebalance(_replace(job, why=why), job.revision))


def _lasting(topology: Topology) -> Topology:
    """Without what says nothing of shards and nodes: collections come and go all the time."""
    return _replace(topology, version=0, collections=(), dropped=())
