"""What `needle` commands do, a program can do: they use the public client, and nothing behind it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import needle

CLI = Path(str(needle.__file__)).parent / "cli"
OFFLINE = {
    "app.py": "runs the commands",
    "api_reference.py": "writes docs/api.md",
    "reference.py": "writes the pages of settings, errors and metrics",
    "certs_commands.py": "makes files",
    "create_command.py": "needle.distributed.DistributedCluster, loaded late",
    "dashboard.py": "writes a file of the table of metrics",
    "key_commands.py": "a key that is made on the machine of a node, from its settings",
    "maintenance_commands.py": "the file of a note is written as the node writes its own",
    "plan_command.py": "calculates",
    "recover_command.py": "a directory whose node is stopped",
    "recovering.py": "a directory whose node is stopped",
    "repair_commands.py": "a directory whose node is stopped",
    "serve_command.py": "is the node",
    "starting.py": "is the node",
    "watch_files.py": "writes rules and a dashboard",
}
"""Who may import the server, and why."""
JUDGES = {"replica_command.py": "judges by the catalog's own rules before it asks, and tells how far a replica is"}
"""Who may call what the catalog is made of, and its commands, which is pure; nothing of it asks a cluster."""
BULK = ("needle.shard.", "client._shards", "needle.catalog.collections.check_alias")
"""What bulk loads may use besides: they make a shard's own files as its nodes do, bring each to every replica, and
judge an alias by the catalog's own rules before hours of work."""
BEHIND = ("needle.catalog", "needle.protocol.catalog_commands", "needle.rpc", "needle.raft", "needle.shard")
BEHIND_BUT_OFFLINE = ("needle.server", "needle.multiraft", "needle.connecting.system_caller")


def imported(tree: ast.Module) -> set[str]:
    """Modules, and what is taken of them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{one.name}" for one in node.names}
    return found


def behind(source: str, offline: bool = False) -> list[str]:
    """What a module uses that a program should not: internals by import, private attributes of a client, and commands
    of the catalog, which have no public names."""
    tree = ast.parse(source)
    refused = BEHIND if offline else BEHIND + BEHIND_BUT_OFFLINE
    found = [name for name in imported(tree) if any(name == one or name.startswith(f"{one}.") for one in refused)]
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found += [ast.unparse(one) for one in attributes if one.attr == "change_catalog" or _private_of_client(one)]
    return sorted(found)


def _private_of_client(node: ast.Attribute) -> bool:
    of_client = isinstance(node.value, ast.Name) and node.value.id in ("client", "cluster")
    return of_client and node.attr.startswith("_") and not node.attr.startswith("__")


@pytest.mark.parametrize("path", sorted(CLI.rglob("*.py")), ids=lambda path: str(path.relative_to(CLI)))
def test_a_command_needs_no_more_than_the_public_client(path: Path) -> None:
    offline = path.name in OFFLINE or "demo" in path.parts
    found = behind(path.read_text(encoding="utf-8"), offline)
    pure = ("needle.catalog.", "needle.protocol.catalog_commands.") if path.name in JUDGES else ()
    pure += BULK if path.parent.name == "bulk" else ()
    assert [one for one in found if not one.startswith(pure)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from needle.protocol.catalog_commands import FORGET", ["needle.protocol.catalog_commands.FORGET"]),
        ("def f(client): return client._shards.command", ["client._shards"]),
        ("async def f(c): await c.change_catalog(1)", ["c.change_catalog"]),
        ("from needle.server.files import hold", ["needle.server.files.hold"]),
        ("import needle\nfrom needle.client import Client", []),
    ],
)
def test_what_is_behind_the_client_is_seen(source: str, found: list[str]) -> None:
    assert behind(source) == found


def test_who_may_import_the_server_still_does_something_else_than_ask() -> None:
    assert all((CLI / name).exists() for name in OFFLINE | JUDGES)
