"""`needle node add | drain | remove | replace`: which nodes a cluster has.

Each prints what it would move with --dry-run. What was decided goes on without who watches, and each may be repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

import needle
from needle.base.config import refuse
from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, RebalanceEnded, Unavailable
from needle.base.ids import NodeId
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, notes, print_json, run
from needle.cli.node_list import without_shards
from needle.cli.rebalance_commands import (
    Batch,
    DryRun,
    Moves,
    NoWait,
    Throttle,
    carry_out,
    followed,
    not_emptied,
    pace,
    show_moves,
    show_plan,
    show_progress,
)
from needle.client.everywhere import without
from needle.client.replacing import not_replaced, replaced_in_words, took_over
from needle.routing.copy_rates import MEASURED_ELSEWHERE, CopyRates
from needle.routing.jobs import JobState, Progress, RebalanceConfig, check_over
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Plan, Replacement, Wish
from needle.routing.topology import NodeState, Topology

T = TypeVar("T")

LOOK_SECONDS = 0.1
ASK_SECONDS = 5.0
JOIN_SECONDS = 20.0
"""So long a node that takes the place of another one may take to join: it was started a moment ago."""
AT_ONCE = RebalanceConfig(max_concurrent_moves=100, throttle_rate=0.0)
"""Of what moves without a rebalance."""
Wait = Annotated[float, typer.Option("--timeout", min=1, help="Seconds for the whole change.")]


def add(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its id. It runs, and was started with --join.")],
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Have it hold every shard and the catalog, beside those that do.")
    ] = False,
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 600.0,
    json: Json = False,
) -> None:
    """Wait until a node has joined and answers, then bring it its share of the replicas, and show how far that is."""
    deadline = time.monotonic() + timeout
    run(cluster, lambda client: _joined(client, node, timeout))
    if everywhere:

        async def work(client: needle.Client) -> None:
            if dry_run:
                show_moves(await client.plan_everywhere(node), json, AT_ONCE)
            else:
                shards = await client.hold_everywhere(node, timeout=max(1.0, deadline - time.monotonic()))
                notes.print(f"{node} holds every shard", markup=False)
                if json:
                    print_json({"node": node, "shards": shards, "catalog": True})

        run(cluster, work)
        return
    config = pace(moves, batch, throttle)

    async def start(client: needle.Client) -> int:
        return await client.start_rebalance(config, timeout=min(timeout, 10.0))

    carry_out(cluster, lambda client: client.plan_rebalance(), start, config, dry_run, no_wait, json, deadline=deadline)
    if not dry_run and not no_wait:
        now = run(cluster, _confirmed)
        if not now.hosted_by(node):
            notes.print(without_shards(now, [node]), markup=False, soft_wrap=True)


async def _joined(client: needle.Client, node: NodeId, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    now = await _until_answered(lambda: _confirmed(client), deadline)
    if node not in now.addresses() and now.node(node) is None:
        nodes = ", ".join(now.addresses())
        notes.print(f"{node} has not joined yet (nodes are {nodes}); waiting up to {timeout:g} s", markup=False)
    while node not in now.addresses():
        if now.node(node) is not None:
            raise InvalidArgument(f"{node} was removed from this cluster, and its name is not used again")
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"{node} has not joined this cluster within {timeout:g} s, so nothing was changed; start it with "
                f"--join and the address of a node; nodes are {', '.join(now.addresses())}"
            )
        await asyncio.sleep(LOOK_SECONDS)
        now = await _until_answered(lambda: _confirmed(client), deadline)
    await _until_answered(lambda: client.describe_node(node, timeout=ASK_SECONDS), deadline)


async def _until_answered(ask: Callable[[], Awaitable[T]], deadline: float) -> T:
    """What is asked, again until it is answered or the time is up. Raises what will not be otherwise later."""
    while True:
        try:
            return await ask()
        except NeedleError as error:
            if time.monotonic() > deadline or not error.retryable:
                raise
        await asyncio.sleep(LOOK_SECONDS)


def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's id, as in `needle node list`.")],
    undo: Annotated[bool, typer.Option("--undo", help="Use the node again.")] = False,
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 3600.0,
    json: Json = False,
) -> None:
    """Have other nodes take over all that a node holds, and give it nothing new; then it can be removed. Repeat it to
    go on watching."""
    config, wish = pace(moves, batch, throttle), Wish(drain=(node,), balance=False)
    deadline, seconds = time.monotonic() + timeout, min(timeout, 10.0)
    if undo and dry_run:
        raise refuse("--undo", "with --dry-run", "one of them: it moves nothing, so there is no plan to print")
    if undo:
        run(cluster, lambda client: client.undrain_node(node, timeout=seconds))
        if json:
            print_json({"node": node, "state": NodeState.ACTIVE})
        notes.print(f"{node} is used again; `needle node add {node}` brings it replicas", markup=False)
        return

    async def start(client: needle.Client) -> int:
        going_on = _emptying_now(await _confirmed(client), node)
        return going_on or await client.drain_node(node, config, timeout=seconds)

    carry_out(
        cluster,
        lambda client: client.plan_rebalance(wish, timeout=seconds),
        start,
        config,
        dry_run,
        no_wait,
        json,
        not_emptied,
        deadline,
        lambda now: _emptying_now(now, node) is not None,
    )


def remove(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's id; it may be dead.")],
    fewer_replicas: Annotated[
        bool,
        typer.Option("--fewer-replicas", help="Do without its replicas, where no other node can take them."),
    ] = False,
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 600.0,
    json: Json = False,
) -> None:
    """Take a node out of the cluster forever, dead or alive: other nodes take over what it holds, then it is forgotten.
    Its name is not used again. Repeat it if it was interrupted."""
    config = pace(moves, batch, throttle)

    async def work(client: needle.Client) -> None:
        deadline, now = time.monotonic() + timeout, await _confirmed(client)
        known = now.node(node)
        if known is None:
            raise InvalidArgument(f"{node} is no node of this cluster; nodes are {', '.join(now.addresses())}")
        holds = known.state is not NodeState.REMOVED and (now.hosted_by(node) or node in now.catalog)
        if dry_run and fewer_replicas:
            found = await client.plan_fewer_replicas(node) if holds else []
            show_moves(found, json, AT_ONCE, f"then {node} is forgotten")
            return
        if dry_run:
            plan = await client.plan_rebalance(await without(client, node))
            show_plan(plan, json, config)
            if holds and _emptying_now(now, node) is None:
                check_over(now.rebalance)
                _check_taken(node, plan)
            return
        if holds and fewer_replicas:
            await client.hold_fewer_replicas(node, timeout=max(1.0, deadline - time.monotonic()))
        elif holds:
            id_ = _emptying_now(now, node)
            if id_ is None:
                check_over(now.rebalance)  # what it moves would be told as what no other node can take
                id_ = await _emptying(client, node, config)
            ended = await followed(client, id_, False, json, deadline)
            if ended.state is not JobState.DONE:
                why = f"rebalance {id_} is {ended.state}: {ended.why or 'somebody ended it'}"
                raise RebalanceEnded(why, id=id_, state=ended.state.value)
        await client.remove_node(node, timeout=max(1.0, deadline - time.monotonic()))

    run(cluster, work)
    if dry_run:
        return
    if json:
        print_json({"removed": node})
    notes.print(f"{node} is no longer a node of this cluster; stop it and delete its data directory", markup=False)


def _emptying_now(now: Topology, node: NodeId) -> int | None:
    """The rebalance that has others take over what a node holds, if one is under way."""
    known, job = now.node(node), now.rebalance
    if job is None or job.over or known is None:
        return None
    to_go = known.state is NodeState.DRAINING and not job.wish.by_hand
    return job.id if to_go or node in job.wish.lost else None


def _check_taken(node: NodeId, plan: Plan) -> None:
    """Raises InvalidArgument for what can never be, Unavailable for what cannot be now."""
    if plan.beyond_help:
        raise InvalidArgument(f"{node} cannot be removed: {'; '.join(plan.beyond_help)}", field="node")
    if plan.unmet:
        why = "; ".join(plan.unmet)
        raise Unavailable(
            f"{node} holds what no other node can take: {why}. --fewer-replicas does without, "
            "where its shards have leaders"
        )


async def _emptying(client: needle.Client, node: NodeId, config: RebalanceConfig) -> int:
    """Have others take over what a node holds; the rebalance that does. Raises as `_check_taken`."""
    wish = await without(client, node)
    _check_taken(node, await client.plan_rebalance(wish))
    return await (client.start_rebalance(config, wish=wish) if wish.lost else client.drain_node(node, config))


def replace(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The node that goes; it may be dead.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The node that takes its place. It runs, and has joined.")],
    dry_run: DryRun = False,
    moves: Moves = 10,
    batch: Batch = 1000,
    throttle: Throttle = 0.1,
    no_wait: NoWait = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Wait = 3600.0,
    json: Json = False,
) -> None:
    """Put all that one node holds on another one, then forget the first. The cluster goes on with it without who asked;
    `needle rebalance` shows how far it is, pauses and cancels it, and the same command goes on watching."""
    config, deadline = pace(moves, batch, throttle), time.monotonic() + timeout
    run(cluster, lambda client: _joined(client, new, min(timeout, JOIN_SECONDS)))
    run(cluster, lambda client: _check_order(client, old, new))
    if dry_run:
        moved, rates = run(cluster, lambda client: _planned_replacement(client, old, new))
        then = f"then {old} is forgotten" if moved else f"nothing has to move to {new}; {old} is forgotten"
        show_moves(moved, json, config, then, rates)
        return

    async def work(client: needle.Client) -> tuple[Progress, Topology] | None:
        id_ = await client.start_replacement(old, new, config, timeout=min(timeout, 10.0))
        if id_ is None:
            notes.print(f"{old} was removed from this cluster before; nothing was changed", markup=False)
            return None
        if not json:
            notes.print(f"rebalance {id_} has begun; it goes on if you stop watching", markup=False)
        found = await followed(client, id_, no_wait, json, deadline)
        return found, await _confirmed(client)

    by, told = None, ""  # which node took its place before is not known
    if (ended := run(cluster, work)) is not None:
        found, now = ended
        if not found.is_complete:
            show_progress(found, json)
            return
        if found.state is not JobState.DONE:
            raise not_replaced(found, old)
        by = new if took_over(now, found.id, new) else None
        told = f"{replaced_in_words(now, found.id, old, new)}\n"
    if json:
        print_json({"removed": old, "replaced_by": by})
    notes.print(f"{told}stop {old} and delete its data directory", markup=False, soft_wrap=True)


async def _check_order(client: needle.Client, old: NodeId, new: NodeId) -> None:
    """Raises InvalidArgument if the two are meant the other way round, as far as one can tell: what is asked for would
    forget the new node for good, and keep the old one."""
    now = await _confirmed(client)
    known = now.node(old)
    holds = {node: bool(now.hosted_by(node)) or node in now.catalog for node in (old, new)}
    if known is None or known.state is not NodeState.ACTIVE or holds[old] or not holds[new]:
        return
    try:
        who = await client.describe_node(old, timeout=ASK_SECONDS)
    except NeedleError:  # it is dead, and the cluster has healed
        return
    if not who.lost:
        raise InvalidArgument(
            f"{old} runs and holds nothing, and {new} holds something: `needle node replace {new} {old}` puts that on "
            f"{old}, `needle node remove {old}` has the cluster forget {old}",
            field="OLD",
        )


async def _planned_replacement(client: needle.Client, old: NodeId, new: NodeId) -> tuple[list[MoveReplicas], CopyRates]:
    """What would move, and how fast this cluster's latest moves copied."""
    if not (moved := await client.plan_replacement(old, new)):
        return moved, MEASURED_ELSEWHERE
    return moved, (await client.plan_rebalance(Wish(replace=Replacement(old=old, new=new)))).rates


async def _confirmed(client: needle.Client) -> Topology:
    return await client.refresh_topology(confirmed=True, timeout=ASK_SECONDS)
