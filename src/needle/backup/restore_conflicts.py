"""What is in a restore's way, and how it is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from needle.backup.one_collection import MARK
from needle.backup.restore_marks import Notes
from needle.base.errors import CollectionExists
from needle.client import Client

CLAIM_CHARS: Final = 17
"""Behind the mark's name: the id of the note that a collection is this restore's."""


async def claim(notes: Notes, name: str) -> None:
    """Note that a collection, which is there, is written by this restore of a whole backup, unless that is noted: it
    must be empty then. Raises CollectionExists for one that somebody made, or made again, meanwhile, and wrote to; also
    for what an earlier release restored, which noted nothing of the kind: nobody can tell the one from the other."""
    client, mark, timeout = notes.client, notes.mark, notes.timeout
    note = f"{mark}-{hashlib.sha256(name.encode()).hexdigest()[: CLAIM_CHARS - 1]}"
    noted = await notes.get(note)
    there = (await client.refresh_topology(confirmed=True, timeout=timeout)).named(name)
    if there is not None and noted is not None and noted.get("made") == there.id:
        return
    if there is None or await client.count(collection=name, timeout=timeout):
        raise CollectionExists(
            f"this cluster has a collection {name} with documents, and this restore, which was broken off or goes on, "
            "did not note that it is its own (an earlier release, if that began it, never does): nothing was written "
            f"to it. Drop {name} and restore again; or give the restore up: drop {mark} and the collections that were "
            "restored",
            collection=name,
        )
    await client.delete([name], collection=mark, timeout=timeout)  # what was written is gone
    await notes.put(note, {"made": there.id})


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
