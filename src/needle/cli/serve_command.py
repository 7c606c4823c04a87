"""`needle serve`: one node in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from needle.cli.settings import read_file, resolve
from needle.server.main import serve as serve_node


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", envvar="NEEDLE_CONFIG", help="TOML file with this node's settings.")
    ] = None,
    node_id: Annotated[str | None, typer.Option("--node-id", help="This node's name, one of the cluster's.")] = None,
    cluster_node: Annotated[
        list[str] | None,
        typer.Option("--cluster-node", help="A voter, name=host:port. Once for each, this node included."),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help="Where this node keeps everything.")] = None,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", help="Create the collection 'default' with vectors of this length.")
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Of that collection: cosine, l2 or dot.")] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", help="host:port to bind, if not the address in the cluster's list.")
    ] = None,
    http_address: Annotated[
        str | None, typer.Option("--http-address", help="host:port of /metrics, /livez and /readyz.")
    ] = None,
    election_timeout: Annotated[
        float | None, typer.Option("--election-timeout", help="Seconds without a leader before an election.")
    ] = None,
    heartbeat_interval: Annotated[
        float | None, typer.Option("--heartbeat-interval", help="Seconds between a leader's heartbeats.")
    ] = None,
    snapshot_threshold: Annotated[
        int | None, typer.Option("--snapshot-threshold", help="Log entries kept before they are compacted.")
    ] = None,
    join: Annotated[
        bool | None, typer.Option("--join/--no-join", help="A new node of an existing cluster: wait to be added to it.")
    ] = None,
    cluster_id: Annotated[
        str | None, typer.Option("--cluster-id", help="Nodes with another cluster id are refused.")
    ] = None,
) -> None:
    """Run one node until it is stopped with SIGTERM or Ctrl-C.

    A setting on the command line wins over the environment (NEEDLE_DATA_DIR and so on), that over the file, that over
    the default. docs/operations.md lists all settings.
    """
    flags = {
        "node_id": node_id,
        "cluster_nodes": cluster_node or None,
        "data_dir": data_dir,
        "dimensions": dimensions,
        "metric": metric,
        "listen": listen,
        "http_address": http_address,
        "election_timeout": election_timeout,
        "heartbeat_interval": heartbeat_interval,
        "snapshot_threshold": snapshot_threshold,
        "join": join,
        "cluster_id": cluster_id,
    }
    serve_node(resolve(read_file(config) if config else {}, os.environ, flags))
