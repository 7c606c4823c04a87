"""Documents by their ids, and in the order of their ids, read from a replica's file: those of now, and those that a
pinned scan sees.

Whoever calls has begun the read that all of it is from. It must not know moves of ranges: what is read says which
holdings it is to be judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import apsw
import msgspec
from pyroaring import BitMap

from needle.base.errors import CorruptDocuments
from needle.shard.documents.records import DEAD_DOCUMENT, ORDINAL_BITS, StoredDocument, row_id
from needle.shard.documents.writer import CHUNK, padded
from needle.shard.pins import Pin, decode_pins


class Seen(NamedTuple):
    """document: without its vector; None for a version that is not seen: the same id may come again with another one.
    at: the index at which it is read; holdings: at that index, None if they had never changed."""

    id: str
    document: StoredDocument | None
    at: int
    holdings: bytes | None


_METADATA: Final = (
    "CASE WHEN ordinal < :below {}THEN (SELECT metadata FROM documents WHERE "
    f"row = :collection << {ORDINAL_BITS} | ordinal) END"
)
"""Only of what the pin sees: the other rows of `documents` are not looked at."""
_PINNED: Final = (
    f"SELECT id, ordinal, version, expires, 0, {_METADATA.format('')} FROM ids "
    "WHERE collection_id = :collection AND id > :after "
    f"UNION ALL SELECT id, ordinal, version, expires, died, {_METADATA.format('AND died > :pin ')} FROM kept "
    "WHERE collection_id = :collection AND id > :after ORDER BY 1"
)
"""Both in the order of their keys: nothing is sorted."""

READ_MAX: Final = 4096
"""Of so many documents the ids are read from their rows, rather than that many other ids are passed over."""
MASK: Final = (1 << ORDINAL_BITS) - 1
_SOME: Final = (
    "SELECT i.id, i.ordinal, i.version, i.expires FROM "
    "(SELECT value AS row FROM json_each(:listed) UNION ALL "
    "SELECT row FROM documents WHERE row >= :end AND row <= :last) n "
    "CROSS JOIN documents d ON d.row = n.row "
    "CROSS JOIN ids i ON i.collection_id = :collection AND i.id = d.id AND i.ordinal = d.row - :base "
    "WHERE d.id > :after ORDER BY d.id"
)


def current(
    connection: apsw.Connection, collection_id: int, after: str, wanted: Callable[[int], bool] | None = None
) -> Generator[Seen, None, None]:
    """The current documents behind the id `after`. wanted: those with these ordinals only; of the others nothing but an
    index of ids is read."""
    connection.execute("BEGIN")
    meta = dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('index', 'holdings')"))
    index, held = meta["index"], meta.get("holdings")
    if wanted is not None:
        for id_, ordinal, expires in connection.execute(
            "SELECT id, ordinal, expires FROM ids WHERE collection_id = ? AND id > ? ORDER BY id",
            (collection_id, after),
        ):
            if wanted(ordinal):
                row = row_id(collection_id, ordinal)
                found = connection.execute("SELECT version, metadata FROM documents WHERE row = ?", (row,))
                version, metadata = found.fetchone()
                yield Seen(id_, StoredDocument(id_, ordinal, version, metadata, b"", expires), index, held)
        return
    for row in connection.execute(
        "SELECT d.id, i.ordinal, d.version, d.metadata, x'', i.expires FROM ids i "
        f"JOIN documents d ON d.row = (i.collection_id << {ORDINAL_BITS} | i.ordinal) "
        "WHERE i.collection_id = ? AND i.id > ? ORDER BY i.id",
        (collection_id, after),
    ):
        yield Seen(row[0], StoredDocument(*row), index, held)


def some(
    connection: apsw.Connection, collection_id: int, after: str, ordinals: Sequence[int], end: int
) -> Generator[Seen, None, None]:
    """Those of the current documents behind the id `after` that have these ordinals, or ordinals from `end` on: what
    was written since somebody looked which ordinals there are."""
    connection.execute("BEGIN")
    meta = dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('index', 'holdings')"))
    index, held = meta["index"], meta.get("holdings")
    base = row_id(collection_id, 0)
    listed = msgspec.json.encode([base + ordinal for ordinal in ordinals]).decode()
    values = {"collection": collection_id, "after": after, "base": base, "end": base + end, "listed": listed}
    # In order first, and only then their metadata, one by one: of most a page needs nothing.
    for id_, ordinal, version, expires in connection.execute(_SOME, values | {"last": base + MASK}).fetchall():
        (metadata,) = connection.execute("SELECT metadata FROM documents WHERE row = ?", (base | ordinal,)).fetchone()
        yield Seen(id_, StoredDocument(id_, ordinal, version, metadata, b"", expires), index, held)


def pinned(
    connection: apsw.Connection, path: str, collection_id: int, after: str, index: int, token: int
) -> Generator[Seen, None, None]:
    """What an open pin sees behind the id `after`. Raises ScanEnded; CorruptDocuments if it is not there."""
    connection.execute("BEGIN")
    pin = _open_pin(connection, collection_id, index, token)
    held = pin.holdings or None
    values = {"collection": collection_id, "after": after, "below": pin.below, "pin": pin.index}
    for id_, ordinal, version, expires, died, metadata in connection.execute(_PINNED, values):
        if not pin.sees(ordinal, died):
            yield Seen(id_, None, pin.index, held)
            continue
        if metadata is None:
            raise CorruptDocuments(f"{path} is damaged: ordinal {ordinal} is kept for a scan and not there", path=path)
        yield Seen(id_, StoredDocument(id_, ordinal, version, metadata, b"", expires), pin.index, held)


def kept_since(connection: apsw.Connection, oldest: int, rows_max: int) -> dict[int, int]:
    """How many versions are kept for pinned scans that died after the entry `oldest`, by collection; `rows_max` in all
    at most."""
    rows = connection.execute(
        "SELECT collection_id, count(*) FROM (SELECT collection_id FROM kept WHERE died > ? LIMIT ?) GROUP BY 1",
        (oldest, rows_max),
    )
    return dict(rows.fetchall())


def by_id(connection: apsw.Connection, collection_id: int, ids: Sequence[str], vectors: bool) -> list[StoredDocument]:
    """The current documents of these ids, in their order, each once. vectors: theirs, too; b"" otherwise."""
    found: dict[str, StoredDocument] = {}
    columns = ", v.vector" if vectors else ", x''"
    join = f"JOIN vectors v ON v.row = (i.collection_id << {ORDINAL_BITS} | i.vector)" if vectors else ""
    for start in range(0, len(ids), CHUNK):
        part = padded(ids[start : start + CHUNK])
        rows = connection.execute(
            f"SELECT d.id, i.ordinal, d.version, d.metadata{columns}, i.expires FROM ids i "
            f"JOIN documents d ON d.row = (i.collection_id << {ORDINAL_BITS} | i.ordinal) {join} "
            f"WHERE i.collection_id = ? AND i.id IN ({','.join('?' * len(part))})",
            (collection_id, *part),
        ).fetchall()
        found.update((row[0], StoredDocument(*row)) for row in rows)
    return [found[id_] for id_ in dict.fromkeys(ids) if id_ in found]


def places(connection: apsw.Connection, collection_id: int, ids: Sequence[str]) -> dict[str, int]:
    """The ordinals of the current documents of these ids."""
    found: dict[str, int] = {}
    for start in range(0, len(ids), CHUNK):
        part = padded(ids[start : start + CHUNK])
        marks = ",".join("?" * len(part))
        rows = f"SELECT id, ordinal FROM ids WHERE collection_id = ? AND id IN ({marks})"
        found.update(connection.execute(rows, (collection_id, *part)).fetchall())
    return found


def placed(
    connection: apsw.Connection, collection_id: int, ids: Sequence[str], universe: BitMap, died: Callable[[], BitMap]
) -> BitMap:
    """Those of some ordinals, which were live at one earlier moment and are not purged, whose documents have one of
    these ids. They are looked up as of now; of those that died meanwhile it is told by their rows. died: which of
    `universe` these are, and maybe more; asked after the look-up."""
    current_ = places(connection, collection_id, ids)
    found = BitMap(list(current_.values())) & universe
    if len(found) == len(set(ids)) or not universe:
        return found
    wanted = frozenset(ids).difference(id_ for id_, ordinal in current_.items() if ordinal in found)
    dead = died().to_array()
    base = row_id(collection_id, 0)
    for start in range(0, len(dead), CHUNK):
        part = padded([base | ordinal for ordinal in dead[start : start + CHUNK]])
        rows = connection.execute(f"SELECT row, id FROM documents WHERE row IN ({','.join('?' * len(part))})", part)
        found.update(row - base for row, id_ in rows if id_ in wanted)
    return found


def ids_in_order(
    connection: apsw.Connection, collection_id: int, ordinals: BitMap, after: str, limit: int
) -> list[tuple[str, int]]:
    """The first ids behind `after` of documents with these ordinals, each with it. They were live at one earlier
    moment, and are not purged. Of many, no document is read but those that died meanwhile."""
    base = row_id(collection_id, 0)
    chosen, found = ordinals, list[tuple[str, int]]()
    if len(ordinals) > READ_MAX:
        rows = connection.execute(
            "SELECT id, ordinal FROM ids WHERE collection_id = ? AND id > ? ORDER BY id", (collection_id, after)
        )
        found = list(islice((row for row in rows if row[1] in ordinals), limit))
        chosen = BitMap(graves(connection, collection_id, ordinals.max())) & ordinals
    listed = chosen.to_array()
    for start in range(0, len(listed), CHUNK):
        part = padded([base | ordinal for ordinal in listed[start : start + CHUNK]])
        dead = connection.execute(f"SELECT id, row FROM documents WHERE row IN ({','.join('?' * len(part))})", part)
        found += [(id_, row - base) for id_, row in dead if id_ > after]
    return sorted(found)[:limit]


def seen_by(
    connection: apsw.Connection, collection_id: int, index: int, token: int, live: BitMap
) -> tuple[BitMap, bytes | None]:
    """The ordinals of what an open pin sees, and its holdings. live: those of a moment after it and before this read.
    Raises ScanEnded."""
    pin = _open_pin(connection, collection_id, index, token)
    kept = connection.execute(
        "SELECT ordinal FROM kept WHERE collection_id = ? AND died > ?", (collection_id, pin.index)
    )
    both = live | BitMap([ordinal for (ordinal,) in kept])
    return both & BitMap(range(pin.below)), pin.holdings or None


def _open_pin(connection: apsw.Connection, collection_id: int, index: int, token: int) -> Pin:
    found = connection.execute("SELECT value FROM meta WHERE name = 'pins'").fetchone()
    return decode_pins(None if found is None else bytes(found[0])).find(index, token, collection_id)


def expiries(
    connection: apsw.Connection, collection_id: int, index: int, token: int, documents: Sequence[StoredDocument]
) -> dict[int, int]:
    """When documents that an open pin sees expire, by ordinal. Raises ScanEnded."""
    _open_pin(connection, collection_id, index, token)
    found: dict[int, int] = {}
    for document in documents:
        for table in ("ids", "kept"):
            row = connection.execute(
                f"SELECT expires FROM {table} WHERE collection_id = ? AND id = ? AND ordinal = ?",
                (collection_id, document.id, document.ordinal),
            ).fetchone()
            if row is not None:
                found[document.ordinal] = row[0]
                break
    return found


def graves(connection: apsw.Connection, collection_id: int, upto: int) -> list[int]:
    """Ordinals up to `upto` whose documents were deleted or replaced, and whose rows are not purged yet."""
    base = row_id(collection_id, 0)
    found = connection.execute("SELECT row, what FROM graves WHERE row BETWEEN ? AND ?", (base, base + upto))
    return [row - base for row, what in found if what & DEAD_DOCUMENT]
