"""What is in a restore's way, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable

from needle.backup.one_collection import MARK
from needle.base.errors import CollectionExists
from needle.client import Client


async def check_free(client: Client, names: Iterable[str], timeout: float, *, alone: bool = False) -> None:
    """Raises CollectionExists for a collection of these that has documents (alone: or none), unless a restore goes on
    here: to be told before an archive is read, which takes long."""
    now = await client.refresh_topology(confirmed=True, timeout=timeout)
    there = {one.spec.name for one in now.collections}
    if any(name.startswith(MARK) for name in there):
        return
    for name in sorted(there & set(names)):
        if alone:
            raise taken(name)
        if await client.count(collection=name, timeout=timeout):
            raise in_the_way(name)


def taken(name: str) -> CollectionExists:
    """It is there, and not of this restore."""
    return CollectionExists(
        f"this cluster has a collection {name} already: give another name (--as), or drop it first", collection=name
    )


def not_ours(name: str, mark: str) -> CollectionExists:
    """It may be that of this restore, which did not say so."""
    return CollectionExists(
        f"this cluster has a collection {name}, and this restore, which was broken off, did not note that it made it: "
        f"drop {name} and restore again; or drop {mark}, and give another name (--as)",
        collection=name,
    )


def in_the_way(name: str) -> CollectionExists:
    """It has documents, or other settings."""
    return CollectionExists(
        f"this cluster has a collection {name} already, with documents or made otherwise than the backup's: restore "
        "into a new cluster, or drop it first",
        collection=name,
    )
