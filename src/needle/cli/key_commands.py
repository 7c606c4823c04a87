"""`needle keys`: create, list, revoke.

With --config they show the cluster's secret, as a node does, and need no key: so that the first one can be made, and
the way back in be found by whoever may read the settings of a node.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.markup import escape

import needle
from needle.base.access import Role
from needle.base.errors import ConfigError
from needle.base.rates import WHAT
from needle.cli.common import DEFAULT_CLUSTER, Json, console, filter_option, notes, print_json, run, table
from needle.client import ApiKey, NewApiKey
from needle.connecting import Credentials
from needle.server.certificates import Certificates
from needle.server.process.config_file import read_file, resolve

T = TypeVar("T")

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called, such as the program that has it.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The settings file of a node on this machine: its cluster_secret is shown instead of a key, to that node "
        "unless --cluster names others.",
    ),
]


def _run(cluster: str | None, config: Path | None, work: Callable[[needle.Client], Awaitable[T]]) -> T:
    if config is None:
        return run(cluster or DEFAULT_CLUSTER, work)
    settings = resolve(read_file(config), os.environ, {})
    if not settings.cluster_secret:
        raise ConfigError(f"config = {str(config)!r} has no cluster_secret to show", field="cluster_secret")
    certificates = Certificates(settings.tls, settings.node_id, time.time) if settings.tls.on else None
    if certificates is not None:
        certificates.load()
    shown = Credentials(secrets=settings.secrets, dial=certificates.dial() if certificates is not None else None)
    return run(cluster or settings.announced, work, shown=shown, cluster_id=settings.cluster_id)


OptionalCluster = Annotated[
    str | None,
    typer.Option("--cluster", envvar="NEEDLE_CLUSTER", help="Addresses of nodes, host:port, separated by commas."),
]


Requests = Annotated[float, typer.Option("--requests", help="Requests a second, of each node; 0: no limit.")]
Documents = Annotated[
    float, typer.Option("--documents", help="Documents a second that it writes or asks for, of each node; 0: no limit.")
]
Bytes = Annotated[
    float, typer.Option("--bytes", help="Bytes of requests and answers a second, of each node; 0: no limit.")
]


def create(
    name: Name,
    role: Annotated[Role, typer.Option("--role", help="What the key may do.")] = Role.READER,
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", "-c", help="A collection that the key may use, and no others; may be repeated."),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help='The only documents that the key sees and writes, by their metadata: \'{"tenant": "a"}\'.',
        ),
    ] = None,
    requests: Requests = 0.0,
    documents: Documents = 0.0,
    bytes_: Bytes = 0.0,
    config: Config = None,
    cluster: OptionalCluster = None,
    json: Json = False,
) -> None:
    """Make an API key and print it. It is shown this once: the cluster keeps its SHA-256 only."""
    bound = filter_option("--filter", filter)

    async def work(client: needle.Client) -> NewApiKey:
        return await client.create_key(
            name, role, collections=collection, filter=bound, requests=requests, documents=documents, bytes=bytes_
        )

    made = _run(cluster, config, work)
    if json:
        print_json(made)
        return
    notes.print(f"key {name}, {_in_words(made)}; it is not shown again:", markup=False)
    sys.stdout.write(made.key + "\n")


def list_(config: Config = None, cluster: OptionalCluster = None, json: Json = False) -> None:
    """List the names and roles of the API keys."""

    async def work(client: needle.Client) -> list[ApiKey]:
        return await client.keys()

    found = _run(cluster, config, work)
    if json:
        print_json(found)
        return
    rows = table("key", "role", "collections", "documents", "a second")
    for key in found:
        collections = "all" if key.collections is None else ", ".join(key.collections)
        rows.add_row(key.name, str(key.role), collections, escape(_documents(key)), _limits(key))
    console.print(rows)


def limit(
    name: Name,
    requests: Requests = 0.0,
    documents: Documents = 0.0,
    bytes_: Bytes = 0.0,
    config: Config = None,
    cluster: OptionalCluster = None,
) -> None:
    """Say how much a key may ask of each node in a second, from now on; what is not named has no limit."""

    async def work(client: needle.Client) -> list[str]:
        return await client.limit_key(name, requests=requests, documents=documents, bytes=bytes_)

    silent = _run(cluster, config, work)
    _changed("limited", name, silent)


def revoke(name: Name, config: Config = None, cluster: OptionalCluster = None) -> None:
    """Take an API key back: calls with it are refused at once, also on connections that are open."""

    async def work(client: needle.Client) -> list[str]:
        return await client.revoke_key(name)

    silent = _run(cluster, config, work)
    _changed("revoked", name, silent)


def _changed(how: str, name: str, silent: list[str]) -> None:
    notes.print(f"{how} {name}", markup=False)
    if silent:
        notes.print(f"{', '.join(silent)} did not confirm it, and will do so once back with the others", markup=False)


def _in_words(key: NewApiKey) -> str:
    of = f" of {', '.join(key.collections)} only" if key.collections is not None else ""
    which = "" if key.filter is None else f", for documents that match {_documents(key)} only"
    return f"{'an' if key.role is Role.ADMIN else 'a'} {key.role}{of}{which}"


def _limits(key: ApiKey) -> str:
    said = [f"{value:g} {name}" for name in WHAT if (value := getattr(key, name))]
    return ", ".join(said) or "no limit"


def _documents(key: ApiKey | NewApiKey) -> str:
    return "all" if key.filter is None else msgspec.json.encode(key.filter).decode()
