"""`needle serve`: one node in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from needle.base.errors import ConfigError
from needle.cli.settings import from_environment, merge, named_routers, read_file, resolve
from needle.server.cluster_main import SECTION, cluster_options
from needle.server.process.main import serve as serve_node


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", envvar="NEEDLE_CONFIG", help="TOML file with this node's settings.")
    ] = None,
    node_id: Annotated[str | None, typer.Option("--node-id", help="This node's name, one of the cluster's.")] = None,
    cluster_node: Annotated[
        list[str] | None,
        typer.Option("--cluster-node", help="A voter as name=host:port. Repeat for each voter, including this node."),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help="Where this node keeps everything.")] = None,
    dimensions: Annotated[
        int | None, typer.Option("--dimensions", help="Create the collection 'default' with vectors of this length.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Metric of the default collection: cosine, l2 or dot.")
    ] = None,
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
    wait: Annotated[
        bool | None,
        typer.Option("--wait/--no-wait", help="A new node: wait until `needle members add` adds it to a cluster."),
    ] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="A node of a sharded cluster: wait for `needle cluster create`.")
    ] = False,
    join: Annotated[
        list[str] | None,
        typer.Option("--join", help="Join the sharded cluster of the node at host:port. Repeat to give several nodes."),
    ] = None,
    zone: Annotated[
        str | None, typer.Option("--zone", help="Sharded: failure domain of this node, such as its rack.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option("--weight", help="Sharded: this node's share of replicas; 1 by default.")
    ] = None,
    routers: Annotated[
        list[str] | None,
        typer.Option(
            "--routers",
            help="Sharded: a Python module, or module:function, with a custom routing callable. Once for each; "
            "NEEDLE_ROUTERS names them separated by commas, for the other commands too.",
        ),
    ] = None,
    cluster_id: Annotated[
        str | None, typer.Option("--cluster-id", help="Nodes with another cluster id are refused.")
    ] = None,
) -> None:
    """Run one node until it is stopped with SIGTERM or Ctrl-C.

    With --sharded or --join it is a node of a sharded cluster: it then needs --node-id, --listen and --data-dir only
    (and its own --cluster-node, if others reach it under another address than it binds).

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
        "join": wait,
        "cluster_id": cluster_id,
    }
    file = read_file(config) if config else {}
    sharded = sharded or SECTION in file
    given = {"join": join or None, "zone": zone, "weight": weight, "router_modules": routers or None}
    named = {"router_modules": named_routers(os.environ) or None} if sharded or join else {}
    section = merge(file.pop(SECTION, {}), named, given)
    options = cluster_options(section) if section or sharded else None
    if options is not None:
        known = merge(file, from_environment(os.environ), flags)
        if "cluster_nodes" not in known and "node_id" in known:
            if "listen" not in known:
                raise ConfigError("the setting listen is required, and is not given", field="listen")
            file["cluster_nodes"] = [f"{known['node_id']}={known['listen']}"]
    serve_node(resolve(file, os.environ, flags), options=options)
