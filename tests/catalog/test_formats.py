"""Whoever changes what nodes write for each other is told to raise the version (docs/versions.md).

tests/catalog/formats.txt holds all of it as of the present version. After raising KNOWN in needle/base/versions.py:
`python tests/catalog/test_formats.py > tests/catalog/formats.txt`.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from needle.base.filters.operators import OPERATORS
from needle.base.versions import KNOWN
from needle.catalog import machine
from needle.protocol import catalog_commands, commands
from needle.protocol.stamps import STAMPED, STAMPED_SINCE
from needle.protocol.versioned import Versioned
from needle.raft.messages import Message
from needle.routing.topology import Topology
from needle.shard.documents import sqlite_file
from needle.shard.segments.format import PLAIN, WITH_NODES, WITH_VECTORS

WRITTEN = Path(__file__).with_name("formats.txt")


def _inside(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The structs in a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in typing.get_args(kind):
        yield from _inside(part)


def _all(*roots: Any) -> list[type[msgspec.Struct]]:
    found: dict[type[msgspec.Struct], None] = {}
    left = [one for root in roots for one in _inside(root)]
    while left:
        kind = left.pop()
        if kind not in found:
            found[kind] = None
            left += [one for field in msgspec.structs.fields(kind) for one in _inside(field.type)]
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def _line(kind: type[msgspec.Struct]) -> str:
    fields = ", ".join(f"{field.name}: {_name(field.type)}" for field in msgspec.structs.fields(kind))
    since = ""
    if issubclass(kind, Versioned):
        newer = "".join(f", {name} {version}" for name, version in sorted(kind.NEWER.items()))
        filters = "".join(f", filter in {name}" for name in kind.FILTERS)
        since = f" since {kind.SINCE}{newer}{filters}"
    return f"{kind.__module__.removeprefix('needle.')}.{kind.__name__}({fields}){since}"


def _name(kind: Any) -> str:
    if isinstance(kind, type) and not typing.get_args(kind):
        return kind.__name__
    return str(kind).replace("typing.", "").replace("needle.", "")


def present() -> str:
    lines = [
        f"version {KNOWN}",
        f"documents {sqlite_file.FORMAT_VERSION}",
        f"catalog {machine.FORMAT_VERSION}",
        f"entries of shards with the leader's clock {STAMPED.hex()} since {STAMPED_SINCE}",
        f"index files {PLAIN.decode()} {WITH_NODES.decode()} {WITH_VECTORS.decode()}",
        *(f"operator {one.name} since {one.since}" for one in OPERATORS.values()),
        *map(_line, _all(commands.Command, catalog_commands.CatalogCommand, Topology, Message)),
    ]
    return "\n".join(lines) + "\n"


def test_what_nodes_write_for_each_other_is_as_of_this_version() -> None:
    written = WRITTEN.read_text("utf-8")
    if present() != written:
        changed = sorted(set(present().splitlines()) ^ set(written.splitlines()))
        raise AssertionError(
            "commands or formats have changed: follow docs/versions.md, then write formats.txt again.\n"
            + "\n".join(changed)
        )


if __name__ == "__main__":
    sys.stdout.write(present())
