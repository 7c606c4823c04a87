"""Handlers of nodes, shards, leadership and rebalancing."""

from __future__ import annotations

from needle.base.errors import invalid
from needle.client.health import judge
from needle.client.rebalancing import ShardOrCatalog
from needle.routing.jobs import RebalanceConfig
from needle.routing.pace import expected_seconds
from needle.routing.stats import RebalanceStats
from needle.routing.topology import NodeInfo, NodeState, Topology
from needle.server.http import cluster_bodies as bodies
from needle.server.http.call import Call


async def cluster(call: Call) -> bodies.ClusterView:
    replicas = await call.client.cluster_status(timeout=call.body.timeout)
    now = call.client.topology()
    health = judge(now, replicas)
    return bodies.ClusterView(
        version=now.version,
        epoch=now.map.epoch if now.map is not None else 0,
        healthy=health.healthy,
        warnings=health.warnings,
        waiting=health.waiting,
        nodes=_nodes(now),
        shards=(await shards(call)).shards,
        collections=[info.spec.name for info in now.collections],
        moves=_moves(now),
        cluster_version=now.cluster_version,
    )


async def nodes(call: Call) -> bodies.Nodes:
    return bodies.Nodes(nodes=_nodes(await call.client.refresh_topology(confirmed=True, timeout=call.body.timeout)))


def _nodes(now: Topology) -> list[bodies.Node]:
    return [node_of(info) for info in now.nodes if info.state is not NodeState.REMOVED]


def node_of(info: NodeInfo) -> bodies.Node:
    """A node as the catalog has it."""
    return bodies.Node(
        id=info.id,
        address=info.address,
        zone=info.zone,
        weight=info.weight,
        state=info.state.value,
        maintenance=bool(info.maintenance),
        knows=info.knows,
    )


async def shards(call: Call) -> bodies.Shards:
    health = await call.client.health_check(timeout=call.body.timeout)
    serving = {info.shard: info for info in call.client.topology().serving}
    return bodies.Shards(
        shards=[
            bodies.Shard(
                shard=number,
                replicas=list(serving[number].replicas),
                leader=found.leader,
                state=found.state,
                documents=found.documents,
                problems=found.problems,
            )
            for number, found in health.shards.items()
            if number in serving
        ]
    )


async def restart_plan(call: Call) -> bodies.RestartPlan:
    planned = await call.client.plan_rolling_restart(timeout=call.body.timeout)
    return bodies.RestartPlan(
        nodes=[
            bodies.PlannedRestart(
                node=one.node, address=one.address, leads=list(one.leads), why_not=one.why_not, seconds=one.seconds
            )
            for one in planned
        ]
    )


async def moves(call: Call) -> bodies.Moves:
    return bodies.Moves(moves=_moves(await call.client.refresh_topology(confirmed=True, timeout=call.body.timeout)))


def _moves(now: Topology) -> list[bodies.Moving]:
    return [
        bodies.Moving(id=one.id, source=one.source, target=one.target, state=one.state.value, ranges=len(one.ranges))
        for one in now.moves
    ]


# --- a shard ---------------------------------------------------------------------------------------------------------
def _number(call: Call) -> int:
    text = call.path["shard"]
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise invalid("shard", text, "the number of a shard")
    return int(text)


def _meant(call: Call) -> ShardOrCatalog:
    return "catalog" if call.path["shard"] == "catalog" else _number(call)


async def leader(call: Call) -> bodies.Leader:
    shard = _meant(call)
    return bodies.Leader(shard=shard, leader=await call.client.leader(shard, timeout=call.body.timeout))


async def step_down(call: Call) -> bodies.Leader:
    shard = _meant(call)
    leader = await call.client.step_down(call.body.to, shard=shard, timeout=call.body.timeout)
    return bodies.Leader(shard=shard, leader=leader or None)


async def force_election(call: Call) -> bodies.Leader:
    shard = _meant(call)
    await call.client.force_new_election(call.body.node, shard=shard, timeout=call.body.timeout)
    return bodies.Leader(shard=shard, leader=await call.client.leader(shard))


async def set_replicas(call: Call) -> bodies.Done:
    shard = _meant(call)
    if isinstance(shard, str):
        await call.client.set_catalog_nodes(call.body.nodes, timeout=call.body.timeout)
    else:
        await call.client.set_replicas(shard, call.body.nodes, timeout=call.body.timeout)
    return bodies.Done()


async def split_shard(call: Call) -> bodies.StartedRebalance:
    started = await call.client.split_shard(_number(call), bodies.pace_of(call.body.config), timeout=call.body.timeout)
    return bodies.StartedRebalance(id=started)


async def move_replica(call: Call) -> bodies.StartedRebalance:
    body: bodies.MoveReplica = call.body
    started = await call.client.move_replica(
        _meant(call), body.source, body.target, bodies.pace_of(body.config), timeout=body.timeout
    )
    return bodies.StartedRebalance(id=started)


# --- a node ----------------------------------------------------------------------------------------------------------
def _node(call: Call) -> str:
    """Only by its id: an address would have this node call whoever is there."""
    name, known = call.path["node"], call.client.nodes()
    if name not in known:
        raise invalid("node", name, f"a node of this cluster: {', '.join(known)}")
    return name


async def enter_maintenance(call: Call) -> bodies.Done:
    await call.client.enter_maintenance_mode(_node(call), force=call.body.force, timeout=call.body.timeout)
    return bodies.Done()


async def exit_maintenance(call: Call) -> bodies.Done:
    await call.client.exit_maintenance_mode(_node(call), timeout=call.body.timeout)
    return bodies.Done()


async def drain(call: Call) -> bodies.StartedRebalance:
    config = bodies.pace_of(call.body.config)
    return bodies.StartedRebalance(id=await call.client.drain_node(_node(call), config, timeout=call.body.timeout))


async def undrain(call: Call) -> bodies.Done:
    await call.client.undrain_node(_node(call), timeout=call.body.timeout)
    return bodies.Done()


async def zone(call: Call) -> bodies.Done:
    await call.client.zone_node(_node(call), call.body.zone, timeout=call.body.timeout)
    return bodies.Done()


async def weight(call: Call) -> bodies.Done:
    await call.client.weigh_node(_node(call), call.body.weight, timeout=call.body.timeout)
    return bodies.Done()


async def replace_node(call: Call) -> bodies.Replacing:
    """Whose time is over before all is moved is told so; the moves go on, and the same call waits for them."""
    body: bodies.ReplaceNode = call.body
    old, config = _node(call), bodies.pace_of(body.config)
    if body.wait:
        return bodies.Replacing(
            id=await call.client.replace_node(old, body.by, config=config, timeout=body.timeout), done=True
        )
    id_ = await call.client.start_replacement(old, body.by, config, timeout=body.timeout)
    return bodies.Replacing(id=id_, done=id_ is None)


async def remove_node(call: Call) -> bodies.Done:
    await call.client.remove_node(_node(call), timeout=call.body.timeout)
    return bodies.Done()


# --- rebalancing -----------------------------------------------------------------------------------------------------
async def stats(call: Call) -> RebalanceStats:
    return await call.client.get_stats(timeout=call.body.timeout)


async def plan(call: Call) -> bodies.PlanView:
    body: bodies.PlanRebalance = call.body
    found = await call.client.plan_rebalance(bodies.wished(body.wish), timeout=body.timeout)
    return bodies.PlanView(
        moves=[move.in_words() for move in found.moves],
        details=[
            bodies.PlannedMove(
                type=str(move.__struct_config__.tag),
                shards=sorted(group - 1 for group in move.groups),
                documents=move.documents,
                bytes=move.bytes,
            )
            for move in found.moves
        ],
        documents=found.documents,
        bytes=found.bytes,
        ratio=found.ratio,
        seconds=expected_seconds(found.moves, bodies.pace_of(body.config) or RebalanceConfig(), found.rates),
        unmet=list(found.unmet),
        waiting=list(found.waiting),
        beyond_help=list(found.beyond_help),
        besides=list(found.besides),
        before=found.before,
        after=found.after,
        least_bytes=found.least,
    )


async def start_rebalance(call: Call) -> bodies.StartedRebalance:
    body: bodies.StartRebalance = call.body
    started = await call.client.start_rebalance(
        bodies.pace_of(body.config), wish=bodies.wished(body.wish), timeout=body.timeout
    )
    return bodies.StartedRebalance(id=started)


async def progress(call: Call) -> bodies.ProgressView:
    return bodies.ProgressView(progress=await call.client.rebalance_progress(call.body.id, timeout=call.body.timeout))


async def set_replication_factor(call: Call) -> bodies.Replicating:
    body: bodies.SetReplication = call.body
    id_ = await call.client.set_replication_factor(body.replicas, bodies.pace_of(body.config), timeout=body.timeout)
    return bodies.Replicating(id=id_)


async def pause_rebalance(call: Call) -> bodies.Done:
    await call.client.pause_rebalance(call.body.id, timeout=call.body.timeout)
    return bodies.Done()


async def resume_rebalance(call: Call) -> bodies.Done:
    await call.client.resume_rebalance(call.body.id, timeout=call.body.timeout)
    return bodies.Done()


async def cancel_rebalance(call: Call) -> bodies.Done:
    await call.client.cancel_rebalance(call.body.id, timeout=call.body.timeout)
    return bodies.Done()
