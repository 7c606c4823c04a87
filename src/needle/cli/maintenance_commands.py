"""`needle maintenance enter | exit | status`: nodes that lead nothing while somebody works on them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

import needle
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidArgument,
    NeedleError,
    NoQuorum,
    Unauthenticated,
    Unavailable,
)
from needle.base.ids import NodeId
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, console, notes, print_json, run, table
from needle.routing.topology import NodeInfo, NodeState, Topology
from needle.server.files import replace_file

LOOK_SECONDS = 0.2
CATALOG_SECONDS = 5.0
Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's id, as in `needle status`.")]
EnterNote = Annotated[
    Path | None,
    typer.Option(
        "--note",
        help="A file that is written: which maintenance this begins. A node that is in one already is left as it is.",
    ),
]
ExitNote = Annotated[
    Path | None,
    typer.Option(
        "--note",
        help="End only the maintenance that `enter` noted in this file, and delete it; nothing if there is no file.",
    ),
]


DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what the node leads and what would change. Exit code 1 if it is refused."),
]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What `enter` wrote down. after: the catalog's index before it began. since: of the node's maintenance; 0 while
    that is not known to have begun."""

    node: NodeId
    after: int
    since: int = 0

    def tells_of(self, info: NodeInfo) -> bool:
        """Whether this is the maintenance that the node is in."""
        return info.maintenance > self.after and self.since in (0, info.maintenance)


class Resting(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and what it leads. answers: whether it does; then `leads` is what it says itself."""

    node: NodeId
    maintenance: bool
    answers: bool
    leads: list[int]


class Before(Resting, frozen=True, kw_only=True):
    """What --dry-run shows. changes: whether the command would change the node's state."""

    changes: bool


def enter(
    node: Node,
    note: EnterNote = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also if a shard or the catalog needs this node, for others do not answer or are behind."
        ),
    ] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Move leadership off a node and keep it off, also after its restart; the node still replicates and votes."""
    if dry_run:
        _show_before(run(cluster, lambda client: _before(client, node, True, timeout, force=force)), json)
        return

    async def work(client: needle.Client) -> bool:
        if note is None:
            await client.enter_maintenance_mode(node, force=force, timeout=timeout)
            return True
        ends = time.monotonic() + timeout  # of all three calls: who waits for this has a bound of its own
        before, info = await _known(client, node, timeout)
        if info.maintenance:
            return False
        begun = Note(node=node, after=before.version)
        # Before: if this process dies, the maintenance is known to be its own.
        replace_file(str(note), msgspec.json.encode(begun))
        try:
            await client.enter_maintenance_mode(node, force=force, timeout=_left(ends))
        except (Forbidden, InvalidArgument, Unauthenticated):  # what somebody begins later is not this one
            note.unlink()
            raise
        _, info = await _known(client, node, _left(ends))
        replace_file(str(note), msgspec.json.encode(msgspec.structs.replace(begun, since=info.maintenance)))
        return True

    begun = run(cluster, work)
    if json:
        print_json({"node": node, "begun": begun})
    if begun:
        notes.print(f"{node} is in maintenance; `needle maintenance exit {node}` ends it", markup=False)
    else:
        notes.print(f"{node} is in maintenance already, which somebody else began; nothing is noted", markup=False)


def exit_(
    node: Node,
    note: ExitNote = None,
    dry_run: DryRun = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Bring a node back after maintenance; waits until it answers and has caught up."""
    if dry_run:
        noted = None if note is None else note.exists() and _read(note, node)
        _show_before(run(cluster, lambda client: _before(client, node, False, timeout, noted)), json)
        return
    if note is not None and not note.exists():
        if json:
            print_json({"node": node, "ended": False})
        notes.print(f"{note} is not there: no maintenance of {node} is to be ended by it", markup=False, soft_wrap=True)
        return

    async def work(client: needle.Client) -> bool:
        if note is not None and not await _is_noted(client, node, _read(note, node), timeout):
            return False
        await _exit(client, node, timeout)
        return True

    ended = run(cluster, work)
    if note is not None:
        note.unlink()
    if json:
        print_json({"node": node, "ended": ended})
    said = f"{node} is back" if ended else f"{node} is as it was: the maintenance noted in {note} is over"
    notes.print(said, markup=False, soft_wrap=True)


async def _before(
    client: needle.Client,
    node: str,
    on: bool,
    timeout: float,
    noted: Note | Literal[False] | None = None,
    force: bool = False,
) -> Before:
    """What a command would begin with. noted: what its note says; False without the file that it names. Raises what it
    would be refused with."""
    _, info = await _known(client, node, timeout)
    mine = noted is None or (noted and await _is_noted(client, node, noted, timeout))
    (resting,) = await _look(client, node, timeout)
    if on:
        await client.check_maintenance(node, force=force, timeout=timeout)
    elif mine and not resting.answers:
        raise Unavailable(f"{node} does not answer: the command would wait until it does, as long as --timeout says")
    return Before(
        node=node,
        maintenance=resting.maintenance,
        answers=resting.answers,
        leads=resting.leads,
        changes=bool(mine) and on != bool(info.maintenance),
    )


def _show_before(found: Before, json: bool) -> None:
    if json:
        print_json(found)
        return
    state = "in maintenance" if found.maintenance else "in service"
    leads = ", ".join(f"shard {shard}" for shard in found.leads) or "no shard"
    told = (
        f"{found.node} is {state} and leads {leads}" if found.answers else f"{found.node} is {state}, does not answer"
    )
    then = "nothing would change"
    if found.changes:
        then = "it would be back in service" if found.maintenance else "others would take over what it leads"
    console.print(f"{told}; {then}", soft_wrap=True)


async def _exit(client: needle.Client, node: str, timeout: float) -> None:
    deadline, said = time.monotonic() + timeout, ""
    while True:
        try:
            return await client.exit_maintenance_mode(node, timeout=max(0.01, deadline - time.monotonic()))
        except Unavailable as error:  # it was started a moment ago
            if time.monotonic() + LOOK_SECONDS > deadline:
                raise
            if error.message != said:
                notes.print(f"{error.message}; waiting", markup=False, soft_wrap=True)
            said = error.message
            await asyncio.sleep(LOOK_SECONDS)


async def _known(client: needle.Client, node: str, timeout: float) -> tuple[Topology, NodeInfo]:
    """What the catalog says last, and of this node. Raises InvalidArgument for one that it does not know."""
    now = await client.refresh_topology(confirmed=True, timeout=timeout)
    info = now.node(node)
    if info is None or info.state is NodeState.REMOVED:
        raise _unknown(node, now)
    return now, info


async def _is_noted(client: needle.Client, node: str, note: Note, timeout: float) -> bool:
    """Whether the node is in the maintenance that was noted; also of one that was removed, it is in none. While the
    catalog has no leader what nodes know counts if they know of it: perhaps only a node in maintenance can become one.
    That they do not says nothing: they may have heard of it too long ago."""
    try:
        now = await client.refresh_topology(confirmed=True, timeout=min(timeout, CATALOG_SECONDS))
    except (NoQuorum, DeadlineExceeded, Unavailable):
        known = client.topology().node(node)
        if known is None or not note.tells_of(known):
            raise
        return True
    info = now.node(node)
    return info is not None and info.state is not NodeState.REMOVED and note.tells_of(info)


def _left(ends: float) -> float:
    return max(0.01, ends - time.monotonic())


def _unknown(node: str | None, now: Topology) -> InvalidArgument:
    return InvalidArgument(f"{node} is no node of this cluster; nodes are {', '.join(now.addresses())}", field="node")


def _read(path: Path, node: str) -> Note:
    """Raises InvalidArgument for a file that is no note about this node."""
    try:
        note = msgspec.json.decode(path.read_bytes(), type=Note)
    except OSError as error:
        raise InvalidArgument(f"--note {path} cannot be read: {error.strerror}", field="note") from error
    except DECODE_ERRORS as error:
        allowed = "a file that `needle maintenance enter --note` wrote"
        raise InvalidArgument(f"--note {path} is not {allowed}: {error}", field="note") from error
    if note.node != node:
        raise InvalidArgument(f"--note {path} is about {note.node}, not {node}", field="note")
    return note


def status(
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="Only this node; default: all.")] = None,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 5.0,
    json: Json = False,
) -> None:
    """Show which nodes are in maintenance, by the catalog's last word, and which shards each still leads."""
    found = run(cluster, lambda client: _look(client, node, timeout))
    if json:
        print_json(found)
        return
    rows = table("node", "state", "leads")
    for one in found:
        state = "in maintenance" if one.maintenance else "in service"
        leads = ", ".join(map(str, one.leads)) or "none"
        rows.add_row(one.node, state if one.answers else f"{state}, does not answer", leads if one.answers else "?")
    console.print(rows)


async def _look(client: needle.Client, node: str | None, timeout: float) -> list[Resting]:
    now = await client.refresh_topology(confirmed=True, timeout=timeout)
    nodes = [info for info in now.nodes if info.state is not NodeState.REMOVED and node in (None, info.id)]
    if not nodes:
        raise _unknown(node, now)
    replicas = await client.cluster_status(timeout=timeout)

    async def one(info: NodeInfo) -> Resting:
        try:
            await client.describe_node(info.id, timeout=timeout)
        except NeedleError:
            return Resting(node=info.id, maintenance=bool(info.maintenance), answers=False, leads=[])
        mine = [r for r in replicas if r.node == info.id and r.status is not None and r.status.state == "Leader"]
        return Resting(
            node=info.id, maintenance=bool(info.maintenance), answers=True, leads=[replica.shard for replica in mine]
        )

    return list(await asyncio.gather(*map(one, nodes)))
