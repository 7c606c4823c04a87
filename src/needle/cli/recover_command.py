"""`needle recover`: a cluster of one surviving directory, when a majority is lost for good."""

from __future__ import annotations

from typing import Annotated

import typer


def recover(
    data_dir: Annotated[
        str, typer.Argument(metavar="DATA_DIR", help="The data directory of a surviving node, which is stopped.")
    ],
    cluster_id: Annotated[
        str, typer.Option("--cluster-id", help="Of the new cluster. By default it is made of the former one.")
    ] = "",
    also: Annotated[
        list[str] | None,
        typer.Option("--also", help="Ask at this address, too, whether a node of the cluster lives, host:port."),
    ] = None,
    no_node: Annotated[
        list[str] | None,
        typer.Option("--no-node", help="What takes connections at this address is no node of the cluster, host:port."),
    ] = None,
    begin_empty: Annotated[
        bool, typer.Option("--begin-empty", help="Shards of which this node has nothing begin empty.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is there and who answers.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """When a majority of nodes is lost for good: make what one of them has a cluster of its own.

    Acknowledged writes may be missing afterwards. It is refused while another node of the cluster answers."""
    from needle.cli import recovering  # what a replica needs takes a quarter of a second to load

    recovering.recover(data_dir, cluster_id, also or [], no_node or [], begin_empty, dry_run, yes)
