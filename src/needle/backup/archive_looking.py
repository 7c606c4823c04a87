"""What is not whole of an archive, as `needle backup list` and `verify` tell it: one look for both.

It goes through what says what there is: the head, the records of the catalog, states, and the names of files of
entries; not through entries and pieces, which `verify` reads besides. A restore asks the same functions
(archive_reading.py) about its own place. Blocking; it must not know clusters.

Invariant: whatever keeps an instant between `since` and `until` from being restored, and can be known without reading
entries, is a line of `gaps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from needle.backup.archive_format import CATALOG, HEAD, LOG, Base, Catalog, Head, Span, directory
from needle.backup.archive_reading import (
    archived_shards,
    bases_of,
    begin_of,
    catalogs_of,
    chunks_of,
    clusters,
    files_of,
    lost_records,
    number_of,
    read_base,
    read_catalog,
    read_head,
    undisturbed,
)
from needle.backup.store import Store
from needle.base.errors import CorruptBackup, UnsupportedFormat
from needle.base.instants import rfc3339

DAMAGES: Final = (CorruptBackup, UnsupportedFormat)
UNKNOWN: Final = ": a file is lost, or the log had been cut (an earlier release archived it, and did not note which)"


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """An archive as `needle backup list` shows it. since, until: RFC 3339, "" if nothing can be restored yet. gaps:
    what is missing between, or damaged, one line each. bytes: of its entries. indexes: of each shard that serves, the
    first index of its log that can be restored (0: before its first entry), and the last one."""

    cluster: str
    since: str
    until: str
    shards: int
    bytes: int
    gaps: list[str]
    indexes: dict[int, tuple[int, int]] = {}


class Look:
    """At one cluster's archive, while nobody prunes it (else: `look_at`). files: that were read, and are right. damage:
    what is damaged or missing, one line each; gaps: that, and what was never archived; neither of what a prune left
    that broke off. missing: the first and last index of each gap between entries, by shard. serving: the shards that
    the newest record of the catalog names. begin: the instant at which it begins since it was pruned, 0 if it was
    not."""

    def __init__(self, store: Store, founding: int) -> None:
        self._store, self.founding = store, founding
        self.files: list[str] = []
        self.damage: list[str] = []
        self.gaps: list[str] = []
        self.missing: dict[int, list[tuple[int, int]]] = {}
        self.head = self._head()  # first, for what comes meanwhile is behind it
        self.names = catalogs_of(store, founding)
        self.catalogs = self._catalogs()
        newest = self.catalogs[-1] if self.catalogs and self.names[-1] == self.files[-1] else None
        self.begin = begin_of(self.catalogs)
        whole = len(self.catalogs) == len(self.names)
        self.catalogs = [one for one in self.catalogs if one.at >= self.begin]
        self.serving = [] if newest is None else [info.shard for info in newest.topology.serving]
        self.firsts: dict[int, Base] = {}
        there = archived_shards(store, founding)
        named = {info.shard for one in self.catalogs for info in one.topology.serving}
        for shard in there:
            if shard in named or not (self.begin and whole):  # else no instant that stays needs it: it is pruned
                self._shard(shard)
        for shard in sorted(named - {*there}):
            if self.head.shards.get(shard, (0, 0))[0]:
                self._tell(f"shard {shard}: all that was archived of it is missing")
        self.unended = list(_unended(self.catalogs, self.head))
        self.gaps += map(_retired, self.unended)

    def _tell(self, line: str, *, damage: bool = True) -> None:
        self.gaps.append(line)
        if damage:
            self.damage.append(line)

    def _head(self) -> Head:
        name = f"{directory(self.founding)}{HEAD}"
        try:
            head = read_head(self._store, self.founding)
        except DAMAGES as error:
            self._tell(error.message)
            return Head(shards={}, at=0)
        if name in files_of(self._store, directory(self.founding)):
            self.files.append(name)
        elif any(chunks_of(self._store, self.founding, shard) for shard in archived_shards(self._store, self.founding)):
            self._tell(f"{name} is missing: no instant can be restored until the archiver writes it again")
        return head

    def _catalogs(self) -> list[Catalog]:
        found = []
        for name in self.names:
            try:
                found.append(read_catalog(self._store, name))
                self.files.append(name)
            except DAMAGES as error:
                self._tell(error.message)
        for name, former, until in lost_records(self.founding, self.names, found, self.head):
            upto = f"to {rfc3339(until)}" if found and until <= found[-1].at else "on"
            self._tell(f"{name} is missing: instants from {rfc3339(former)} {upto} are refused")
        if not self.names and not self.head.catalog:
            self._tell("no record of the catalog is there: no instant can be restored")
        return found

    def _shard(self, shard: int) -> None:
        bases = []
        for index, name in bases_of(self._store, self.founding, shard):
            try:
                bases.append(read_base(self._store, name))
                self.files.append(name)
            except DAMAGES as error:
                self._tell(error.message)
                bases.append(Base(index=index, at=0, files=[], behind=index))  # damage explains no gap
        chunks = chunks_of(self._store, self.founding, shard)
        begin = max((one.index for one in bases if one.begins), default=-1)
        bases = [one for one in bases if one.index >= begin]
        chunks = [span for span in chunks if span.last > begin]
        if not bases:
            self._tell(f"shard {shard}: no state of it is there, so that nothing of it can be restored")
            return
        self.firsts[shard], first = bases[0], bases[0].index
        if before := [span for span in chunks if span.last <= first]:
            entries = f"entries {before[0].first} to {before[-1].last}"
            self._tell(f"shard {shard}: the state that {entries} lead on from is missing")
        self.missing[shard] = list(_gaps(first, chunks, self.head.shards.get(shard, (0, 0))[0]))
        for gap in self.missing[shard]:
            for line, damage in _reasons(shard, *gap, bases):
                self._tell(line, damage=damage)


def _gaps(place: int, chunks: Sequence[Span], kept: int) -> Iterator[tuple[int, int]]:
    """The first and last index of what is missing behind `place`. kept: up to which index the head has them."""
    for first, last in [*((span.first, span.last) for span in chunks), (kept + 1, kept)]:
        if first > place + 1:
            yield place + 1, first - 1
        place = max(place, last)


def _reasons(shard: int, first: int, last: int, bases: Sequence[Base]) -> Iterator[tuple[str, bool]]:
    """A gap in words, and whether a file is lost: what no state says that the log had been cut is."""
    place = first - 1
    whole, lost = (place, last), list[tuple[int, int, str]]()
    for base in bases:
        if place < base.index <= last:
            if base.behind < 0:
                lost.append((place, base.index, UNKNOWN))
            elif base.behind > place:
                lost.append((place, base.behind, ""))
            place = max(place, base.index)
    if last > place:
        lost.append((place, last, ""))
    if [one[:2] for one in lost] != [whole]:
        yield f"shard {shard}: entries {whole[0] + 1} to {whole[1]} are missing", False
    for behind, upto, why in lost:
        yield f"shard {shard}: entries {behind + 1} to {upto} are missing{why or ': a file is lost'}", True


def _unended(catalogs: Sequence[Catalog], head: Head) -> Iterator[tuple[int, int, int]]:
    """Shards that were retired before the end of their logs was archived; from when to when nothing can be had for want
    of that."""
    before: set[int] = set()
    for catalog in catalogs:
        serving = {info.shard for info in catalog.topology.serving}
        for shard in sorted(before - serving):
            until = head.shards.get(shard, (0, 0))[1]
            if until < catalog.at:
                yield shard, until, catalog.at
        before = serving


def _retired(unended: tuple[int, int, int]) -> str:
    shard, until, at = unended
    since = f"from {rfc3339(until)} to" if until else "up to"
    return (
        f"shard {shard} was retired, and the end of its log is not archived: instants {since} {rfc3339(at)} are refused"
    )


def list_archives(store: Store) -> list[Archived]:
    """All archives of a target."""
    found = [look_at(store, founding) for founding in clusters(store)]
    return [_archived(store, look) for look in found if look is not None]


def look_at(store: Store, founding: int) -> Look | None:
    """At one archive; None if it was deleted meanwhile."""
    look = undisturbed(store, founding, lambda: Look(store, founding), lambda one: one.gaps)
    return look if not look.gaps or files_of(store, directory(founding)) else None


def _archived(store: Store, look: Look) -> Archived:
    founding = look.founding
    head, serving = look.head, look.serving
    firsts = {shard: look.firsts[shard] for shard in serving if shard in look.firsts}
    first = number_of(look.names[0], CATALOG) if look.names else 0
    since = max([look.begin or first, *(base.since for base in firsts.values())])
    until = min([head.at, *(head.shards.get(shard, (0, 0))[1] for shard in serving)])
    sizes = files_of(store, directory(founding))
    return Archived(
        cluster=f"{founding:x}",
        since=rfc3339(since) if until else "",
        until=rfc3339(until) if until else "",
        shards=len(serving),
        bytes=sum(stat.size for name, stat in sizes.items() if name.endswith(LOG)),
        gaps=look.gaps,
        indexes={shard: (base.index, head.shards.get(shard, (base.index, 0))[0]) for shard, base in firsts.items()},
    )
