"""Creating a cluster out of running nodes: ask who they are, found the catalog, put the first topology into it.

Every step may be repeated: after an error in the middle, calling again with the same nodes goes on. What has to be
decided (placement, ring, which nodes hold the catalog) is decided here and committed as one command.
What was begun goes on with the nodes that it was begun on, whatever replicas, zones and weights would say now: the
catalog goes to the nodes that these call for once the cluster is made.
Invariant: all directories that were begun for one cluster were begun with the same voters of its catalog. With others
there would be two majorities, each with a leader.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import msgspec
import xxhash

from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, UnknownMethod, invalid
from needle.base.ids import CATALOG_GROUP, NodeId, shard_group
from needle.base.model import CollectionSpec
from needle.base.runtime import Rng
from needle.base.versions import FIRST, SAID
from needle.catalog.planning.catalog_nodes import catalog_voters
from needle.catalog.planning.placement import PlacementNode, place
from needle.client.directory import Caller
from needle.client.known_topology import AskedTopology
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.catalog_commands import AssignReplicas, CreateCluster, as_founded
from needle.protocol.peer_calls import FOUND, SHARD_LEADER, WHO, FoundCall, WhoAnswer, WhoCall, check_fresh
from needle.protocol.versioned import check_known
from needle.routing.shard_map import initial_map
from needle.routing.strategy import RANGE, ShardStrategy
from needle.routing.topology import ClusterSettings, NodeInfo, Topology

FAILPOINTS = (
    "founding.before_file",
    "founding.after_file",
    "founding.after_catalog",
    "founding.before_command",
    "founding.after_command",
    "founding.before_fitting",
)
"""Where a crash of a node is interesting while a cluster is founded: see `multiraft.failpoints`."""
ASK_SECONDS = 2.0
NO_SUCH_CALL = "the node there is of an earlier release, which has no catalog"
LOOK_SECONDS = 0.05


async def create_cluster(
    caller: Caller,
    settings: ClusterSettings,
    nodes: Mapping[NodeId, str],
    *,
    rng: Rng,
    boundaries: Sequence[str] = (),
    first: CollectionSpec | None = None,
    timeout: float = 60.0,
) -> Topology:
    """Create the cluster on `nodes` (name -> address, in the order in which shards are placed); returns once every
    shard has a leader. boundaries: for RANGE, see `initial_map`. first: a collection that is there from the beginning.

    Raises InvalidArgument for nodes that are not who they should be, belong to another cluster or do not know the
    strategy's router, or that others know with another data directory, and if making it was begun on nodes that are
    not named; ClusterTooOld for a first collection that a node of a release before cannot read; LostState for nodes
    that do not go on;
    ConnectionLost or DeadlineExceeded for nodes that do not answer.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    if not nodes:
        raise invalid("nodes", dict(nodes), "at least one node")
    if settings.replication_factor > len(nodes):
        raise invalid("replication_factor", settings.replication_factor, f"at most {len(nodes)}, one on each node")
    who = await _ask_all(caller, nodes)
    for node, answer in who.items():
        check_fresh(node, answer.lost, set(answer.strangers) - nodes.keys())
    check_router(settings.strategy, who)
    infos = [node_info(node, nodes[node], answer) for node, answer in who.items()]
    meant = catalog_voters(infos, settings.replication_factor)
    voters = _begun(who, nodes) or meant
    uid = _uid(who, voters)
    old = [node for node, answer in who.items() if answer.version]
    new = [node for node, answer in who.items() if not answer.uid]
    if old and new:
        raise InvalidArgument(
            f"{', '.join(old)} belong to a cluster that was made already, {', '.join(new)} to none: start these with "
            "--join to add them to it",
            field="nodes",
        )
    command = first_topology(settings, infos, voters, rng, boundaries, first)
    check_known(command, as_founded(command, Topology()))  # before anything is begun
    found = calls.encode(FoundCall(uid, {node: nodes[node] for node in voters}))
    for part in (nodes.keys() - new, new):  # who was begun with other voters refuses before another one is begun
        await asyncio.gather(*(caller.call(nodes[node], FOUND, found, ASK_SECONDS) for node in sorted(part)))
    known = AskedTopology(caller, [nodes[node] for node in voters], Topology())
    shards = ClusterShards(caller, known, rng=rng)
    await shards.command(command, deadline - asyncio.get_running_loop().time())
    topology = await shards.refresh(1, deadline - asyncio.get_running_loop().time())
    await _led(caller, topology, deadline)
    if set(voters) == set(meant) or set(topology.catalog) != set(voters) or topology.catalog_assigned:
        return topology
    with contextlib.suppress(NeedleError):  # the cluster is made; what is not done now, the next plan does
        left = deadline - asyncio.get_running_loop().time()
        result = await shards.command(AssignReplicas(CATALOG_GROUP, list(topology.catalog), meant), left)
        return await shards.refresh(result.version, deadline - asyncio.get_running_loop().time())
    return topology


def _begun(who: Mapping[NodeId, WhoAnswer], nodes: Mapping[NodeId, str]) -> list[NodeId]:
    """The nodes that the catalog was begun on by an attempt that did not come to its end, in the order of `nodes`; none
    if there was none. Raises InvalidArgument if one of them is not named."""
    for node, answer in who.items():
        if missing := answer.begun.keys() - nodes.keys():
            more = " ".join(f"{name}={answer.begun[name]}" for name in sorted(missing))
            raise InvalidArgument(
                f"making the cluster was begun with its catalog on {', '.join(sorted(answer.begun))}, as node {node} "
                f"says, and goes on with these nodes only. Name {more} as well; shards, replicas, strategy and the "
                "first collection may be others than before, and so may zones and weights. Or start those that were "
                "begun with empty data directories",
                field="nodes",
            )
    held = next((answer.begun for answer in who.values() if answer.begun), {})
    return [node for node in nodes if node in held]


def _uid(who: Mapping[NodeId, WhoAnswer], voters: Sequence[NodeId]) -> int:
    """Of the cluster that these nodes belong to, or that is made of them: whoever makes one at the same time gives it
    the same. Raises InvalidArgument if they belong to several."""
    by_uid: dict[int, list[NodeId]] = {}
    for node, answer in who.items():
        if answer.uid:
            by_uid.setdefault(answer.uid, []).append(node)
    if len(by_uid) > 1:
        each = ", ".join("+".join(members) for members in by_uid.values())
        raise InvalidArgument(
            f"these nodes belong to different clusters ({each}): name those of one, or start those whose cluster was "
            "never made with empty data directories",
            field="nodes",
        )
    text = "\n".join(f"{node} {who[node].incarnation}" for node in sorted(voters))
    return next(iter(by_uid), (xxhash.xxh3_64_intdigest(text.encode()) >> 2) + 1)


def check_router(strategy: ShardStrategy, who: Mapping[NodeId, WhoAnswer]) -> None:
    """Raises InvalidArgument if a node does not know the function that the strategy needs."""
    router = strategy.router
    without = [node for node, answer in who.items() if router and router not in answer.routers]
    if without:
        raise InvalidArgument(
            f"{', '.join(without)} {'does' if len(without) == 1 else 'do'} not know the router {router!r}: start every "
            "node with --routers, or router_modules in [sharding]",
            field="strategy",
        )


def uneven(settings: ClusterSettings, boundaries: Sequence[str]) -> str:
    """What to say of shards that will not share the documents evenly; "" if nothing is known."""
    if settings.strategy != RANGE or boundaries or settings.shard_count == 1:
        return ""
    return (
        "range without boundaries divides the first byte of ids evenly: ids that are text all lie in one or two of "
        f"{settings.shard_count} shards. Name boundaries, or even the shards out later (`needle rebalance`)"
    )


def first_topology(
    settings: ClusterSettings,
    infos: Sequence[NodeInfo],
    voters: list[NodeId],
    rng: Rng,
    boundaries: Sequence[str] = (),
    first: CollectionSpec | None = None,
) -> CreateCluster:
    """The command that puts shards on nodes, in the order of `infos`. voters: nodes that hold the catalog. boundaries:
    for RANGE, see `initial_map`. first: a collection that is there from the beginning."""
    assignment = place(
        settings.shard_count,
        settings.replication_factor,
        [PlacementNode(id=info.id, zone=info.zone, weight=info.weight) for info in infos],
        {},
    )
    first_map = initial_map(settings.strategy, settings.shard_count, settings.virtual_nodes_per_shard, boundaries)
    shard_nodes = [list(assignment[shard]) for shard in sorted(assignment)]
    return CreateCluster(settings, first_map, as_all_read(infos), voters, shard_nodes, rng.getrandbits(62) + 1, first)


def node_info(name: NodeId, address: str, said: WhoAnswer | None) -> NodeInfo:
    """A node as the catalog lists it. said: None of one that is silent; its zone and weight come when it registers."""
    if said is None:
        return NodeInfo(id=name, address=address, incarnation=0)
    return NodeInfo(
        id=name, address=address, incarnation=said.incarnation, zone=said.zone, weight=said.weight, knows=said.knows
    )


def as_all_read(infos: Sequence[NodeInfo]) -> list[NodeInfo]:
    """The nodes of a new cluster; without what they know if one of them could not read that."""
    if min((info.knows for info in infos), default=FIRST) >= SAID:
        return list(infos)
    return [msgspec.structs.replace(info, knows=FIRST) for info in infos]


async def ask_who(caller: Caller, node: NodeId, address: str) -> WhoAnswer:
    """What the node that is named `node` and listens at `address` says of itself. Raises
    InvalidArgument if it is another node or no such node, and its error if it does not answer."""
    try:
        data = await caller.call(address, WHO, calls.encode(WhoCall()), ASK_SECONDS)
    except UnknownMethod as error:
        raise InvalidArgument(f"nodes = '{node}={address}' is not allowed: {NO_SUCH_CALL}", field="nodes") from error
    except NeedleError as error:
        raise type(error)(f"{node} at {address} does not answer: {error.message}") from error
    answer = calls.decode(data, WhoAnswer)
    if answer.node_id != node:
        raise invalid("nodes", f"{node}={address}", f"the name of the node there, which is {answer.node_id}")
    return answer


async def _ask_all(caller: Caller, nodes: Mapping[NodeId, str]) -> dict[NodeId, WhoAnswer]:
    answers = await asyncio.gather(*(ask_who(caller, node, address) for node, address in nodes.items()))
    return dict(zip(nodes, answers, strict=True))


async def _led(caller: Caller, topology: Topology, deadline: float) -> None:
    """Wait until every shard has a leader."""
    loop = asyncio.get_running_loop()
    for info in topology.shards:
        group = shard_group(info.shard)
        body = calls.encode(GroupCall(group, ASK_SECONDS))
        turn = 0
        while True:
            address = topology.address_of(info.replicas[turn % len(info.replicas)]) or ""
            try:
                answer = calls.decode(await caller.call(address, SHARD_LEADER, body, ASK_SECONDS), LeaderAnswer)
                if answer.leader is not None:
                    break
            except NeedleError as error:
                if not error.retryable:
                    raise
            turn += 1
            if loop.time() > deadline:
                raise DeadlineExceeded(f"shard {info.shard} has no leader yet; its nodes are {info.replicas}")
            await asyncio.sleep(LOOK_SECONDS)
