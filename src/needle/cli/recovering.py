"""What `needle recover` does and says: one surviving directory becomes a cluster, when a majority is lost for good."""

from __future__ import annotations

import asyncio
import secrets
import time

import typer

from needle.base.config import parse_address
from needle.base.errors import InvalidArgument
from needle.base.ids import CATALOG_GROUP
from needle.cli.common import console, credentials, notes
from needle.connecting import system_caller
from needle.routing.topology import Topology
from needle.server.files import hold, load_addresses
from needle.server.recovery.others import alive
from needle.server.recovery.plan import Plan, Survey, plan_of
from needle.server.recovery.recover import begin, carry_out, load_plan, node_of, survey

DRAWS, DRAW_BITS = 4, 61


def recover(
    data_dir: str, cluster_id: str, also: list[str], no_node: list[str], begin_empty: bool, dry_run: bool, yes: bool
) -> None:
    """The command, with its options."""
    node_of(data_dir)
    release = hold(data_dir)
    try:
        plan = load_plan(data_dir)
        if plan is None:
            plan = _decide(data_dir, cluster_id, also, no_node, begin_empty, dry_run, yes)
            if plan is None:
                return
            begin(data_dir, plan)
        elif cluster_id and cluster_id != plan.cluster_id:
            raise InvalidArgument(
                f"cluster_id = {cluster_id[:80]!r} is not allowed: {plan.cluster_id!r} is, or none, for the recovery "
                "that was begun here is into that cluster, and goes on",
                field="cluster_id",
            )
        elif dry_run:
            console.print(f"a recovery was begun here, into the cluster {plan.cluster_id}: run it without --dry-run")
            return
        made = carry_out(data_dir, plan)
    finally:
        release()
    _tell(made, plan)


def _decide(
    data_dir: str, cluster_id: str, also: list[str], no_node: list[str], begin_empty: bool, dry_run: bool, yes: bool
) -> Plan | None:
    """What is to be done; None if nothing is. Raises InvalidArgument."""
    found = survey(data_dir)
    for one in found.found:
        console.print(one.in_words(), soft_wrap=True)
    for shard, why in sorted(found.emptied.items()):
        console.print(f"shard {shard}: {why}: its documents are lost, and it would begin empty", soft_wrap=True)
    if all(one.group != CATALOG_GROUP for one in found.found):
        version = found.topology.version
        console.print(f"the catalog: no replica is here; as this node was told last, at version {version}")
    living = _ask(data_dir, found, also, no_node)
    if dry_run:
        return None
    found.check()
    if living:
        raise InvalidArgument(
            f"{'; '.join(f'{at}: {who}' for at, who in living.items())}. While others live nothing is recovered: if "
            "this node and they are a majority, start it, and the cluster goes on without loss. If they are not, stop "
            "them, compare by --dry-run which of the directories has most, recover that one, and no other"
        )
    if found.emptied and not begin_empty:
        shards = ", ".join(map(str, sorted(found.emptied)))
        raise InvalidArgument(
            f"node {found.node} has nothing of shards {shards}: recover a node that has them, or say --begin-empty, "
            "and all their documents are gone"
        )
    draws = [secrets.randbits(DRAW_BITS) for _ in range(DRAWS)]
    plan = plan_of(found, cluster_id, time.time_ns() // 1000, draws)
    _warn(found, plan)
    if not yes and typer.prompt(f"Type {found.node} to go on", err=True) != found.node:
        raise InvalidArgument(f"{found.node!r} was not typed: nothing was changed")
    return plan


def _ask(data_dir: str, found: Survey, also: list[str], no_node: list[str]) -> dict[str, str]:
    """Who answers where another node was, or may be."""
    for address in also:
        parse_address("--also", address)
    for address in no_node:
        parse_address("--no-node", address)
    listed = {**found.others(), **{n: a for n, a in load_addresses(data_dir).items() if n != found.node}}
    own = found.topology.address_of(found.node)
    addresses = [*listed.values(), *found.others().values(), *also, *([own] if own else [])]

    async def ask() -> tuple[dict[str, str], dict[str, str]]:
        caller = system_caller(found.cluster_id, credentials())
        try:
            return await alive(caller, found.node, addresses, no_node)
        finally:
            await caller.close()

    living, silent = asyncio.run(ask())
    for at, why in {**living, **silent}.items():
        console.print(f"{at}: {why}", soft_wrap=True)
    return living


def _warn(found: Survey, plan: Plan) -> None:
    others = ", ".join(sorted(found.others()))
    for line in (
        f"Node {found.node} becomes the cluster {plan.cluster_id!r}, alone.",
        "Writes that were acknowledged and that it has not got (behind the last index that it knows to be on a "
        "majority) are gone. How many there were cannot be known. What it has behind that is kept, so writes that were "
        "answered with an error may be there.",
        f"Never start {others} again as they are: they are removed from the new cluster for good, and it does not hear "
        "them. If one of them may still be mended, do that instead.",
        "Copy the directory first.",
    ):
        notes.print(line, markup=False, soft_wrap=True)


def _tell(made: Topology, plan: Plan) -> None:
    notes.print(made.recovered[-1].in_words(), markup=False, soft_wrap=True)
    notes.print(
        f'In the settings of {plan.node} write cluster_id = "{plan.cluster_id}", and take the other nodes out of '
        "cluster_nodes and join; then start it. Give clients the same cluster_id. New nodes join it with empty "
        "directories and new names.",
        markup=False,
        soft_wrap=True,
    )
