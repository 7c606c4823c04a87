"""The `needle` command: which commands there are, their examples, and what an error looks like.

Exit codes: 0 done; 1 an error of the cluster or the input, shown as one line; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

import needle
from needle.cli import (
    backup_commands,
    bulk_load_command,
    certs_commands,
    change_commands,
    cluster_commands,
    collection_commands,
    create_command,
    doctor_command,
    document_commands,
    document_vector_commands,
    export_commands,
    feed_command,
    import_command,
    key_commands,
    maintenance_commands,
    mcp_command,
    node_commands,
    node_list,
    node_share_commands,
    plan_command,
    rebalance_commands,
    recover_command,
    repair_commands,
    replica_command,
    replication_command,
    restart_commands,
    search_command,
    serve_command,
    shard_commands,
    top_command,
    vector_commands,
)
from needle.cli import status as status_command
from needle.cli.demo import command as demo_command
from needle.cli.ending import exit_code
from needle.connecting import CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE, TLS_KEY_VARIABLE

app = typer.Typer(
    name="needle",
    help="A distributed, strongly consistent vector database: every write goes through Raft.",
    epilog="Example: needle demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
collections_app = typer.Typer(
    help="List the collections, create, describe, change or drop one.",
    epilog="Example: needle collections --json",
    invoke_without_command=True,
    rich_markup_mode=None,
)
alias_app = typer.Typer(
    help="Give collections other names, which may lead to another collection later.",
    epilog="Example: needle alias set current articles-2",
    no_args_is_help=True,
    rich_markup_mode=None,
)
shard_app = typer.Typer(
    help="List the shards, add, remove or split one, say which nodes hold one.",
    epilog="Example: needle shard list --json",
    no_args_is_help=True,
    rich_markup_mode=None,
)
node_app = typer.Typer(
    help="List the nodes, add one, empty, remove or replace one, say how much it takes and where it is.",
    epilog="Example: needle node list --json",
    no_args_is_help=True,
    rich_markup_mode=None,
)
cluster_app = typer.Typer(
    help="Make a cluster out of running nodes, show what it holds and what would move.",
    epilog="Example: needle cluster plan --add-shard",
    no_args_is_help=True,
    rich_markup_mode=None,
)
maintenance_app = typer.Typer(
    help="Take a node out of leadership for work on it, and bring it back.",
    epilog="Example: needle maintenance enter node-2",
    no_args_is_help=True,
    rich_markup_mode=None,
)
config_app = typer.Typer(
    help="What may stand in a node's configuration file.",
    epilog="Example: needle config schema",
    no_args_is_help=True,
    rich_markup_mode=None,
)
keys_app = typer.Typer(
    help="Make API keys, list them, limit what they may ask for, take them back.",
    epilog="Example: needle keys list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
certs_app = typer.Typer(
    help="Make an authority, and certificates for nodes and clients.",
    epilog="Example: needle certs create-ca",
    no_args_is_help=True,
    rich_markup_mode=None,
)
backup_app = typer.Typer(
    help="Make backups of a running cluster, list, verify and prune them; `needle restore` brings one back.",
    epilog="Example: needle backup create /backups/shop",
    no_args_is_help=True,
    rich_markup_mode=None,
)
repair_app = typer.Typer(
    help="Mend the data directory of a node that is stopped and does not start or go on by itself.",
    epilog="Example: needle repair term /var/lib/needle",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version of Needle and exit.")] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            help="An API key, for a cluster that asks for one. Other users of this machine may see it in the list of "
            "processes: better put it into the variable NEEDLE_API_KEY.",
        ),
    ] = None,
    tls_ca: Annotated[
        str | None,
        typer.Option(
            "--tls-ca",
            help="For a cluster that speaks TLS: the file of its authority's certificate, or `system`; by default what "
            "the variable NEEDLE_TLS_CA says.",
        ),
    ] = None,
    tls_certificate: Annotated[
        str | None,
        typer.Option("--tls-certificate", help="A client's certificate, for nodes that ask for one."),
    ] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", help="The private key of --tls-certificate.")] = None,
) -> None:
    shown = ((CA_VARIABLE, tls_ca), (CERTIFICATE_VARIABLE, tls_certificate), (TLS_KEY_VARIABLE, tls_key))
    os.environ.update({variable: value for variable, value in shown if value is not None})
    if api_key is not None:
        os.environ[KEY_VARIABLE] = api_key
    if version:
        sys.stdout.write(f"needle {needle.__version__}\n")
        raise typer.Exit


def _add(group: typer.Typer, name: str, function: Callable[..., Any], example: str) -> None:
    group.command(name, epilog=f"Example: {example}")(function)


_add(app, "demo", demo_command.demo, "needle demo --keep")
_add(app, "serve", serve_command.serve, serve_command.EXAMPLE)
_add(config_app, "schema", serve_command.schema, "needle config schema > needle.schema.json")
_add(app, "status", status_command.status, "needle status --watch")
_add(app, "doctor", doctor_command.doctor, "needle doctor --links")
_add(app, "plan", plan_command.plan, "needle plan --vectors 50M --dimensions 768")
_add(app, "top", top_command.top, "needle top")
_add(app, "mcp", mcp_command.mcp, "needle mcp --cluster 127.0.0.1:5001")
_add(app, "leader", cluster_commands.leader, "needle leader")
_add(app, "search", search_command.search, 'needle search "parse a date" -k 5 --mode leased')
_add(app, "insert", document_commands.insert, "needle insert documents.jsonl")
_add(app, "get", document_commands.get, "needle get json.dumps shlex.split --json")
_add(app, "patch", change_commands.patch, "needle patch doc-1 --set year=2024 --append tags=new")
_add(
    app,
    "update-vectors",
    document_vector_commands.update_vectors,
    "needle update-vectors captions.npy --vector-name caption",
)
_add(
    app,
    "delete-vector",
    document_vector_commands.delete_vector,
    "needle delete-vector caption doc-1 doc-2 --collection images",
)
_add(app, "delete", change_commands.delete, 'needle delete --where \'{"lang": "en"}\'')
_add(app, "count", change_commands.count, 'needle count --where \'{"lang": "en"}\'')
_add(app, "facet", change_commands.facet, "needle facet lang --limit 20")
_add(app, "scan", export_commands.scan, "needle scan --limit 100 --fields title,author.name")
_add(app, "export", export_commands.export, "needle export documents.jsonl")
_add(app, "changes", feed_command.changes, "needle changes articles --json")
_add(app, "watch", feed_command.watch, 'needle watch "broken authentication" --max-distance 0.4')
_add(app, "bulk-load", bulk_load_command.bulk_load, "needle bulk-load s3://bucket/articles articles-2 --alias articles")
_add(app, "import", import_command.import_, "needle import chroma:./chroma --from-collection articles --dry-run")
_add(backup_app, "create", backup_commands.create, "needle backup create /backups/shop --rate 20")
_add(backup_app, "archive", backup_commands.archive, "needle backup archive s3://backups/shop --every 5")
_add(backup_app, "list", backup_commands.list_, "needle backup list /backups/shop --newer-than 26")
_add(backup_app, "verify", backup_commands.verify, "needle backup verify s3://backups/shop")
_add(backup_app, "prune", backup_commands.prune, "needle backup prune /backups/shop --keep 14")
_add(app, "recover", recover_command.recover, "needle recover /var/lib/needle --dry-run")
_add(backup_app, "forget", backup_commands.forget, "needle backup forget")
_add(app, "restore", backup_commands.restore, "needle restore /backups/shop --at 2026-11-26T14:03:06Z")
_add(app, "step-down", cluster_commands.step_down, "needle step-down --to node-2")
_add(
    app,
    "rolling-restart",
    restart_commands.rolling_restart,
    "needle rolling-restart --command 'ssh {host} systemctl restart needle@{node}'",
)
_add(app, "rebalance", rebalance_commands.rebalance, "needle rebalance --dry-run")
_add(app, "force-election", cluster_commands.force_election, "needle force-election")
_add(maintenance_app, "enter", maintenance_commands.enter, "needle maintenance enter node-2")
_add(maintenance_app, "exit", maintenance_commands.exit_, "needle maintenance exit node-2")
_add(maintenance_app, "status", maintenance_commands.status, "needle maintenance status")
collections_app.callback()(collection_commands.collections)
_add(collections_app, "create", collection_commands.create, "needle collections create images --dimensions 512")
_add(collections_app, "drop", collection_commands.drop, "needle collections drop images --yes")
_add(collections_app, "describe", collection_commands.describe, "needle collections describe images")
_add(collections_app, "alter", collection_commands.alter, "needle collections alter images --ef-search 128")
_add(collections_app, "index", collection_commands.index, "needle collections index images year")
_add(collections_app, "unindex", collection_commands.unindex, "needle collections unindex images year")
_add(
    collections_app,
    "add-vector",
    vector_commands.add_vector,
    "needle collections add-vector images caption --dimensions 256 --index hnsw_sq8",
)
_add(collections_app, "add-sparse", vector_commands.add_sparse, "needle collections add-sparse papers splade")
_add(collections_app, "drop-sparse", vector_commands.drop_sparse, "needle collections drop-sparse papers splade")
_add(collections_app, "drop-vector", vector_commands.drop_vector, "needle collections drop-vector images caption")
_add(alias_app, "set", collection_commands.set_alias, "needle alias set current articles-2")
_add(alias_app, "remove", collection_commands.remove_alias, "needle alias remove current")
_add(alias_app, "list", collection_commands.list_aliases, "needle alias list --json")
_add(node_app, "list", node_list.list_, "needle node list")
_add(node_app, "add", node_commands.add, "needle node add node-4")
_add(node_app, "drain", node_commands.drain, "needle node drain node-2")
_add(node_app, "remove", node_commands.remove, "needle node remove node-2")
_add(node_app, "replace", node_commands.replace, "needle node replace node-2 node-7")
_add(node_app, "weight", node_share_commands.weight, "needle node weight node-2 2.5")
_add(node_app, "zone", node_share_commands.zone, "needle node zone node-2 rack-2")
_add(
    cluster_app,
    "create",
    create_command.create,
    "needle cluster create --shards 4 --replicas 3 node-1=10.0.0.1:5000 node-2=10.0.0.2:5000 node-3=10.0.0.3:5000",
)
_add(cluster_app, "stats", rebalance_commands.stats, "needle cluster stats")
_add(cluster_app, "plan", rebalance_commands.plan, "needle cluster plan --add-shard")
_add(
    cluster_app,
    "replication-factor",
    replication_command.replication_factor,
    "needle cluster replication-factor 5 --dry-run",
)
_add(certs_app, "create-ca", certs_commands.ca, "needle certs create-ca --out certs")
_add(certs_app, "create-node", certs_commands.node, "needle certs create-node node-1 --host 10.0.0.1 --out certs")
_add(certs_app, "create-client", certs_commands.client, "needle certs create-client shop --out certs")
_add(shard_app, "list", shard_commands.list_, "needle shard list")
_add(shard_app, "add", shard_commands.add, "needle shard add --dry-run")
_add(shard_app, "remove", shard_commands.remove, "needle shard remove 3")
_add(shard_app, "split", shard_commands.split, "needle shard split 0 --dry-run")
_add(shard_app, "move", shard_commands.move, "needle shard move 0 node-2 node-4")
_add(shard_app, "replicas", replica_command.replicas, "needle shard replicas 2 node-1 node-3 node-7")
_add(repair_app, "term", repair_commands.term, "needle repair term /var/lib/needle")
_add(repair_app, "resume", repair_commands.resume, "needle repair resume /var/lib/needle")
_add(keys_app, "create", key_commands.create, "needle keys create shop --role writer -c books")
_add(keys_app, "list", key_commands.list_, "needle keys list --json")
_add(keys_app, "limit", key_commands.limit, "needle keys limit shop --requests 100 --bytes 10000000")
_add(keys_app, "revoke", key_commands.revoke, "needle keys revoke shop")
app.add_typer(backup_app, name="backup")
app.add_typer(keys_app, name="keys")
app.add_typer(certs_app, name="certs")
app.add_typer(cluster_app, name="cluster")
app.add_typer(config_app, name="config")
app.add_typer(node_app, name="node")
app.add_typer(shard_app, name="shard")
app.add_typer(maintenance_app, name="maintenance")
app.add_typer(repair_app, name="repair")
app.add_typer(collections_app, name="collections")
app.add_typer(alias_app, name="alias")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Never shows a traceback for an error of the tree."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: app(arguments, prog_name="needle"))
