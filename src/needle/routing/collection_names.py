"""What a collection is called inside the shards: its name and its id, `name@id`; and a named vector of it,
`name@id/vector@id`. Pure."""

from __future__ import annotations


def public_name(stored: str) -> str:
    """The name that users know, of a collection inside a shard."""
    return stored.rpartition("@")[0]


def collection_id(stored: str) -> int | None:
    """The id in the name of a collection inside a shard; None if the catalog never gave that name."""
    number = stored.rpartition("@")[2]
    return int(number) if "@" in stored and number.isascii() and number.isdecimal() else None


VECTORS_AT_ONCE = 32
"""More than one entry of the catalog makes."""


def vector_id(index: int, place: int) -> int:
    """Of the named vector that the catalog's entry at `index` makes as so manieth."""
    return index * VECTORS_AT_ONCE + place


def dropped_as(stored: str) -> int | None:
    """How the catalog's list of what was dropped has a collection, or a named vector, of a shard."""
    number, collection = collection_id(stored), public_name(stored).rpartition("/")[0]
    return number if number is None or collection_id(collection) is None else -number


def stored_vector(collection: str, name: str, vector_id: int) -> str:
    """The name of a named vector inside a shard. collection: that of its collection there."""
    return f"{collection}/{name}@{vector_id}"


def vector_called(stored: str) -> str:
    """The name that users know, of a named vector inside a shard."""
    return public_name(stored).rpartition("/")[2]


def called(stored: str) -> str:
    """What messages call a collection inside a shard: the name that users know, if the catalog gave it one."""
    if collection_id(stored) is None:
        return stored
    collection, slash, vector = public_name(stored).rpartition("/")
    if slash and collection_id(collection) is not None:
        return f"{public_name(collection)}/{vector}"
    return public_name(stored)
