"""What a collection is called inside the shards: its name and its id, `name@id`; and a named vector of it, that name,
OF, and its own name and id, which people see as `name@id/vector@id`. Pure."""

from __future__ import annotations

from typing import Final

OF: Final = "\x1f"
"""Between a collection and its vector. No name that people give has it (shard/apply/spec_validation.py): a collection
may well be called `docs@12/title`, and must not be taken for a vector, nor have the stored name of one."""


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
    number = collection_id(stored)
    return number if number is None or OF not in stored else -number


def stored_vector(collection: str, name: str, vector_id: int) -> str:
    """The name of a named vector inside a shard. collection: that of its collection there."""
    return f"{collection}{OF}{name}@{vector_id}"


def readable(stored: str) -> str:
    """A name inside a shard, whole, as people may see it."""
    return stored.replace(OF, "/")


def collection_of(stored: str) -> str:
    """The collection that a named vector is of, both by their names inside a shard."""
    return stored.rpartition(OF)[0]


def vector_called(stored: str) -> str:
    """The name that users know, of a named vector inside a shard."""
    return public_name(stored).rpartition(OF)[2]


def called(stored: str) -> str:
    """What messages call a collection inside a shard: the name that users know, if the catalog gave it one."""
    if collection_id(stored) is None:
        return stored
    if OF in stored:
        return f"{public_name(collection_of(stored))}/{vector_called(stored)}"
    return public_name(stored)
