"""`needle rolling-restart`: every node again, one at a time, by the operator's own command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from typing import Annotated

import typer

import needle
from needle.base.config import refuse
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.base.ids import NodeId
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, as_json, console, notes, print_json, run, table
from needle.client.restarting import Restart

CHECK_SECONDS = 10.0
STDERR = 2
PLACES = ("{node}", "{address}", "{host}")


def rolling_restart(
    nodes: Annotated[list[str] | None, typer.Argument(metavar="NODE", help="Only these nodes; default: all.")] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--command",
            help="Shell command that restarts a node; {node}, {address}, {host} are its id, host:port and host.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the order and the commands; restart nothing.")
    ] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds for each node.")] = 600.0,
    json: Json = False,
) -> None:
    """Restart the nodes one at a time while the cluster serves: those that lead nothing first, and each only once the
    one before it has everything again.

    A node gives leadership away before it is stopped. It is not restarted while a shard or the catalog would have no
    majority without it. If one does not come back, it stays in maintenance and no other is restarted.
    """
    if command is None and not dry_run:
        raise refuse(
            "--command", "nothing", "a command that restarts a node, such as 'systemctl restart needle@{node}'"
        )
    if command is not None and not any(place in command for place in PLACES):
        raise refuse("--command", command, f"one that says which node: with {', '.join(PLACES)}")
    if dry_run:
        planned = run(cluster, lambda client: client.plan_rolling_restart(nodes or None, timeout=CHECK_SECONDS))
        _show_plan(planned, command, json)
        return

    async def restart(node: NodeId, address: str) -> None:
        await _ran(_filled(command or "", node, address), node, timeout)

    def told(text: str) -> None:
        if not json:
            notes.print(text, markup=False, soft_wrap=True)

    async def work(client: needle.Client) -> list[Restart]:
        return await client.rolling_restart(restart, nodes=nodes or None, told=told, timeout=timeout)

    done = run(cluster, work)
    if json:
        print_json({"restarted": as_json(done), "seconds": sum(one.seconds for one in done)})
        return
    console.print(f"{len(done)} nodes restarted, {sum(one.seconds for one in done):.1f} s in all")


def _show_plan(planned: list[Restart], command: str | None, json: bool) -> None:
    """Raises Unavailable if a node could not be restarted now."""
    commands = [_filled(command or "", one.node, one.address) for one in planned]
    if json:
        print_json([{**as_json(one), "command": text} for one, text in zip(planned, commands, strict=True)])
    else:
        rows = table("node", "leads", "command")
        for one, text in zip(planned, commands, strict=True):
            rows.add_row(one.node, ", ".join(one.leads) or "nothing", text)
        console.print(rows)
        seconds = sum(one.seconds for one in planned)
        console.print(f"takes about {seconds:.0f} s, if the command restarts a node at once")
    if refused := [f"{one.node}: {one.why_not}" for one in planned if one.why_not]:
        raise Unavailable(f"not possible now: {'; '.join(refused)}")


def _filled(command: str, node: NodeId, address: str) -> str:
    """The command for one node."""
    for place, value in zip(PLACES, (node, address, address.rpartition(":")[0]), strict=True):
        command = command.replace(place, shlex.quote(value))
    return command


async def _ran(command: str, node: NodeId, timeout: float) -> None:
    """Run a command; what it prints goes to standard error. Raises Unavailable if it fails, DeadlineExceeded."""
    process = await asyncio.create_subprocess_shell(
        command, stdin=asyncio.subprocess.DEVNULL, stdout=STDERR, start_new_session=True
    )
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
    except TimeoutError:
        raise DeadlineExceeded(f"{command!r} has not ended after {timeout:g} s; {node} is in maintenance") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        raise Unavailable(
            f"{command!r} has ended with {code}; {node} is in maintenance, and no other node is restarted: once it "
            f"runs, `needle maintenance exit {node}`, then repeat this"
        )
