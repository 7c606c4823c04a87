"""What a replica's file no longer needs: rows of versions that are dead, unless a pinned scan may see them, and all of
a dropped collection.

Whoever calls has begun the transaction, and makes sure that no search reads what goes. When it happens differs between
replicas, and nothing else depends on it. It must not know what commands mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import apsw
from pyroaring import BitMap

from needle.shard.documents.records import DEAD_DOCUMENT, DEAD_VECTOR, ORDINAL_BITS, Doomed, row_id

Held = Mapping[int, BitMap]
"""By collection, ordinals of rows."""
_EVER: Final = 1 << 62
_PLACE: Final = f"collection_id = row >> {ORDINAL_BITS} AND {{}} = row & {(1 << ORDINAL_BITS) - 1}"
_LOOKED_AT: Final = (
    f"SELECT row, what, EXISTS (SELECT 1 FROM kept WHERE {_PLACE.format('ordinal')}) "
    f"OR EXISTS (SELECT 1 FROM kept WHERE {_PLACE.format('vector')}) FROM graves WHERE row > ? ORDER BY row LIMIT ?"
)


def unpinned(connection: apsw.Connection, after: int, rows_max: int, held: Held) -> tuple[list[tuple[int, int]], int]:
    """Rows of graves that no pinned scan sees and that are not held, and behind which row to go on the next time. held:
    ordinals by collection. While some are kept, those of the next `rows_max` only: what is looked at stays bounded,
    however much is kept."""
    if not held and not connection.execute("SELECT 1 FROM kept LIMIT 1").fetchone():
        return connection.execute("SELECT row, what FROM graves ORDER BY row LIMIT ?", (rows_max,)).fetchall(), -1
    rows = connection.execute(_LOOKED_AT, (after, rows_max)).fetchall()
    free = [(row, what) for row, what, kept in rows if not kept and not _is_held(row, held)]
    return free, rows[-1][0] if len(rows) == rows_max else -1


def _is_held(row: int, held: Held) -> bool:
    ordinals = held.get(row >> ORDINAL_BITS)
    return ordinals is not None and row & ((1 << ORDINAL_BITS) - 1) in ordinals


def release(connection: apsw.Connection, oldest: int | None, rows_max: int) -> bool:
    """No longer keep up to `rows_max` versions that died before the oldest pin was opened (None: none is open); whether
    there were any."""
    before = oldest if oldest is not None else _EVER
    some = "SELECT collection_id, id, ordinal FROM kept WHERE died <= ? LIMIT ?"
    rows = connection.execute(some, (before, rows_max)).fetchall()
    _delete_kept(connection, rows)
    return bool(rows)


def purge(connection: apsw.Connection, doomed: Doomed, rows_max: int) -> None:
    """Delete up to `rows_max` of what is doomed, and take it off there."""
    if doomed.rows:
        part = doomed.rows[:rows_max]
        _delete_rows(connection, "documents", [row for row, what in part if what & DEAD_DOCUMENT])
        _delete_rows(connection, "vectors", [row for row, what in part if what & DEAD_VECTOR])
        # Unless more of it has died since.
        connection.executemany("DELETE FROM graves WHERE row = ? AND what = ?", part)
        del doomed.rows[:rows_max]
    elif doomed.collections and not _purge_dropped(connection, doomed.collections[0], rows_max):
        connection.execute("DELETE FROM dropped WHERE collection_id = ?", (doomed.collections.pop(0),))


def _delete_rows(connection: apsw.Connection, table: str, rows: Sequence[int]) -> None:
    connection.executemany(f"DELETE FROM {table} WHERE row = ?", [(row,) for row in rows])


def _delete_kept(connection: apsw.Connection, rows: Sequence[tuple[int, str, int]]) -> None:
    connection.executemany("DELETE FROM kept WHERE collection_id = ? AND id = ? AND ordinal = ?", rows)


def _purge_dropped(connection: apsw.Connection, collection_id: int, rows_max: int) -> bool:
    """Delete some rows of a dropped collection; False if it had none."""
    run = connection.execute
    low, high = row_id(collection_id, 0), row_id(collection_id + 1, 0)
    rows = []
    for table in ("documents", "vectors", "graves"):
        some = f"SELECT row FROM {table} WHERE row >= ? AND row < ? LIMIT ?"
        found = run(some, (low, high, rows_max)).fetchall()
        _delete_rows(connection, table, [row for (row,) in found])
        rows += found
    names = run("SELECT id FROM ids WHERE collection_id = ? LIMIT ?", (collection_id, rows_max)).fetchall()
    pairs = [(collection_id, name) for (name,) in names]
    connection.executemany("DELETE FROM ids WHERE collection_id = ? AND id = ?", pairs)
    some = "SELECT collection_id, id, ordinal FROM kept WHERE collection_id = ? LIMIT ?"
    kept = run(some, (collection_id, rows_max)).fetchall()
    _delete_kept(connection, kept)
    return bool(rows or names or kept)
