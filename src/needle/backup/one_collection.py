"""One collection of a backup alone, under its name or another one, into a cluster that serves others. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from needle.backup.format import Manifest
from needle.base.errors import InvalidArgument, invalid
from needle.client.values import check_name

MARK: Final = "restoring-"
"""A collection whose name begins so says that a restore is under way."""


class OneCollection(msgspec.Struct, frozen=True):
    """collection: as the backup has it. name: what it is to be called."""

    collection: str
    name: str


def one_collection(collection: str | None, name: str | None) -> OneCollection | None:
    """What a caller asks for; None for all. Raises InvalidArgument."""
    if collection is None:
        if name is not None:
            raise InvalidArgument(
                f"name = {name!r} is given without a collection: say which one it is to be the name of", field="name"
            )
        return None
    called = check_name(collection if name is None else name, "name")
    if called.startswith(MARK):
        raise invalid("name", called, f"a name that does not begin with {MARK}, which says that a restore is under way")
    return OneCollection(collection, called)


def narrowed(manifest: Manifest, one: OneCollection | None) -> Manifest:
    """The same backup with nothing but that collection, under its new name, and no aliases. Raises InvalidArgument if
    it has none of that name."""
    if one is None:
        return manifest
    check_known(one, [found.spec.name for found in manifest.collections])
    [found] = [found for found in manifest.collections if found.spec.name == one.collection]
    spec = msgspec.structs.replace(found.spec, name=one.name)
    return msgspec.structs.replace(manifest, collections=[msgspec.structs.replace(found, spec=spec)], aliases={})


def check_known(one: OneCollection, names: Iterable[str]) -> None:
    """Raises InvalidArgument."""
    known = sorted({*names})
    if one.collection not in known:
        raise invalid("collection", one.collection, ", ".join(known) or "nothing: it has no collections")


def mark_of(backup: str, one: OneCollection | None) -> str:
    """The collection that says that this restore is under way: another one for each collection and name."""
    if one is None:
        return f"{MARK}{backup}"
    told = hashlib.sha256(msgspec.json.encode((one.collection, one.name))).hexdigest()[:8]
    return f"{MARK}{backup}-{told}"
