"""The alert conditions of a cluster: those of its shards, of its catalog, and of what its nodes say of themselves.

Invariant: `needle status` and `health_check()` say what `look` finds, so they say the same. It asks all nodes at once,
each for at most `timeout`; one that does not answer has a condition, and holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from needle.base.errors import NeedleError, TlsFailed
from needle.base.ids import CATALOG_GROUP, NodeId
from needle.base.model import RaftStatus
from needle.client.alerts import (
    ARCHIVE_SECONDS,
    BACKUP_SECONDS,
    CERTIFICATE_SECONDS,
    CLOCK_ERROR_MIN,
    CRITICAL,
    DISK_ROOMS,
    FSYNC_SECONDS,
    FSYNC_SHARE,
    FSYNC_SLOW_MIN,
    HANG_SECONDS,
    IMBALANCE_DOCUMENTS_MIN,
    IMBALANCE_MAX,
    LOG_FULL_RATIO,
    Condition,
    holds,
)
from needle.client.conditions import GOES_ON, NodeView, catalog_conditions, conditions
from needle.client.health import (
    ClusterHealth,
    ReplicaStatus,
    by_shard,
    catalog_lacks,
    judge,
    leading,
    lost_nodes,
    missing_of,
    not_wanted,
)
from needle.client.missing_replicas import who_replaces
from needle.protocol.peer_calls import ClockLevels, FlushLevels, MemoryRoom, WhoAnswer
from needle.routing.jobs import JobState
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import CATALOG
from needle.routing.replication import catalog_size, taking
from needle.routing.stats import imbalance
from needle.routing.topology import NodeState, Topology


class Asked(Protocol):
    """The client that asks."""

    def topology(self) -> Topology: ...
    async def cluster_status(self, *, timeout: float) -> list[ReplicaStatus]: ...
    async def catalog_status(self, *, timeout: float) -> RaftStatus: ...
    async def catalog_replicas(self, *, timeout: float) -> list[ReplicaStatus]: ...
    async def describe_node(self, node: str, *, timeout: float) -> WhoAnswer: ...


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """health: with its conditions. catalog: its replicas. told: what the nodes that answer say of themselves.
    runbooks: where they say that runbooks are."""

    health: ClusterHealth
    replicas: list[ReplicaStatus]
    catalog: list[ReplicaStatus] = []
    told: dict[NodeId, WhoAnswer]

    @property
    def runbooks(self) -> str:
        return next((self.told[node].runbooks for node in sorted(self.told) if self.told[node].runbooks), "")


async def look(client: Asked, timeout: float) -> Seen:
    """See the module. Without a cluster there are no conditions. Raises what `cluster_status` raises."""
    holders: list[ReplicaStatus] = []
    led: list[Condition] = []
    if client.topology().settings is None:
        replicas = await client.cluster_status(timeout=timeout)
        told, expired = await _told(client, timeout)
    else:
        replicas, holders, led, (told, expired) = await asyncio.gather(
            client.cluster_status(timeout=timeout),
            client.catalog_replicas(timeout=timeout),
            _of_catalog(client, timeout),
            _told(client, timeout),
        )
    topology = client.topology()
    health = judge(topology, replicas)
    found: list[Condition] = []
    if topology.settings is not None:
        found = [*of_shards(topology, health, replicas, told), *led]
        found += catalog_conditions(views(holders).get(CATALOG, []), lost_nodes(replicas))
        found += of_catalog_replicas(topology, holders, told)
        found += [*uneven(health), *of_nodes(topology, told), *map(_expired, expired)]
        found += of_rebalance(topology, found, told)
    seen = Seen(health=health, replicas=replicas, catalog=holders, told=told)
    placed = [condition.told_at(seen.runbooks) for condition in ordered(found)]
    hints = [*health.warnings, *few_hold_the_catalog(topology, told)]
    return msgspec.structs.replace(seen, health=msgspec.structs.replace(health, conditions=placed, warnings=hints))


def few_hold_the_catalog(topology: Topology, told: Collection[NodeId]) -> list[str]:
    """A cluster that healed down to few nodes leaves its catalog on these: others that come, or come back, hold it from
    the next rebalance on. told: nodes that answer."""
    held, job = topology.holders(CATALOG_GROUP), topology.rebalance
    if held is None or held.leaving or (job is not None and not job.over):
        return []
    resting = {info.id for info in topology.nodes if info.maintenance}
    able = [node for node in taking(topology) if node in told and node not in resting]
    could, count = catalog_size(len(able), topology.replication_factor), len(held.wanted)
    if count >= could:
        return []
    fail, more = (count - 1) // 2, (could - 1) // 2
    allowed = f"lets {fail} fail, and {more} could: `needle rebalance` brings it there"
    return [f"{could} nodes could hold the catalog, and {count} do ({', '.join(held.wanted)}), which {allowed}"]


def ordered(found: Sequence[Condition]) -> list[Condition]:
    """Critical ones first, each once: a node may hold many shards."""
    return sorted(dict.fromkeys(found), key=lambda condition: condition.severity != CRITICAL)


def views(replicas: Sequence[ReplicaStatus]) -> dict[int, list[NodeView]]:
    """The replicas of each shard."""
    return {
        shard: [
            NodeView(node=one.node, address=one.address, status=one.status, error=one.error, lost=one.lost)
            for one in some
        ]
        for shard, some in by_shard(replicas).items()
    }


async def _told(client: Asked, timeout: float) -> tuple[dict[NodeId, WhoAnswer], list[NodeId]]:
    """What nodes say of themselves, and which cannot be asked because their certificate has expired. One that does not
    answer has a condition of its own."""
    expired: list[NodeId] = []

    async def ask(node: NodeId) -> WhoAnswer | None:
        try:
            return await client.describe_node(node, timeout=timeout)
        except NeedleError as error:
            if isinstance(error, TlsFailed) and error.details.get("expired") is True:
                expired.append(node)
            return None

    nodes = list(client.topology().addresses())
    answers = await asyncio.gather(*map(ask, nodes))
    return {node: who for node, who in zip(nodes, answers, strict=True) if who is not None}, sorted(expired)


async def _of_catalog(client: Asked, timeout: float) -> list[Condition]:
    """The catalog may be on other nodes than the shards are: whether it has a leader, and its members."""
    try:
        status = await client.catalog_status(timeout=timeout)
    except NeedleError as error:
        action = "start nodes that hold it until a majority runs; `needle node` and `needle cluster` wait for it"
        return [holds("NeedleCatalogNoLeader", f"catalog: {error.message}", action)]
    if not status.waits_for:
        return []
    return [holds("NeedleReplicasNotInPlace", f"catalog: {status.waits_for}", GOES_ON)]


MORE = (
    "`needle rebalance` gives it more, if there are nodes for them; if so few are meant, `needle cluster "
    "replication-factor` says so"
)
RESUME = "its new replica is not copied while the rebalance is paused: `needle rebalance --resume`"


def _paused(topology: Topology) -> set[int]:
    """Shards whose replicas a rebalance moves that is paused."""
    job = topology.rebalance
    if job is None or job.state is not JobState.PAUSED:
        return set()
    return {one.move.group - 1 for one in job.running if isinstance(one.move, MoveReplicas)}


def of_shards(
    topology: Topology, health: ClusterHealth, replicas: Sequence[ReplicaStatus], told: Collection[NodeId]
) -> list[Condition]:
    """told: the nodes that answer."""
    shards = [info.shard for info in topology.serving]
    resting, held = [info.id for info in topology.nodes if info.maintenance], views(replicas)
    found = [
        condition
        for shard in shards
        for condition in conditions(
            held.get(shard, []),
            shard=shard if len(shards) > 1 else None,
            leaving=topology.shards[shard].leaving,
            maintenance=resting,
        )
    ]
    paused, grouped = _paused(topology), by_shard(replicas)
    for number in health.under_replicated:
        shard, info = health.shards[number], topology.shards[number]
        fewer = not_wanted(info, topology.replication_factor)
        if shard.leader is not None:
            count = len(info.wanted) + fewer
            subject = f"shard {number} has {count - shard.missing_replicas} of {count} replicas"
            missing = missing_of(info, grouped.get(number, []))
            remedy = who_replaces(topology, told, info.wanted, missing) if missing else MORE
            found.append(holds("NeedleUnderReplicated", subject, RESUME if number in paused else remedy))
    return found


def of_catalog_replicas(
    topology: Topology, replicas: Sequence[ReplicaStatus], told: Collection[NodeId]
) -> list[Condition]:
    """Whether the catalog lacks replicas, while it has a leader: without one that is told. told: as above."""
    missing = catalog_lacks(topology, replicas)
    holders = topology.holders(CATALOG_GROUP)
    if not missing or holders is None or leading(replicas) is None:
        return []
    count = len(holders.wanted)
    subject = f"the catalog has {count - len(missing)} of {count} replicas"
    return [holds("NeedleUnderReplicated", subject, who_replaces(topology, told, holders.wanted, missing))]


def uneven(health: ClusterHealth) -> list[Condition]:
    """Of shards that all have a leader, which counts."""
    counts = {number: shard.documents for number, shard in health.shards.items() if shard.leader is not None}
    if len(counts) < len(health.shards) or sum(counts.values()) < IMBALANCE_DOCUMENTS_MIN * len(counts):
        return []
    over = imbalance(counts.values())
    if over <= IMBALANCE_MAX:
        return []
    largest = max(counts, key=lambda number: counts[number])
    subject = f"shard {largest} has {counts[largest]} documents, {over:.0%} more than the mean"
    return [holds("NeedleShardsUneven", subject, "`needle rebalance --dry-run` shows what would move")]


WAITS_SECONDS = 60.0
"""A rebalance that waits for less is not told of."""


def of_rebalance(topology: Topology, found: Sequence[Condition], told: Mapping[NodeId, WhoAnswer]) -> list[Condition]:
    """A rebalance of which nothing can go on, unless its moves say so themselves, in `found`. It often waits for a
    moment: that is told once it has lasted, by the node that carries it out, or if no node says."""
    job = topology.rebalance
    if job is None or job.over or not job.why or any(one.alert == "NeedleMoveWaits" for one in found):
        return []
    waited = [who.levels.rebalance_seconds for who in told.values() if who.levels is not None]
    if max((one for one in waited if one is not None), default=WAITS_SECONDS) < WAITS_SECONDS:
        return []
    action = "it goes on when that is put right; `needle rebalance --cancel` gives it up"
    return [holds("NeedleMoveWaits", f"rebalance {job.id}: {job.why}", action)]


def of_nodes(topology: Topology, told: Mapping[NodeId, WhoAnswer]) -> list[Condition]:
    """What nodes say of their disks, logs, certificates, versions and files."""
    found = [*_versions(topology, {node: who.knows for node, who in told.items()}), *_backups(told)]
    for node, who in told.items():
        found += [*_disk(node, who), *_levels(node, who)]
        for shard, why in who.given_up:
            subject = f"{node} holds shard {shard} no more and keeps its files: {why}"
            action = "they go by themselves when that is put right; they may be the last copy, so delete none by hand"
            found.append(holds("NeedleFilesNotDeleted", subject, f"{action} before"))
    return found


def _disk(node: NodeId, who: WhoAnswer) -> list[Condition]:
    """Whether a node refuses data for want of room, or soon will."""
    disk = who.disk
    if disk is None:
        return []
    if disk.low:
        subject = (
            f"{node}: {disk.free / 1e6:,.0f} MB free, {disk.kept_free / 1e6:,.0f} MB and a quarter more have to be"
        )
        if disk.files_wanted:
            subject = f"{node}: {disk.files_wanted}, on the file system of its data"
        action = "free space: it refuses data until then; read 'When a disk runs full' in docs/operations.md"
        return [holds("NeedleDiskFull", subject, action)]
    if disk.free < DISK_ROOMS * disk.kept_free:
        subject = f"{node}: {disk.free / 1e6:,.0f} MB free; below {disk.kept_free / 1e6:,.0f} MB it refuses data"
        return [holds("NeedleDiskNearlyFull", subject, "free space, give it a larger disk, or add a node")]
    return []


def _memory(node: NodeId, memory: MemoryRoom | None) -> list[Condition]:
    """Whether a node refuses data for want of memory, or soon will."""
    if memory is None or not (memory.tight or memory.low):
        return []
    told = "it refuses data, for it took more than" if memory.low else "it refuses data above"
    subject = f"{node}: {memory.own / 1e6:,.0f} MB taken; {told} {memory.limit / 1e6:,.0f} MB"
    action = "delete documents, give it more memory, or add a node; read 'When memory runs short' in docs/operations.md"
    return [holds("NeedleMemoryFull" if memory.low else "NeedleMemoryNearlyFull", subject, action)]


def _flushes(node: NodeId, flushes: FlushLevels | None) -> list[Condition]:
    """Whether the disk under its log hangs, or is slow."""
    if flushes is None:
        return []
    if flushes.under_way > HANG_SECONDS:
        subject = f"{node}: a write to its log has waited {flushes.under_way:.0f} s for the disk"
        action = "look at the disk and at the kernel's log; if it does not come back, stop the node: it leads nothing"
        return [holds("NeedleDiskHangs", subject, action)]
    if flushes.slow < FSYNC_SLOW_MIN or flushes.slow <= FSYNC_SHARE * flushes.writes:
        return []
    subject = f"{node}: {flushes.slow} of {flushes.writes} log writes in two minutes took over {FSYNC_SECONDS:g} s"
    action = "look at what else uses the disk, and at its health; `needle step-down` moves leadership away meanwhile"
    return [holds("NeedleFsyncSlow", subject, action)]


def _clock(node: NodeId, clock: ClockLevels | None) -> list[Condition]:
    """Whether it runs at another rate than those of most, by more than the readings may be off."""
    if clock is None or abs(clock.rate) - clock.error <= max(clock.error_max, CLOCK_ERROR_MIN):
        return []
    told = f"{node}: {abs(clock.rate):.2%} {'faster' if clock.rate > 0 else 'slower'} than others, for minutes"
    return [holds("NeedleClockRateOff", told, "use strong reads, or stop the node, until its clock is well")]


NEW_CERTIFICATE = (
    "make a new one and put it in its place: the node takes it without a restart; or the authority does, which all "
    "certificates end with: change it (docs/security.md)"
)


def _expired(node: NodeId) -> Condition:
    """It runs, and may follow its leaders by connections that were open; nobody else reaches it."""
    return holds("NeedleCertificateExpires", f"{node}: it has expired, so nobody can connect to it", NEW_CERTIFICATE)


def _levels(node: NodeId, who: WhoAnswer) -> list[Condition]:
    """Its memory, its log, the disk of that, its clock, and its certificate."""
    levels = who.levels
    if levels is None:
        return []
    found = [*_memory(node, levels.memory), *_flushes(node, levels.flushes), *_clock(node, levels.clock)]
    if levels.log_bytes > LOG_FULL_RATIO * levels.log_bytes_max:
        subject = f"{node}: {levels.log_bytes / 1e6:,.0f} of {levels.log_bytes_max / 1e6:,.0f} MB"
        action = (
            "its log says why this is not cut: give its disk room, or raise log_bytes_max; from three quarters on it "
            "refuses writes, and `needle step-down` moves leadership away meanwhile"
        )
        found.append(holds("NeedleLogNearlyFull", subject, action))
    if levels.certificate_seconds is not None and levels.certificate_seconds < CERTIFICATE_SECONDS:
        days = levels.certificate_seconds / 86_400
        subject = f"{node}: in {days:.1f} days" if days > 0 else f"{node}: it did {-days:.1f} days ago"
        found.append(holds("NeedleCertificateExpires", subject, NEW_CERTIFICATE))
    if levels.certificate_refused:
        subject = f"{node}: it does not take the changed {levels.certificate_refused}, and uses what was there before"
        action = "its log says why: put files in their place that go together, and are of this node and its authority"
        found.append(holds("NeedleCertificateRefused", subject, action))
    return found


def _backups(told: Mapping[NodeId, WhoAnswer]) -> list[Condition]:
    """How old the last backup is, and how far the archive is behind, where they are expected."""
    levels = [who.levels for who in told.values() if who.levels is not None]
    age = min((one.backup_seconds for one in levels if one.backup_seconds is not None), default=0.0)
    behind = max((one.archive_seconds for one in levels if one.archive_seconds is not None), default=0.0)
    found = []
    if age > BACKUP_SECONDS:
        action = "see why `needle backup create` did not run, or run it; `needle backup forget` if there are to be none"
        found.append(holds("NeedleBackupTooOld", f"the last one began {age / 3600:.1f} hours ago", action))
    if behind > ARCHIVE_SECONDS:
        action = "see whether `needle backup archive` runs, and what it says; `needle backup forget` if it is not to"
        found.append(holds("NeedleArchiveBehind", f"all is archived until {behind / 60:.0f} minutes ago", action))
    return found


def _versions(topology: Topology, knows: Mapping[NodeId, int]) -> list[Condition]:
    """Of a cluster whose upgrade is under way: whom its version waits for."""
    most = max(knows.values(), default=0)
    older = sorted(
        info.id
        for info in topology.nodes
        if info.state is not NodeState.REMOVED and knows.get(info.id, info.knows) < most
    )
    if not older:
        return []
    subject = f"the cluster stays at {topology.cluster_version}, and not {most}, for the sake of {', '.join(older)}"
    return [holds("NeedleVersionsDiffer", subject, "upgrade these nodes too, or remove those that are gone")]
