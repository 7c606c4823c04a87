"""`needle status`: every replica of every shard as its own node sees it, and the alert conditions that hold now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

import needle
from needle.base.config import check_range
from needle.base.errors import ConnectionLost, InvalidArgument, LostState, NeedleError, NoQuorum
from needle.base.ids import NodeId
from needle.base.instants import rfc3339
from needle.cli.common import (
    DEFAULT_CLUSTER,
    Cluster,
    Json,
    addresses,
    as_json,
    console,
    print_json,
    run,
    state_of,
    table,
)
from needle.client.alerts import Condition, holds
from needle.client.cluster_conditions import look as look_around
from needle.client.cluster_conditions import ordered, views
from needle.client.conditions import START, NodeView, lag_of, leader_of
from needle.client.health import ClusterHealth, ReplicaStatus, lost_nodes
from needle.protocol.peer_calls import WhoAnswer, check_fresh
from needle.routing.meant import HOW_MADE
from needle.routing.plans import CATALOG

STATUS_TIMEOUT = 2.0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What `needle status` shows. catalog: its replicas. version: of commands and formats, that the cluster is at; 0 if
    it is not known. knows: by node, that of the nodes that answer. backed_up: when the last backup that it was told of
    began, in microseconds since 1970; 0 if there is none. archived: the same of when its logs were archived; while they
    are, it is told of that once an hour."""

    health: ClusterHealth
    replicas: list[ReplicaStatus]
    conditions: list[Condition]
    catalog: list[ReplicaStatus] = []
    version: int = 0
    knows: dict[NodeId, int] = {}
    backed_up: int = 0
    archived: int = 0

    @property
    def critical(self) -> bool:
        """Whether somebody has to do something now."""
        return any(condition.severity == "critical" for condition in self.conditions)


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks with --watch.")] = 1.0,
    cluster: Cluster = DEFAULT_CLUSTER,
    json: Json = False,
) -> None:
    """Show every replica of every shard, the alert conditions that hold now, and how even the shards are. Exit code 1
    if a critical condition holds."""
    check_range("--every", every, 0.1, 3600)
    known = addresses(cluster)

    async def again(client: needle.Client) -> None:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                seen = await look(client, known)
                if json:
                    print_json(status_json(seen))
                else:
                    live.update(status_table(seen), refresh=True)
                await asyncio.sleep(every)

    async def once(client: needle.Client) -> Look:
        return await look(client, known)

    if watch:
        run(cluster, again)
    try:
        seen = run(cluster, once)
    except NoQuorum:  # no node answers: that is its status
        seen = _silent(known)
    except ConnectionLost as error:
        if not error.details.get("refused"):
            raise
        seen = _silent(known)
    if json:
        print_json(status_json(seen))
    else:
        console.print(status_table(seen))
    if seen.critical:
        raise typer.Exit(1)


async def look(client: needle.Client, known: Sequence[str]) -> Look:
    """What every replica says of itself, and what follows from that. known: the addresses given; those at which no node
    of the cluster is get a condition of their own."""
    seen = await look_around(client, STATUS_TIMEOUT)
    topology = client.topology()
    if topology.settings is None:
        health = msgspec.structs.replace(seen.health, warnings=[])
        return Look(health=health, replicas=seen.replicas, conditions=await _emptied(client, known))
    listed = topology.addresses().values()
    others = await asyncio.gather(*(_outside(client, at) for at in known if at not in listed))
    found = [*seen.health.conditions, *(one.told_at(seen.runbooks) for one in others if one is not None)]
    return Look(
        health=seen.health,
        replicas=seen.replicas,
        catalog=seen.catalog,
        conditions=ordered(found),
        version=topology.cluster_version,
        knows={node: who.knows for node, who in seen.told.items()},
        backed_up=topology.backed_up,
        archived=topology.archived,
    )


async def _outside(client: needle.Client, address: str) -> Condition | None:
    """Of an address that the catalog does not name: whether a node of the cluster is there none the less."""
    try:
        who = await client.describe_node(address, timeout=STATUS_TIMEOUT)
    except NeedleError:
        action = "no node of the cluster has this address: take it out of --cluster (or NEEDLE_CLUSTER)"
        return holds("NeedleNotAMember", address, action)
    if who.node_id in client.topology().addresses():
        return None
    action = "it was removed: stop it; or it is new: it joins with `join` in [sharding]"
    return holds("NeedleNotAMember", f"{who.node_id} at {address}", action)


async def _emptied(client: needle.Client, known: Sequence[str]) -> list[Condition]:
    """Of nodes that know of no cluster: whether they are merely new, or what others know of them is not in their
    directories."""
    found = [
        holds(
            "NeedleNoCluster",
            "the nodes belong to no cluster yet",
            f"{HOW_MADE}; where they run, their logs say what they wait for",
        )
    ]
    answers: list[WhoAnswer] = []
    for address in known:
        try:
            answers.append(await client.describe_node(address, timeout=STATUS_TIMEOUT))
        except LostState as error:
            found.append(_lost(error))
        except NeedleError as error:
            found.append(_unreachable(address, error.message))
    # A node that belongs to a cluster and has never seen its catalog is being founded, perhaps with the others here.
    founding = {who.node_id for who in answers if who.uid and not who.version}
    for who in answers:
        try:
            check_fresh(who.node_id, who.lost, set(who.strangers) - founding)
        except (LostState, InvalidArgument) as error:
            found.append(_lost(error))
    return found


def _lost(error: NeedleError) -> Condition:
    action = "read 'A replica does not go on' in docs/troubleshooting.md before anything else"
    return holds("NeedleReplicaLost", error.message, action)


def _unreachable(address: str, why: str) -> Condition:
    action = f"check the process and the network: {why}"
    return holds("NeedleNodeUnreachable", address, action)


def _silent(known: Sequence[str]) -> Look:
    found = [holds("NeedleShardNoLeader", f"0 of {len(known)} nodes answer", START)]
    found += [_unreachable(address, "it does not answer") for address in known]
    return Look(health=ClusterHealth(healthy=False, shards={}, warnings=[]), replicas=[], conditions=found)


def status_json(seen: Look) -> dict[str, object]:
    """What `needle status --json` prints."""
    held, catalog = views(seen.replicas), views(seen.catalog).get(CATALOG, [])
    leader = leader_of(catalog)
    return {
        "healthy": seen.health.healthy,
        "shards": as_json(seen.health.shards),
        "replicas": [_with_lag(replica, held[replica.shard]) for replica in seen.replicas],
        "catalog": {
            "leader": leader.node_id if leader is not None else None,
            "replicas": [
                {name: value for name, value in _with_lag(replica, catalog).items() if name != "shard"}
                for replica in seen.catalog
            ],
        },
        "conditions": as_json(seen.conditions),
        "warnings": seen.health.warnings,
        "cluster_version": seen.version,
        "versions": seen.knows,
        "last_backup": rfc3339(seen.backed_up) if seen.backed_up else None,
        "last_archived": rfc3339(seen.archived) if seen.archived else None,
    }


def _with_lag(replica: ReplicaStatus, beside: Sequence[NodeView]) -> dict[str, object]:
    """beside: all of its shard."""
    lag = lag_of(replica.node, beside)
    shown = {"lag_entries": lag[0], "lag_ms": lag[1]} if lag is not None else {}
    return {**as_json(replica), **shown}


def status_table(seen: Look) -> RenderableType:
    """Shards by replicas, the preferred leader's first, then the catalog's, and what is wrong."""
    rows = table("shard", "keys", "node", "address", "state", "term", "commit", "applied", "lag", "documents", "lease")
    first: set[int] = set()
    everywhere = [*seen.replicas, *seen.catalog]
    lost, held = lost_nodes(everywhere), views(everywhere)
    for replica in everywhere:
        shard, status = seen.health.shards.get(replica.shard), replica.status
        named = (
            "catalog" if replica.shard == CATALOG else str(replica.shard),
            "" if shard is None else f"{shard.share:.1%}",
        )
        head = ("", "") if replica.shard in first else named
        first.add(replica.shard)
        if status is None:
            state = "Lost" if replica.node in lost else "unreachable"
            rows.add_row(*head, replica.node, replica.address, Text(state, style="bold red"))
            continue
        lag = lag_of(replica.node, held[replica.shard])
        rows.add_row(
            *head,
            replica.node,
            replica.address,
            state_of(status),
            str(status.current_term),
            str(status.commit_index),
            str(status.last_applied),
            "?" if lag is None else f"{lag[0]}, {lag[1]:.0f} ms",
            "" if shard is None else str(status.documents),
            f"{status.lease_remaining * 1000:.0f} ms" if status.lease_remaining > 0 else "",
        )
    lines = [*map(_line, seen.conditions)]
    lines += [Text.assemble(("note", "yellow"), f": {warning}") for warning in seen.health.warnings]
    others = (balance(seen.health), _version_line(seen), _backup_line(seen))
    return Group(rows, *lines, *(Text(text) for text in others if text))


def _version_line(seen: Look) -> str:
    """The version of commands and formats that the cluster is at, and which nodes know another one."""
    if not seen.version:
        return ""
    others = [f"{node} knows {knows}" for node, knows in sorted(seen.knows.items()) if knows != seen.version]
    return f"version: the cluster is at {seen.version}; {', '.join(others) or 'the nodes that answer know no other'}"


def _backup_line(seen: Look) -> str:
    """When the last backup began, or that there are documents and none was made."""
    if seen.backed_up:
        return f"backup: the last one began at {rfc3339(seen.backed_up // 1_000_000 * 1_000_000)}"
    if seen.archived:
        return f"backup: the logs are archived, as was told last at {rfc3339(seen.archived // 1_000_000 * 1_000_000)}"
    documents = any(shard.documents for shard in seen.health.shards.values())
    return "backup: none was made that the cluster was told of; `needle backup create` makes one" if documents else ""


def _line(condition: Condition) -> Text:
    style = "bold red" if condition.severity == "critical" else "yellow"
    told = f" {condition} - {condition.action} ({condition.runbook})"
    return Text.assemble((condition.severity.upper(), style), told)


def balance(health: ClusterHealth) -> str:
    """One line on how even the shards are, keys by the ring, documents by count; "" for a single shard."""
    shares = [shard.share for shard in health.shards.values()]
    counts = [shard.documents for shard in health.shards.values()]
    if len(shares) < 2:
        return ""
    keys = max(shares) * len(shares)
    if unled := [str(number) for number, shard in health.shards.items() if shard.leader is None]:
        which = f"no leader counts shards {', '.join(unled)}"
        return f"balance: the largest shard owns {keys:.2f} of a fair share of the keys; {which}"
    if not sum(counts):
        return f"balance: the largest shard owns {keys:.2f} of a fair share of the keys; no documents yet"
    documents = max(counts) * len(counts) / sum(counts)
    return f"balance: of a fair share the largest shard owns {keys:.2f} in keys, {documents:.2f} in documents"
