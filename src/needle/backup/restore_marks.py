"""What the collection that says that a restore is under way (one_collection.py) tells of it, in a document of its own.

Invariants: a collection is noted as made only by the restore that made it, by its id, which no other one ever has. Of
two commands that carry on one restore the last that came writes; the other one ends when it hears of that.
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.backup.around import Around
from needle.backup.one_collection import MARK, OneCollection
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CollectionExists, CollectionNotFound, NeedleError
from needle.client import Client
from needle.routing.topology import Topology

LOOK_SECONDS: Final = 1.0
"""So long a command that writes believes that no other one has taken its place."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """backup: what is restored; of one collection alone also that, and the name that it gets, and the id of the
    collection that this restore made for it, 0 before. holder: of the command that carries it on, drawn by it."""

    backup: str
    collection: str = ""
    name: str = ""
    made: int = 0
    holder: str = ""


class Held:
    """That this command carries on a restore, and no other: what one still wrote after the other's end would be written
    over what came since."""

    def __init__(self, client: Client, mark: str, note: Note, timeout: float, around: Around) -> None:
        self._client, self._mark, self._timeout, self._around = client, mark, timeout, around
        self._note = msgspec.structs.replace(note, holder=f"{around.rng.getrandbits(64):016x}")
        self._seen: tuple[float, float] | None = None

    async def take(self) -> None:
        """From now on it is this command's, whoever had it."""
        before = await noted(self._client, self._mark, self._timeout)
        await self.note_made(0 if before is None else before.made)

    async def note_made(self, made: int) -> None:
        """Write down the id of the collection that is restored alone."""
        self._note = msgspec.structs.replace(self._note, made=made)
        await put_note(self._client, self._mark, self._note, self._timeout)

    async def check(self, *, at_once: bool = True) -> None:
        """Raises CollectionExists if it is another command's by now, or over, or what it made is another collection by
        now. at_once: False: unless that was looked at a moment ago; time in which the process, or its machine, was
        stopped counts."""
        clock = self._around.clock
        looked = clock.monotonic(), clock.wall()  # the first does not count while a machine is suspended
        if not at_once and self._seen is not None:
            since = [now - then for now, then in zip(looked, self._seen, strict=True)]
            if min(since) >= 0 and max(since) < LOOK_SECONDS:
                return
        try:
            found = await noted(self._client, self._mark, self._timeout)
        except CollectionNotFound:
            found = None
        if found is None or found.holder != self._note.holder:
            raise CollectionExists(
                "another `needle restore` of the same has taken the place of this one, or has ended it (or collection "
                f"{self._mark} was dropped): this one has stopped",
                collection=self._mark,
            )
        if self._note.made:
            now = await self._client.refresh_topology(confirmed=True, timeout=self._timeout)
            there = now.named(self._note.name)
            if there is None or there.id != self._note.made:
                raise CollectionExists(
                    f"collection {self._note.name} was dropped, or made again by somebody, while it was restored: this "
                    f"restore has stopped. Drop {self._mark}, or run it again when the name is free",
                    collection=self._note.name,
                )
        self._seen = looked


async def check_no_other(client: Client, now: Topology, mark: str, timeout: float) -> None:
    """Raises CollectionExists if the cluster has the mark of another restore than this one's."""
    names = (one.spec.name for one in now.collections)
    other = next((name for name in names if name.startswith(MARK) and name != mark), None)
    if other is not None:
        raise CollectionExists(
            f"another restore is under way in this cluster, or was broken off: finish it by running the same "
            f"`needle restore` again (of {await restores(client, other, timeout)}, or of the instant that is called "
            f"so), or drop collection {other}",
            collection=other,
        )


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
