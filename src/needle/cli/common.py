"""What the commands share: options, output, running a coroutine against a cluster, and how errors are shown.

The only module of the CLI that constructs a client. Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import needle
from needle.base.config import parse_address
from needle.base.errors import NeedleError
from needle.base.model import RaftStatus
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.connecting import DEFAULT_CLUSTER_ID, Credentials, check_key, check_reachable, check_tls, connected
from needle.routing.loading import ROUTERS_VARIABLE, load_routers, named_routers

T = TypeVar("T")

DEFAULT_CLUSTER = "127.0.0.1:5001,127.0.0.1:5002,127.0.0.1:5003"

Cluster = Annotated[
    str,
    typer.Option("--cluster", envvar="NEEDLE_CLUSTER", help="Addresses of nodes, host:port, separated by commas."),
]
Fields = Annotated[str | None, typer.Option("--fields", help="Paths of the metadata to show, separated by commas.")]
Slice = Annotated[
    str | None, typer.Option("--slice", metavar="I/N", help="Only this one of N shares of the ids, such as 0/4.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Collection = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds to wait for the answer.")]

PIPE_WIDTH = 160
RETRY_SECONDS = 1.0


def standard_output(*, markup: bool) -> Console:
    """For a pipe or a file as wide as tables need it: what is cut off there nobody can see by a wider window."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, markup=markup, emoji=False, width=width)


console = standard_output(markup=False)
notes = Console(stderr=True, highlight=False, emoji=False)

ADVICE = {
    "no_quorum": "a majority of the nodes must run; `needle status` shows which are down, and what else is wrong",
    "not_leader": "an election is under way; try again in a second",
    "connection_lost": "check that it runs, and --cluster (or NEEDLE_CLUSTER); `needle demo --keep` starts some nodes",
    "deadline_exceeded": "`needle status` shows what is missing; commands that have --timeout can wait longer",
    "unavailable": "`needle status` shows what is wrong",
    "overloaded": "send less at once and try again",
    "too_many_requests": "wait, or have an admin raise the key's limits: `needle keys limit`",
    "in_maintenance": "`needle maintenance exit` brings the node back",
    "outcome_unknown": "`needle get` tells whether the write took effect; repeating an insert is harmless",
    "collection_not_found": "`needle collections` lists them, `needle collections create` makes one",
    "collection_exists": "choose another name, or drop it first",
    "unauthenticated": "set NEEDLE_API_KEY; an admin makes a key with `needle keys create` (docs/security.md)",
    "forbidden": "ask with a key of that role, or for that collection; `needle keys list` shows which there are",
    "tls_failed": "set NEEDLE_TLS_CA to the file of the cluster's authority, or leave it out; a node whose certificate "
    "has expired takes another one without a restart (docs/security.md)",
    "wrong_cluster": "--cluster points at the nodes of another cluster, or NEEDLE_CLUSTER_ID is not theirs",
    "unsupported_format": "docs/data-on-disk.md says which files belong to which node and release",
    "corrupt_log": "docs/troubleshooting.md, 'A node does not start', says how to replace a node's data",
    "disk_failed": "the disk refused a write: replace it; docs/troubleshooting.md says how a node is rebuilt",
    "internal": "please report this with the message",
}


def show_error(error: NeedleError) -> None:
    """One line: what happened, its code, what to do."""
    notes.print(f"[bold red]error[/] \\[{error.code}]", end=" ")
    advice = ADVICE.get(error.code)
    notes.print(error.message, markup=False, end="", soft_wrap=True)
    notes.print(f" - {advice}" if advice else "", markup=False, soft_wrap=True)


def addresses(cluster: str) -> list[str]:
    """The addresses in "host:port,host:port". Raises ConfigError naming the part that is not one."""
    parts = [part.strip() for part in cluster.split(",") if part.strip()]
    for part in parts or [cluster]:
        parse_address("--cluster", part)
    return parts


def credentials() -> Credentials:
    """What a command shows: the API key of --api-key or NEEDLE_API_KEY, or, on a machine of the cluster, the secret in
    NEEDLE_CLUSTER_SECRET; nothing if there is neither."""
    shown = check_key(None)._replace(dial=check_tls(None))
    secret = os.environ.get("NEEDLE_CLUSTER_SECRET", "")
    return shown if shown.key or not secret else Credentials(secrets=(secret,), dial=shown.dial)


def run(
    cluster: str,
    work: Callable[[needle.Client], Awaitable[T]],
    *,
    shown: Credentials | None = None,
    cluster_id: str = "",
    patient: bool = False,
) -> T:
    """Run `work` with a client of the cluster and return its result. shown, cluster_id: instead of what the environment
    says. patient: wait, and say so, while no node answers. Raises ConnectionLost at once, unless patient, if every node
    refuses connections."""

    load_routers(named_routers(os.environ), ROUTERS_VARIABLE)

    async def called() -> T:
        of = cluster_id or os.environ.get("NEEDLE_CLUSTER_ID", DEFAULT_CLUSTER_ID)
        known, showing = addresses(cluster), credentials() if shown is None else shown

        async def reached() -> needle.Client:
            await check_reachable(known, of, showing)
            return await connected(known, of, BATCH_BYTES_MAX, showing)

        async with await (_patiently(reached) if patient else reached()) as client:
            return await work(client)

    return asyncio.run(called())


async def _patiently(reached: Callable[[], Awaitable[needle.Client]]) -> needle.Client:
    """A client, as soon as a node answers. Raises what will not be otherwise later."""
    said = ""
    while True:
        try:
            return await reached()
        except NeedleError as error:
            if not error.retryable:
                raise
            if error.code != said:
                notes.print(f"waiting for the cluster: {error.message}", markup=False)
            said = error.code
        await asyncio.sleep(RETRY_SECONDS)


def filter_option(option: str, text: str | None, example: str = '{"lang": "en"}') -> dict[str, Any] | None:
    """A filter as its dict form, or another object of JSON; None if it was not given."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{option} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{option} must be an object such as {example}")
    return value


def paths_option(text: str | None) -> list[str] | None:
    """The paths of `Fields`; None if they were not given."""
    return None if text is None else [path.strip() for path in text.split(",") if path.strip()]


def slice_option(text: str | None) -> tuple[int, int]:
    """The share of `Slice`; all if it was not given."""
    which, _, of = (text or "0/1").partition("/")
    if not (which.isdecimal() and of.isdecimal() and int(which) < int(of)):
        raise typer.BadParameter(f"--slice is I/N with I from 0 to N - 1, such as 0/4, not {text}")
    return int(which), int(of)


def table(*columns: str) -> Table:
    """A table without lines. Where the terminal is narrow cells are wrapped, the widest first: nothing is cut off."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def as_json(value: object) -> Any:
    """`value` as what json.dumps takes: structs as objects, arrays as lists."""
    return msgspec.to_builtins(value, enc_hook=_encode_array)


def _encode_array(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    # What msgspec asks of a hook for what it cannot encode.
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(as_json(value), ensure_ascii=False) + "\n")


_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Text of a document, with control characters as JSON writes them: a terminal would obey them."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def brief(value: object, width: int) -> str:
    """Any JSON value as one line of at most `width` characters."""
    text = value if isinstance(value, str) else json.dumps(as_json(value), ensure_ascii=False)
    text = visible(" ".join(text.split()))
    return text if len(text) <= width else text[: width - 3] + "..."


def state_of(status: RaftStatus) -> Text:
    """What a replica is, and what is wrong with it."""
    if status.damage:
        return Text(f"{status.state}, damaged", style="bold red")
    state = f"{status.state}, maintenance" if status.maintenance else status.state
    return Text(state, style="bold green" if status.state == "Leader" else "")
