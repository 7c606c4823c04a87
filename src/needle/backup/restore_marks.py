"""What the collection that says that a restore is under way (one_collection.py) tells of it, in a document of its own.

Invariants: a collection is noted as made only by the restore that made it, by its id, which no other one ever has. Of
two commands that carry on one restore the last that came writes; the other one ends when it hears of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from needle.backup.around import Around
from needle.backup.one_collection import MARK, OneCollection
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CollectionExists, CollectionNotFound, NeedleError
from needle.client import Client
from needle.routing.strategy import ShardStrategy, routing_key
from needle.routing.topology import Topology

LOOK_SECONDS: Final = 1.0
"""So long a command that writes believes that no other one has taken its place."""
SAID: Final = "needle.note"
"""Where a note has what it says, beside its home. No shard key can name it: those are split at their dots. Where its
home has that, too, as documents may, dots follow until it has not."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """backup: what is restored; of one collection alone also that, and the name that it gets, and the id of the
    collection that this restore made for it, 0 before. holder: of the command that carries it on, drawn by it."""

    backup: str
    collection: str = ""
    name: str = ""
    made: int = 0
    holder: str = ""


def home_of(strategy: ShardStrategy, examples: Sequence[bytes]) -> Mapping[str, Any]:
    """Metadata by which a cluster places each of a restore's notes in one shard, whatever it says; nothing where they
    are placed by their ids. examples: metadata of documents that are restored, for a registered router: that of the
    smallest that it takes with a note, unless it takes notes as they are, as they were before they had homes. Raises
    InvalidArgument if it takes none, before anything was changed."""
    home: dict[str, Any] = {}
    if strategy.router:
        found = next((one for one in _homes(examples) if _is_taken(strategy, one)), None)
        if found is None:
            routing_key(strategy, 1, MARK, home)  # which says why
        return found or home
    for field in strategy.fields:
        *outer, last = field.split(".")
        at = home
        for part in outer:
            at = at.setdefault(part, {})
        at[last] = MARK
    return home


def _homes(examples: Sequence[bytes]) -> Iterator[dict[str, Any]]:
    yield {}
    for one in sorted(filter(None, examples), key=len):
        if isinstance(found := msgspec.json.decode(one), dict):
            yield found


def _is_taken(strategy: ShardStrategy, home: dict[str, Any]) -> bool:
    """Whether a router gives a note of that home a place."""
    try:
        routing_key(strategy, 1, MARK, beside(home, {}) if home else {})
    except Exception:  # noqa: BLE001 - a boundary: the function is the user's
        return False
    return True


class Notes:
    """The documents of a mark's collection."""

    def __init__(self, client: Client, mark: str, timeout: float) -> None:
        self.client, self.mark, self.timeout = client, mark, timeout
        self.home: Mapping[str, Any] = {}

    async def put(self, name: str, says: dict[str, Any]) -> None:
        """Write one down, in the place of what it said: where it is, for a release before may have placed it elsewhere,
        by what it said, and of two nobody knows which one is read."""
        metadata = says
        if self.home:
            there = await self.client.get(name, collection=self.mark, timeout=self.timeout)
            metadata = beside(self.home if there is None else apart(there.metadata)[0], says)
        await self.client.insert(name, [1.0], metadata, collection=self.mark, timeout=self.timeout)

    async def get(self, name: str) -> dict[str, Any] | None:
        """What one says; None if it is not there."""
        return await said(self.client, self.mark, name, self.timeout)


async def said(client: Client, mark: str, name: str, timeout: float) -> dict[str, Any] | None:
    """As `Notes.get`."""
    found = await client.get(name, collection=mark, timeout=timeout)
    return None if found is None else apart(found.metadata)[1]


def beside(home: Mapping[str, Any], says: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a note."""
    key = SAID
    while key in home:
        key += "."
    return {**home, key: says}


def apart(metadata: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its home, and what it says; of one that has no other home than what it says, that twice."""
    key = max((name for name in metadata if name.rstrip(".") == SAID), key=len, default="")
    if not key:
        return metadata, metadata
    return {name: value for name, value in metadata.items() if name != key}, metadata[key]


class Held:
    """That this command carries on a restore, and no other: what one still wrote after the other's end would be written
    over what came since."""

    def __init__(self, notes: Notes, note: Note, around: Around) -> None:
        self._client, self._mark, self._timeout = notes.client, notes.mark, notes.timeout
        self._notes, self._around = notes, around
        self._note = msgspec.structs.replace(note, holder=f"{around.rng.getrandbits(64):016x}")
        self._seen: tuple[float, float] | None = None

    async def take(self) -> None:
        """From now on it is this command's, whoever had it."""
        before = await noted(self._client, self._mark, self._timeout)
        await self.note_made(0 if before is None else before.made)

    async def note_made(self, made: int) -> None:
        """Write down the id of the collection that is restored alone."""
        self._note = msgspec.structs.replace(self._note, made=made)
        await self._notes.put(self._mark, msgspec.to_builtins(self._note))

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


async def noted(client: Client, mark: str, timeout: float) -> Note | None:
    """None: a release before this one began it, or it was broken off at once."""
    found = await said(client, mark, mark, timeout)
    try:
        return None if found is None else msgspec.convert(found, Note)
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
