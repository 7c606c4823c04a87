"""A cluster that its settings describe founds itself: every node lists the same `cluster_nodes`.

A node whose directory is new asks the others. Once a majority is there and nobody knows the cluster, it begins its
replica of the catalog's group with all of them as voters, and whoever they elect puts the first topology into it; of
more than three, or of an even number, the ones that are left over then leave the group (`catalog_nodes`).
Invariants: that is one command, so a crash at any step leaves the catalog empty, for the next leader to fill, or whole;
nodes with other lists do not get into one cluster, for the list gives the cluster its uid, and nothing is written down
while one that answers has another list; a node that comes when the cluster is there begins nothing; one that was silent
is a node of it all the same: the first directory that registers. Nor does one found anything that has heard of a
cluster of this list which its own catalog does not hold: then directories were emptied, and the other has the data; nor
one that a node speaks to which is not of the list: clients of that node's cluster would take it for theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import xxhash

from needle.base.config import RaftConfig, parse_node, refuse
from needle.base.errors import InvalidArgument, LostState, NeedleError, Unavailable
from needle.base.ids import CATALOG_GROUP, NodeId
from needle.base.model import WriteResult
from needle.base.news import FOR_EVER, News
from needle.base.sharding_config import SHARDS, VIRTUAL_NODES
from needle.base.versions import FIRST
from needle.catalog.machine import CatalogMachine
from needle.catalog.planning.catalog_nodes import catalog_voters
from needle.multiraft.host import Host
from needle.protocol import calls, catalog_commands
from needle.protocol.catalog_commands import AssignReplicas
from needle.protocol.peer_calls import WHO, FoundCall, WhoAnswer, WhoCall, check_fresh
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH, RANGE, parse_strategy
from needle.routing.topology import ClusterSettings, Topology
from needle.server.catalog.founding import check_router, first_topology, node_info, uneven
from needle.server.cluster_files import ClusterFile
from needle.server.ports import NodePorts, Peers
from needle.shard.apply.spec_validation import check_new

log = logging.getLogger("needle.server")

ASK_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 3.0
"""So long the leader waits for nodes that do not answer before it founds the cluster without having heard them."""
PAUSE_SECONDS: Final = 0.2
COMMAND_SECONDS: Final = 10.0


class FoundingNode(Protocol):
    """The node whose settings describe the cluster."""

    node_id: NodeId
    config: RaftConfig
    ports: NodePorts
    host: Host
    peers: Peers
    topology: Topology
    cluster: ClusterFile
    catalog: CatalogMachine | None

    def who(self) -> WhoAnswer: ...
    async def found(self, call: FoundCall) -> None: ...
    def now(self) -> float: ...
    async def execute(self, command: bytes, timeout: float) -> WriteResult: ...
    async def wait_topology(self, version: int, timeout: float) -> bool: ...


def cluster_uid(config: RaftConfig) -> int:
    """Of the cluster that `config` describes: equal on all nodes with the same list, and on no others."""
    text = "\n".join([config.cluster_id, *sorted(config.founders)])
    return (xxhash.xxh3_64_intdigest(text.encode()) >> 2) + 1


def settings_of(config: RaftConfig) -> ClusterSettings:
    """How the cluster is sharded that `config` describes. Raises ConfigError or InvalidArgument if that cannot be."""
    sharding = config.sharding
    made = ClusterSettings(
        shard_count=sharding.shards or SHARDS,
        replication_factor=sharding.replicas or len(config.founders),
        virtual_nodes_per_shard=sharding.virtual_nodes or VIRTUAL_NODES,
        strategy=parse_strategy("sharding.strategy", sharding.strategy or CONSISTENT_HASH.kind),
    )
    if sharding.boundaries and made.strategy != RANGE:
        raise refuse("sharding.boundaries", list(sharding.boundaries), "none unless sharding.strategy is range")
    initial_map(made.strategy, made.shard_count, made.virtual_nodes_per_shard, sharding.boundaries)
    return made


def seeds_of(config: RaftConfig, known: Callable[[NodeId], str | None], *, founded: bool) -> list[str]:
    """Where to ask for the cluster, by `config`. Once it is there (founded), of the listed nodes those that are listed
    elsewhere than they are known to be: perhaps all have moved, and were told so by their lists."""
    through = dict(parse_node(text, "reach") for text in config.reach)
    listed = {node: through.get(node, at) for node, at in config.founders.items() if node != config.node_id}
    if founded:
        asked = [at for node, at in listed.items() if at != known(node)]
    else:
        asked = [*listed.values(), *(at for node in listed if (at := known(node)) is not None)]
    return list(dict.fromkeys([*config.sharding.join, *asked]))


def other_settings(config: RaftConfig, now: Topology) -> list[str]:
    """What `config` says of the cluster that `now` says otherwise: only who founds it puts that into the catalog."""
    if now.settings is None:
        return []
    sharding, first = config.sharding, config.first_collection
    said = {
        "sharding.shards": (sharding.shards, now.settings.shard_count),
        "sharding.replicas": (sharding.replicas, now.settings.replication_factor),
        "sharding.strategy": (sharding.strategy, now.settings.strategy.text()),
        "sharding.virtual_nodes": (sharding.virtual_nodes, now.settings.virtual_nodes_per_shard),
    }
    found = [f"{name} = {mine}, it has {its}" for name, (mine, its) in said.items() if mine not in (None, its)]
    starts = [b"", *(text.encode() for text in sharding.boundaries)]
    if sharding.boundaries and now.map is not None and now.map.epoch == 1 and starts != list(now.map.starts):
        found.append(f"sharding.boundaries = {list(sharding.boundaries)}, its ranges begin elsewhere")
    held = now.collection(first.name) if first is not None else None
    if first is not None and held is None:
        found.append(f"dimensions = {first.dimensions}, it has no collection {first.name!r}")
    elif first is not None and held is not None and not held.is_made_as(first):
        mine, its = ((spec.dimensions, spec.metric.value, spec.index) for spec in (first, held.spec))
        found.append(f"dimensions, metric and index = {mine}, the collection {first.name!r} has {its}")
    return found


def fitted(now: Topology, founders: Sequence[NodeId]) -> AssignReplicas | None:
    """What brings the catalog from all founders to those of them that are to hold it, the ones that answered first;
    None if these are the same, or others have decided since."""
    if now.settings is None or now.catalog_assigned or set(now.catalog) != set(founders):
        return None
    infos = [info for name in founders if (info := now.node(name)) is not None]
    silent = {info.id for info in infos if not info.incarnation}
    after = catalog_voters(infos, now.settings.replication_factor, silent)
    return AssignReplicas(CATALOG_GROUP, list(now.catalog), after) if len(after) < len(founders) else None


class SettingsFounding:
    """See the module."""

    def __init__(self, node: FoundingNode) -> None:
        self._node = node
        self._said = News(FOR_EVER, keys_max=1)
        self._older: set[NodeId] = set()
        """Who said that it is in a cluster of these nodes that this node's catalog knows nothing of."""
        self._silent: dict[NodeId, str] = {}
        """Why nodes have not answered the last time."""

    async def run(self) -> None:
        """Until the cluster is founded, by this node or another."""
        node, since = self._node, -1.0
        begins = node.topology.settings is None
        while node.topology.settings is None and not node.host.stopped:
            leads = node.catalog is not None and node.host.is_leader(CATALOG_GROUP)
            since = -1.0 if not leads else since if since >= 0 else node.now()
            try:
                self._check_list()
                if node.cluster.uid == 0:
                    await self._begin()
                elif node.catalog is None and node.node_id in node.cluster.voters:  # for want of room at first
                    await node.found(FoundCall(node.cluster.uid, node.config.founders))
                elif leads:
                    await self._create(patient=node.now() < since + PATIENCE_SECONDS)
            except NeedleError as error:
                self._say(error)
            await node.wait_topology(1, PAUSE_SECONDS)
        if ignored := other_settings(node.config, node.topology):
            log.warning("the cluster was founded before, so these settings of it do nothing: %s", "; ".join(ignored))
        if begins:
            await self._fit_catalog()

    async def _fit_catalog(self) -> None:
        """All founders began the catalog's group, for that list is equal on all; now it is held by as many as a cluster
        of this size needs. Whoever leads it does that; if they all stop meanwhile, the next plan does."""
        node = self._node
        while not node.host.stopped and (command := fitted(node.topology, list(node.config.founders))) is not None:
            if node.catalog is not None and node.host.is_leader(CATALOG_GROUP):
                try:
                    node.ports.failpoint("founding.before_fitting")
                    await node.execute(catalog_commands.entry(command, node.topology), COMMAND_SECONDS)
                except NeedleError as error:
                    log.debug("the catalog keeps its founders for now: %s", error)
            await node.wait_topology(node.topology.version + 1, PAUSE_SECONDS)

    def _say(self, error: NeedleError) -> None:
        if self._said.is_news(error.message):
            log.warning("the cluster that the settings describe is not founded yet: %s", error)

    def _check_list(self) -> None:
        """Raises InvalidArgument if this node began the catalog with other nodes than its settings name now."""
        cluster, names = self._node.cluster, self._node.config.founders
        if cluster.voters and cluster.voters.keys() != names.keys():
            raise InvalidArgument(
                f"the data directory of node {self._node.node_id} was begun with the nodes "
                f"{', '.join(sorted(cluster.voters))}, and cluster_nodes names {', '.join(sorted(names))} now. Start "
                "every node with the former list, or every node with the new one and an empty data directory",
                field="cluster_nodes",
            )

    async def _begin(self) -> None:
        node, addresses = self._node, self._node.config.founders
        who = await self._ask_all()
        if any(answer.version for answer in who.values()):
            return  # it is there: this node follows it, and is one of its nodes if no other directory had its name
        self._check(who)
        self._check_lists(who)
        if 2 * len(who) <= len(addresses):
            silent = "; ".join(f"{name}: {why}" for name, why in sorted(self._silent.items()))
            raise Unavailable(f"a majority of its {len(addresses)} cluster_nodes is needed; {silent}")
        await node.found(FoundCall(cluster_uid(node.config), addresses))

    async def _create(self, *, patient: bool) -> None:
        node, config = self._node, self._node.config
        who = await self._ask_all()
        silent = sorted(config.founders.keys() - who.keys())
        if silent and patient:
            return
        self._check(who)
        at = {**config.founders, **{name: answer.address for name, answer in who.items()}}
        infos = [node_info(name, at[name], who.get(name)) for name in config.founders]
        settings = settings_of(config)
        check_router(settings.strategy, who)
        command = first_topology(
            settings,
            infos,
            list(config.founders),
            node.ports.rng,
            config.sharding.boundaries,
            first=config.first_collection,
        )
        if silent and command.needs() > FIRST:
            raise Unavailable(
                f"{', '.join(silent)} must answer first: the settings of the first collection need version "
                f"{command.needs()} of commands and formats, and they have not said which one they know"
            )
        if command.first is not None:
            check_new(command.first, config.limits)
        # What this replica applied is all that earlier leaders committed: it may have been founded before.
        await node.host.read_index(CATALOG_GROUP, COMMAND_SECONDS)
        if node.catalog is not None and node.catalog.topology.settings is None:
            self._check_unheard_of(who)
            node.ports.failpoint("founding.before_command")
            await node.execute(catalog_commands.entry(command, node.catalog.topology), COMMAND_SECONDS)
            node.ports.failpoint("founding.after_command")
            heard = f"; {', '.join(silent)} did not answer and may come later" if silent else ""
            log.info("node %s founds the cluster: %s%s", node.node_id, command.settings.in_words(), heard)
            if note := uneven(settings, config.sharding.boundaries):
                log.warning("%s", note)

    async def _ask_all(self) -> dict[NodeId, WhoAnswer]:
        others = [name for name in self._node.config.founders if name != self._node.node_id]
        answers = await asyncio.gather(*map(self._ask, others))
        return {self._node.node_id: self._node.who(), **{a.node_id: a for a in answers if a is not None}}

    async def _ask(self, name: NodeId) -> WhoAnswer | None:
        try:
            data = await self._node.peers.call(name, WHO, calls.encode(WhoCall()), ASK_SECONDS)
        except NeedleError as error:
            self._silent[name] = error.message
            return None
        self._silent.pop(name, None)
        return calls.decode(data, WhoAnswer)

    def _check(self, who: Mapping[NodeId, WhoAnswer]) -> None:
        for name, answer in who.items():
            check_fresh(name, answer.lost, set(answer.strangers) - self._node.config.founders.keys())
            if answer.uid not in (0, cluster_uid(self._node.config)):
                raise InvalidArgument(
                    f"node {name} at {answer.address} was not started with the same cluster_nodes and cluster_id as "
                    f"{self._node.node_id}, or belongs to another cluster",
                    field="cluster_nodes",
                )

    def _check_unheard_of(self, who: Mapping[NodeId, WhoAnswer]) -> None:
        """Asked once this node has applied all that its catalog's group ever committed."""
        self._older.update(name for name, answer in who.items() if answer.version and name != self._node.node_id)
        if self._older:
            new = ", ".join(sorted(self._node.config.founders.keys() - self._older))
            raise LostState(
                f"{', '.join(sorted(self._older))} has the cluster's catalog, and the catalog of {new} is new: their "
                "data directories were emptied, or are not mounted. Nothing is founded. Start these with the "
                "directories that they had; or, if all data is to be given up, every node with an empty one"
            )

    def _check_lists(self, who: Mapping[NodeId, WhoAnswer]) -> None:
        """Before anything is written down: what a directory began with cannot be put right in the settings any more."""
        mine = cluster_uid(self._node.config)
        if others := sorted(name for name, answer in who.items() if answer.uid == 0 and answer.founds != mine):
            raise InvalidArgument(
                f"cluster_nodes of {', '.join(others)} names other nodes than that of {self._node.node_id}, or none: "
                "give every node the same list",
                field="cluster_nodes",
            )
