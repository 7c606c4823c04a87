"""What is not fit in a cluster, judged from what its nodes measured. Pure.

Invariant: a finding is told if and only if it follows from the answers given; bounds are those of `client.fitness` and
of the alert table. The conditions of `needle status` are findings, too, by the same code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain

from needle.base.ids import NodeId
from needle.client.alerts import (
    CERTIFICATE_SECONDS,
    CLOCK_ERROR_MIN,
    CRITICAL,
    DISK_ROOMS,
    FSYNC_SECONDS,
    LOG_FULL_RATIO,
    Condition,
)
from needle.client.clock_readings import ClockFound
from needle.client.fitness import (
    ELECTION_ROUNDS,
    ELECTION_ROUNDS_MIN,
    FILES_MIN,
    FSYNC_MEDIAN_SECONDS,
    GRAVE_SETTINGS,
    LINK_SECONDS,
    MAPS_MIN,
    MEMORY_FREE_MIN,
    OFFSET_SECONDS,
    REPLICAS_MIN,
    TAKEN_MAX,
    Diagnosis,
    Finding,
    LinkFound,
    NodeFound,
    found,
    percentile,
)
from needle.protocol.probe_calls import Link, ProbeAnswer
from needle.routing.topology import NodeState, Topology

Probes = Mapping[NodeId, ProbeAnswer]
Clocks = Mapping[NodeId, ClockFound]

_ALLOWED = {
    "NeedleCertificateExpires": f"valid for {CERTIFICATE_SECONDS / 86_400:.0f} days or more",
    "NeedleDiskNearlyFull": f"{DISK_ROOMS:g} times what has to stay free",
    "NeedleDiskFull": "more than what has to stay free",
    "NeedleLogNearlyFull": f"{LOG_FULL_RATIO:.0%} of log_bytes_max",
}
"""Of conditions that have a bound; the others are not to hold at all."""


def diagnose(
    topology: Topology,
    probes: Probes,
    silent: Mapping[NodeId, str],
    clocks: Clocks,
    conditions: Sequence[Condition],
    documents: int,
) -> Diagnosis:
    """silent: nodes without an answer, and why. conditions: that `needle status` tells. documents: of the cluster, as
    far as leaders count them."""
    reached = {link.node for answer in probes.values() for link in answer.links if link.pings}
    down = silent.keys() - reached
    findings = chain(
        map(_of_condition, conditions),
        (found("not-probed", node, why) for node, why in silent.items()),
        *(_links(answer, down) for answer in probes.values()),
        *(_timeouts(answer, probes) for answer in probes.values()),
        *(_clock(probes[node], clock) for node, clock in clocks.items() if node in probes),
        *(_machine(answer) for answer in probes.values()),
        _equal(probes),
        _replicas(topology),
        _zones(topology),
        _backups(topology, documents),
    )
    return Diagnosis(
        findings=sorted(findings, key=lambda one: one.severity != CRITICAL),
        nodes=[_node(answer, clocks.get(node, ClockFound())) for node, answer in probes.items()],
        links=[
            LinkFound(source=node, target=link.node, p50=percentile(link.pings, 0.5), p99=percentile(link.pings, 0.99))
            for node, answer in probes.items()
            for link in answer.links
        ],
    )


def _node(answer: ProbeAnswer, clock: ClockFound) -> NodeFound:
    return NodeFound(
        node=answer.node_id,
        release=answer.release,
        fsync_p50=percentile(answer.fsyncs, 0.5),
        fsync_p99=percentile(answer.fsyncs, 0.99),
        clock_rate=clock.rate,
        clock_rate_error=clock.rate_error,
        clock_offset=clock.offset,
        clock_offset_error=clock.offset_error,
        facts=answer.facts,
    )


def _of_condition(condition: Condition) -> Finding:
    return Finding(
        severity=condition.severity,
        name=condition.alert,
        subject=condition.name,
        measured=condition.subject,
        allowed=_ALLOWED.get(condition.alert, ""),
        action=condition.action,
        runbook=condition.runbook,
    )


# --- links and timeouts ----------------------------------------------------------------------------------------------
def _links(answer: ProbeAnswer, down: Set[NodeId]) -> Iterator[Finding]:
    """down: nodes that nobody reaches. They are told of once; no link to them is at fault as far as can be known."""
    for link in answer.links:
        subject, middle = f"{answer.node_id} to {link.node}", percentile(link.pings, 0.5)
        if middle is None and link.node in down:
            continue
        if middle is None:
            yield found("link-cut", subject, link.error)
        elif middle > LINK_SECONDS:
            yield found("link-slow", subject, f"{_ms(middle)} in the median, {_ms(link.pings[-1])} at most")


def _setting(answer: ProbeAnswer, name: str) -> float:
    value = answer.settings.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _timeouts(answer: ProbeAnswer, probes: Probes) -> Iterator[Finding]:
    """Of one node's settings, by its slowest link and that link's other disk."""
    timeout = _setting(answer, "election_timeout")
    lease, beat = _setting(answer, "lease_timeout"), _setting(answer, "heartbeat_interval")
    rounds = [(link, *_round(link, probes)) for link in answer.links if link.pings]
    if rounds:
        link, usual, worst = max(rounds, key=lambda one: (one[1], one[2]))
        enough = max(ELECTION_ROUNDS * usual, ELECTION_ROUNDS_MIN * worst)
        if timeout < enough:
            subject = f"election_timeout {_ms(timeout)} of {answer.node_id}"
            told = f"a round to {link.node} takes {_ms(usual)} in the median, {_ms(worst)} at most"
            told += f"; {_ms(enough)} would do"
            grave = timeout < ELECTION_ROUNDS_MIN * usual
            yield found("election-timeout", subject, told, severity=CRITICAL if grave else "")
    trip = max((percentile(link.pings, 0.5) or 0.0 for link in answer.links), default=0.0)
    if not beat + trip <= lease <= timeout:
        allowed = f"{_ms(beat + trip)} to {_ms(timeout)}"
        yield found("lease-timeout", f"lease_timeout of {answer.node_id}", _ms(lease), allowed)


def _round(link: Link, probes: Probes) -> tuple[float, float]:
    """Seconds until an entry that is sent over a link is on the other disk and that is known here: the median, and the
    longest."""
    fsyncs = probes[link.node].fsyncs if link.node in probes else []
    middle = (percentile(link.pings, 0.5) or 0.0) + (percentile(fsyncs, 0.5) or 0.0)
    return middle, link.pings[-1] + max(fsyncs, default=0.0)


def _clock(answer: ProbeAnswer, clock: ClockFound) -> Iterator[Finding]:
    node, bound = answer.node_id, max(_setting(answer, "clock_error_max"), CLOCK_ERROR_MIN)
    if abs(clock.rate) - clock.rate_error > bound:
        told = f"{abs(clock.rate):.2%} {'faster' if clock.rate > 0 else 'slower'} than others"
        yield found("clock-rate", f"the clock of {node}", told, f"{bound:.2%}")
    if abs(clock.offset) - clock.offset_error > OFFSET_SECONDS:
        told = f"{abs(clock.offset):.1f} s {'ahead of' if clock.offset > 0 else 'behind'} others"
        yield found("clock-offset", f"the wall clock of {node}", told)


# --- a machine -------------------------------------------------------------------------------------------------------
def _machine(answer: ProbeAnswer) -> Iterator[Finding]:
    node, facts = answer.node_id, answer.facts
    middle, late = percentile(answer.fsyncs, 0.5), percentile(answer.fsyncs, 0.99)
    if answer.fsync_error:
        yield found("disk-not-measured", f"the disk of {node}", answer.fsync_error)
    if middle is not None and late is not None and (middle > FSYNC_MEDIAN_SECONDS or late > FSYNC_SECONDS):
        told = f"{_ms(middle)} in the median, {_ms(late)} in the 99th percentile"
        yield found("disk-slow", f"fsync of {node}", told)
    if facts.files_max and (facts.files_max < FILES_MIN or facts.files > TAKEN_MAX * facts.files_max):
        grave = facts.files > TAKEN_MAX * facts.files_max
        told = f"{facts.files:,} of {facts.files_max:,} are open"
        yield found("few-descriptors", f"open files of {node}", told, severity=CRITICAL if grave else "")
    if facts.maps_max and (facts.maps_max < MAPS_MIN or facts.maps > TAKEN_MAX * facts.maps_max):
        grave = facts.maps > TAKEN_MAX * facts.maps_max
        told = f"{facts.maps:,} of {facts.maps_max:,} are taken"
        yield found("few-maps", f"mapped files of {node}", told, severity=CRITICAL if grave else "")
    if facts.memory and facts.memory_available < MEMORY_FREE_MIN * facts.memory:
        told = f"{facts.memory_available / 1e6:,.0f} of {facts.memory / 1e6:,.0f} MB can be taken"
        yield found("memory-short", f"memory of {node}", told)


# --- what is to be equal ---------------------------------------------------------------------------------------------
def _equal(probes: Probes) -> Iterator[Finding]:
    cpus = {node: f"{one.facts.machine} {one.facts.features}".strip() for node, one in probes.items()}
    yield from _unlike("cpus-differ", "processors", {node: cpu for node, cpu in cpus.items() if cpu})
    yield from _unlike("releases-differ", "release", {node: one.release for node, one in probes.items()})
    for path in dict.fromkeys(path for one in probes.values() for path in one.settings):
        values = {node: str(one.settings[path]) for node, one in probes.items() if path in one.settings}
        yield from _unlike("settings-differ", path, values, CRITICAL if path in GRAVE_SETTINGS else "")


def _unlike(check: str, subject: str, values: Mapping[NodeId, str], severity: str = "") -> Iterator[Finding]:
    """Whether some nodes have another value than most."""
    if len(set(values.values())) < 2:
        return
    usual = Counter(values.values()).most_common(1)[0][0]
    others = [f"{node} has {_beside(value, usual)}" for node, value in sorted(values.items()) if value != usual]
    yield found(check, subject, f"{', '.join(others)}; most have {usual}", severity=severity)


def _beside(value: str, usual: str) -> str:
    """A value of several words in short."""
    mine, theirs = value.split(), usual.split()
    if len(mine) < 2:
        return value
    less, more = [w for w in theirs if w not in mine], [w for w in mine if w not in theirs]
    told = [*(["no " + " ".join(less)] if less else []), *([" ".join(more) + " more"] if more else [])]
    return " and ".join(told)


def _replicas(topology: Topology) -> Iterator[Finding]:
    least = max(REPLICAS_MIN, topology.replication_factor)
    for info in topology.serving:
        if len(info.wanted) < least:
            yield found("few-replicas", f"shard {info.shard}", f"{len(info.wanted)} replicas", f"{least} replicas")


def _zones(topology: Topology) -> Iterator[Finding]:
    present = [info for info in topology.nodes if info.state is not NodeState.REMOVED]
    zone_of = {info.id: info.zone for info in present}
    zones = {zone for zone in zone_of.values() if zone}
    if not zones:
        return  # nobody has said where nodes are
    if nowhere := sorted(node for node, zone in zone_of.items() if not zone):
        yield found("few-zones", ", ".join(nowhere), "no zone is known", "a zone of each node, for others have one")
    for info in topology.serving:
        used, wanted = {zone_of.get(node, "") for node in info.wanted} - {""}, min(len(info.wanted), len(zones))
        if len(used) < wanted:
            told = f"its {len(info.wanted)} replicas are in {len(used)} of {len(zones)} zones"
            yield found("few-zones", f"shard {info.shard}", told, f"{wanted} zones")


def _backups(topology: Topology, documents: int) -> Iterator[Finding]:
    """One that is too old, and an archive that is behind, is a condition of `needle status`."""
    if documents and not topology.backed_up and not topology.archived:
        yield found("no-backup", "the cluster", f"{documents:,} documents, and neither backup nor archive is told of")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1000:.3g} ms"
