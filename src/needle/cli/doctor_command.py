"""`needle doctor`: what is not fit in a cluster, and what was measured."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

import needle
from needle.cli.common import DEFAULT_CLUSTER, Cluster, Json, Timeout, as_json, console, print_json, run, table
from needle.client.alerts import CRITICAL
from needle.client.fitness import Diagnosis, Finding, NodeFound


def doctor(
    links: Annotated[bool, typer.Option("--links", help="Show each link, not only the slowest of each node.")] = False,
    cluster: Cluster = DEFAULT_CLUSTER,
    timeout: Timeout = 15.0,
    json: Json = False,
) -> None:
    """Measure links, clocks, disks and machines of all nodes, and say what is not fit. Exit code 1 if something is
    critical. Needs the role admin."""

    async def work(client: needle.Client) -> Diagnosis:
        return await client.doctor(timeout=timeout)

    seen = run(cluster, work)
    if json:
        print_json({**as_json(seen), "critical": seen.critical})
    else:
        console.print(_shown(seen, links))
    if seen.critical:
        raise typer.Exit(1)


def _shown(seen: Diagnosis, links: bool) -> RenderableType:
    rows = table("node", "release", "slowest link", "fsync p50", "p99", "clock rate", "offset", "files", "memory left")
    for node in seen.nodes:
        slowest = max((link.p50 or 0.0 for link in seen.links if link.source == node.node), default=0.0)
        rows.add_row(node.node, node.release, _ms(slowest), _ms(node.fsync_p50), _ms(node.fsync_p99), *_rest(node))
    parts: list[RenderableType] = [rows]
    if links:
        parts.append(_links(seen))
    parts += map(_line, seen.findings)
    return Group(*parts, *(() if seen.findings else (Text("nothing is wrong", style="green"),)))


def _rest(node: NodeFound) -> tuple[str, str, str, str]:
    facts = node.facts
    known = node.clock_rate_error != float("inf")
    return (
        f"{node.clock_rate:+.3%} ±{node.clock_rate_error:.3%}" if known else "?",
        f"{node.clock_offset * 1000:+.1f} ms" if known else "?",
        f"{facts.files:,} of {facts.files_max:,}" if facts.files_max else "?",
        f"{facts.memory_available / facts.memory:.0%}" if facts.memory else "?",
    )


def _links(seen: Diagnosis) -> RenderableType:
    rows = table("from", "to", "p50", "p99")
    for link in seen.links:
        rows.add_row(link.source, link.target, _ms(link.p50), _ms(link.p99))
    return rows


def _line(finding: Finding) -> Text:
    style = "bold red" if finding.severity == CRITICAL else "yellow"
    allowed = f"; allowed: {finding.allowed}" if finding.allowed else ""
    told = f" {finding}{allowed} - {finding.action} ({finding.runbook})"
    return Text.assemble((finding.severity.upper(), style), told)


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1000:.2f} ms"
