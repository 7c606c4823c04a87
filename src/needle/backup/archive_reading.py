"""What an archive has: its files by name, and which of them lead to an instant. Blocking; it must not know clusters.

Invariant: the files that are chosen have every entry between a state and the place that is asked for, or an error says
what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from needle.backup.archive_format import (
    ARCHIVES,
    BASE,
    CATALOG,
    HEAD,
    INDEXES,
    LOG,
    TARGET,
    Base,
    Catalog,
    Chunk,
    Head,
    IndexSet,
    Span,
    Target,
    catalog_name,
    decode,
    directory,
    encode,
)
from needle.backup.store import Stat, Store
from needle.base.errors import CorruptBackup, InvalidArgument, StorageError, UnsupportedFormat, invalid
from needle.base.instants import rfc3339
from needle.protocol.archive_calls import LoggedEntry
from needle.routing.topology import Topology

_OURS: Final = re.compile(
    rf"{ARCHIVES}[0-9a-f]+/({HEAD}|{TARGET}|[0-9a-f]{{16}}{re.escape(CATALOG)}"
    rf"|[0-9]+/[0-9a-f]{{16}}({re.escape(BASE)}|{re.escape(INDEXES)}|-[0-9a-f]{{16}}{re.escape(LOG)}))"
)


T = TypeVar("T")
FOR_EVER: Final = 1 << 62
"""An instant behind all."""


def files_of(store: Store, prefix: str) -> dict[str, Stat]:
    """The files of archives; somebody may name a directory that has other files, too."""
    return {name: stat for name, stat in store.names(prefix).items() if _OURS.fullmatch(name)}


def clusters(store: Store) -> list[int]:
    """The foundings of the clusters that are archived here."""
    return sorted({int(name.split("/")[1], 16) for name in files_of(store, ARCHIVES)})


def archived_shards(store: Store, founding: int) -> list[int]:
    """Of which shards there is anything."""
    names = [name.removeprefix(directory(founding)) for name in files_of(store, directory(founding))]
    return sorted({int(name.partition("/")[0]) for name in names if "/" in name})


def undisturbed(store: Store, founding: int, look: Callable[[], T], troubled: Callable[[T], object]) -> T:
    """What `look` finds; where it is troubled, and somebody pruned the archive meanwhile, what it finds then: what was
    deleted is not missing."""
    while True:
        before = _prunable(store, founding)
        found = look()
        if not troubled(found) or before <= _prunable(store, founding):
            return found


def _prunable(store: Store, founding: int) -> set[str]:
    """Files that nobody else deletes. (Those of entries are joined.)"""
    return {name for name in files_of(store, directory(founding)) if name.endswith((BASE, CATALOG, INDEXES))}


def bases_of(store: Store, founding: int, shard: int) -> list[tuple[int, str]]:
    """(index, name) of a shard's states, ascending."""
    return _numbered(store, founding, shard, BASE)


def states_of(store: Store, founding: int) -> set[str]:
    """The files of all shards' states. Of what leads to an instant, prune deletes these first."""
    return {name for name in files_of(store, directory(founding)) if name.endswith(BASE)}


def index_sets_of(store: Store, founding: int, shard: int) -> list[tuple[int, str]]:
    """The same of its sets of index files."""
    return _numbered(store, founding, shard, INDEXES)


def _numbered(store: Store, founding: int, shard: int, suffix: str) -> list[tuple[int, str]]:
    where = directory(founding, shard)
    names = [name for name in files_of(store, where) if name.endswith(suffix)]
    return sorted((number_of(name, suffix), name) for name in names)


def index_set_near(store: Store, founding: int, shard: int, index: int) -> IndexSet | None:
    """The newest set of index files up to an index, else the first one behind it, of those that can be read."""
    sets = index_sets_of(store, founding, shard)
    before = [name for at, name in sets if at <= index]
    for name in [*reversed(before), *(name for at, name in sets if at > index)]:
        try:
            return read_index_set(store, name)
        except (CorruptBackup, UnsupportedFormat):
            continue
    return None


def chunks_of(store: Store, founding: int, shard: int) -> list[Span]:
    """A shard's files of entries, in order."""
    where = directory(founding, shard)
    names = [name for name in files_of(store, where) if name.endswith(LOG)]
    parts = [(name.removeprefix(where).removesuffix(LOG).split("-"), name) for name in names]
    return sorted(Span(int(first, 16), int(last, 16), name) for (first, last), name in parts)


def chain(chunks: Sequence[Span], after: int) -> Iterator[Span]:
    """The files that lead on from an index, one behind the other, as far as none is missing."""
    at, place = 0, after
    while True:
        best: Span | None = None
        while at < len(chunks) and chunks[at].first <= place + 1:
            if chunks[at].last > place and (best is None or chunks[at].last > best.last):
                best = chunks[at]
            at += 1
        if best is None:
            return
        yield best
        place = best.last


def catalogs_of(store: Store, founding: int) -> list[str]:
    """The files of what the catalog said, from the oldest on."""
    return sorted(name for name in files_of(store, directory(founding)) if name.endswith(CATALOG))


def read_base(store: Store, name: str) -> Base:
    """Raises CorruptBackup, UnsupportedFormat; so do the others."""
    return decode(name, store.get(name), Base)


def read_index_set(store: Store, name: str) -> IndexSet:
    """Index files."""
    return decode(name, store.get(name), IndexSet)


def read_chunk(store: Store, span: Span) -> Chunk:
    """A file of entries."""
    chunk = decode(span.name, store.get(span.name), Chunk)
    indexes = [one.index for one in chunk.entries]
    if indexes != list(range(span.first, span.last + 1)):
        raise CorruptBackup(f"{span.name} has other entries than its name says", file=span.name)
    return chunk


def read_catalog(store: Store, name: str) -> Catalog:
    """What the catalog said."""
    return decode(name, store.get(name), Catalog)


def read_head(store: Store, founding: int) -> Head:
    """How far the archive is; nowhere, if there is none."""
    name = f"{directory(founding)}{HEAD}"
    data = store.get(name)
    return Head(shards={}, at=0) if data is None else decode(name, data, Head)


def read_target(store: Store, founding: int) -> str:
    """What the target is called; "" if it has no name yet."""
    name = f"{directory(founding)}{TARGET}"
    data = store.get(name)
    return "" if data is None else decode(name, data, Target).name


def target_name(store: Store, founding: int, made: str) -> str:
    """The same; where it has no name, or a damaged one, it is `made` from now on."""
    try:
        if found := read_target(store, founding):
            return found
    except CorruptBackup:
        pass  # nothing depends on it but for how long nodes keep their logs
    store.put(f"{directory(founding)}{TARGET}", encode(Target(name=made)))
    return made


def chosen(store: Store, founding: int | None) -> int:
    """The cluster that is meant. Raises InvalidArgument if there is none, or several and none is named."""
    found = clusters(store)
    if founding is not None:
        if founding not in found:
            raise invalid(
                "archive", f"{founding:x}", ", ".join(f"{one:x}" for one in found) or "nothing: there is none"
            )
        return founding
    if not found:
        raise InvalidArgument("no logs are archived at this target: `needle backup archive` does", field="target")
    if len(found) > 1:
        names = ", ".join(f"{one:x}" for one in found)
        raise InvalidArgument(f"several clusters are archived here: name one by --archive: {names}", field="archive")
    return found[0]


def catalog_at(store: Store, founding: int, at: int) -> tuple[Catalog, list[int]]:
    """What the catalog said last before an instant, and the shards that there were then, or may have been: of those
    that it named next it is not known whether they came before. Raises InvalidArgument for one that is not archived."""
    names, head = catalogs_of(store, founding), read_head(store, founding)
    before = [name for name in names if number_of(name, CATALOG) <= at]
    later = [read_catalog(store, name) for name in names[len(before) :][:1]]
    later += readable(store, names[len(before) + 1 :])  # the next one says most of what counts here
    begin = begin_of(later)
    if any(since <= at < until for _, since, until in lost_records(founding, names, later, head)):
        # Unless they were pruned, which one says that counts at the instant, or before.
        for record, since, until in lost_records(founding, names, [*later, *readable(store, before)], head):
            if since <= at < until and at >= begin:
                raise CorruptBackup(
                    f"{record} is missing, so that nobody can say which collections and aliases there were from "
                    f"{rfc3339(since)} on: ask for an earlier or a later instant",
                    file=record,
                )
    if not before or at < begin:
        first = f" begins at {rfc3339(begins_at(store, founding))}" if names else " has nothing yet"
        raise InvalidArgument(f"at = {rfc3339(at)} is not allowed: the archive{first}", field="at")
    if at > head.at:
        raise invalid("at", rfc3339(at), f"up to {rfc3339(head.at)}: until then the catalog is archived")
    catalog = read_catalog(store, before[-1])
    shards = {info.shard for info in catalog.topology.serving}
    for following in later[:1]:
        if at > following.after:
            shards |= {info.shard for info in following.topology.serving}
    return catalog, sorted(shards)


def catalog_before(store: Store, founding: int, at: int) -> Topology | None:
    """What the catalog said last before an instant, or else first, as far as that can be read: for a place by index, to
    which what was dropped, or called otherwise, since must not be done."""
    names = catalogs_of(store, founding)
    before = [name for name in names if number_of(name, CATALOG) <= at]
    for name in [*reversed(before), *names[len(before) :]]:
        for record in readable(store, [name]):
            return record.topology
    return None


def readable(store: Store, names: Sequence[str]) -> list[Catalog]:
    """Those of these records that are whole."""
    found = []
    for name in names:
        with suppress(CorruptBackup):
            found.append(read_catalog(store, name))
    return found


def begin_of(records: Sequence[Catalog]) -> int:
    """The instant at which the archive begins since it was pruned, as these say; 0 if they do not."""
    return max((one.at for one in records if one.begins), default=0)


def begins_at(store: Store, founding: int) -> int:
    """The first instant that can be restored, as `needle backup list` shows it; 0 if there is none yet."""
    names = catalogs_of(store, founding)
    if not names:
        return 0
    records = readable(store, names)
    found = [begin_of(records) or number_of(names[0], CATALOG)]
    for info in records[-1].topology.serving if records else ():
        bases = list[Base]()
        for _, name in bases_of(store, founding, info.shard):
            with suppress(CorruptBackup):
                bases.append(read_base(store, name))
        begin = max((one.index for one in bases if one.begins), default=-1)
        found += [one.since for one in bases if one.index >= begin][:1]
    return max(found)


def lost_records(
    founding: int, names: Sequence[str], records: Sequence[Catalog], head: Head
) -> Iterator[tuple[str, int, int]]:
    """Records of the catalog that others, or the head, name and that are not there: the file, and the instants from
    and up to which nobody can say what counted. names: the files that there are; records: some of them. Where none that
    is named before it is there, more may be lost: then that is from the last one on that is there."""
    there, begin = sorted(number_of(name, CATALOG) for name in names), begin_of(records)
    since: dict[int, int] = {}
    for named in [*(one.named for one in records), head.named]:
        for place, at in enumerate(named):
            if at >= begin and at not in there:
                known = any(one in there for one in named[:place])  # all between that one and this are named, too
                before = at if known else max((one for one in there if one < at), default=at)
                since[at] = max(since.get(at, 0), before)
    for at, first in sorted(since.items()):
        yield catalog_name(founding, at), first, next((one for one in there if one > at), FOR_EVER)


def number_of(name: str, suffix: str) -> int:
    """What a file's name says before its suffix."""
    return int(name.rpartition("/")[2].removesuffix(suffix), 16)


def base_before(
    store: Store, founding: int, shard: int, fetch: Callable[[Base], None], *, at: int | None, index: int | None
) -> Base:
    """The newest state that an instant, or an index, can be reached from, and that is whole: fetch takes its files, or
    raises CorruptBackup. Raises InvalidArgument if there is none, CorruptBackup if none of them is whole."""
    damage: CorruptBackup | None = None
    for _, name in reversed([one for one in bases_of(store, founding, shard) if index is None or one[0] <= index]):
        try:
            base = read_base(store, name)
            if at is None or base.since <= at:
                fetch(base)
                return base
        except CorruptBackup as error:  # older ones lead there, too, if what comes behind them is still there
            damage = damage or error
    if damage is not None:
        raise damage
    all_of_it = bases_of(store, founding, shard)
    if not all_of_it:
        raise StorageError(f"nothing of shard {shard} is archived")
    first = read_base(store, all_of_it[0][1])
    if at is not None:
        begins = rfc3339(max(first.since, begins_at(store, founding)))
        raise InvalidArgument(f"at = {rfc3339(at)} is not allowed: the archive begins at {begins}", field="at")
    raise InvalidArgument(
        f"the archive of shard {shard} begins at index {first.index}, {rfc3339(first.at)}: ask for a later place",
        field="index",
    )


def later_base(store: Store, founding: int, shard: int, at: int, index: int) -> int | None:
    """The index of the first state that was copied after an instant, `index` or later; None if there is none."""
    for found, name in bases_of(store, founding, shard):
        if found >= index:
            try:
                if read_base(store, name).since > at:
                    return found
            except CorruptBackup:
                continue
    return None


def entries(store: Store, founding: int, shard: int, after: int) -> Iterator[tuple[LoggedEntry, str | None]]:
    """The entries behind an index, as far as none is missing, each with the digest that was recorded there, if one
    was. Memory: a file. What an archiver joins meanwhile is found where it is then."""
    lost: Span | None = None
    while True:
        for span in chain(chunks_of(store, founding, shard), after):
            try:
                chunk = read_chunk(store, span)
            except CorruptBackup:
                if span == lost or span.name in files_of(store, directory(founding, shard)):
                    raise
                lost = span
                break
            points = dict(chunk.points)
            for one in chunk.entries:
                if one.index > after:
                    yield one, points.get(one.index)
                    after = one.index
        else:
            return


def check_reach(store: Store, founding: int, head: tuple[int, int], shard: int, reached: int, at: int) -> None:
    """A shard's entries have come to an end before one that is later than an instant: was that all there was? head: of
    the shard. Raises CorruptBackup, InvalidArgument."""
    kept, until = head
    if reached < kept:
        raise CorruptBackup(
            f"the archive of shard {shard} lacks the entries behind {reached}, which lead to {rfc3339(at)}: `needle "
            "backup list` shows what is missing"
        )
    if until < at:
        why = ""
        for newest in readable(store, catalogs_of(store, founding)[-1:]):
            if all(info.shard != shard for info in newest.topology.serving):
                why = ". It was retired, and the end of its log is not archived: `needle backup list` says which "
                why += "instants are refused for that"
        text = f"at = {rfc3339(at)} is not allowed: shard {shard} is archived until {rfc3339(until)}{why}"
        raise InvalidArgument(text, field="at")


def founding_of(archive: str | None) -> int | None:
    """A cluster's, by its name. Raises InvalidArgument."""
    try:
        return None if archive is None else int(archive, 16)
    except ValueError:
        raise invalid("archive", archive, "a cluster as `needle backup list` shows it") from None
