"""What the collection that says that a restore is under way (one_collection.py) tells of it, in a document of its own.

Invariant: a collection is noted as made only by the restore that made it, by its id, which no other one ever has.
"""

from __future__ import annotations

import msgspec

from needle.backup.one_collection import MARK, OneCollection
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import NeedleError
from needle.client import Client


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """backup: what is restored; of one collection alone also that, and the name that it gets, and the id of the
    collection that this restore made for it, 0 before."""

    backup: str
    collection: str = ""
    name: str = ""
    made: int = 0


def note_of(backup: str, one: OneCollection | None) -> Note:
    """As it is when a restore begins."""
    return Note(backup=backup) if one is None else Note(backup=backup, collection=one.collection, name=one.name)


async def put_note(client: Client, mark: str, note: Note, timeout: float) -> None:
    """Write it down."""
    await client.insert(mark, [1.0], msgspec.to_builtins(note), collection=mark, timeout=timeout)


async def noted(client: Client, mark: str, timeout: float) -> Note | None:
    """None: a release before this one began it, or it was broken off at once."""
    found = await client.get(mark, collection=mark, timeout=timeout)
    try:
        return None if found is None else msgspec.convert(found.metadata, Note)
    except DECODE_ERRORS:
        return None


async def restores(client: Client, mark: str, timeout: float) -> str:
    """What is restored, in words."""
    try:
        note = await noted(client, mark, timeout)
    except NeedleError:  # what is told does not depend on it
        note = None
    if note is None:
        return f"backup {mark.removeprefix(MARK)}"
    if not note.collection:
        return f"backup {note.backup}"
    return f"collection {note.collection}, as {note.name}, of backup {note.backup}"
