"""Looks after the archives of a target: checking them, and deleting what leads to no instant that is still wanted.

Blocking; it must not know clusters. Invariant: what is needed for an instant that stays is deleted last or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from needle.backup.archive_format import CATALOG, directory
from needle.backup.archive_reading import (
    archived_shards,
    bases_of,
    catalogs_of,
    chunks_of,
    clusters,
    files_of,
    gaps_of,
    number_of,
    reach,
    read_base,
    read_catalog,
    read_chunk,
    read_head,
)
from needle.backup.replaying import read_block
from needle.backup.store import Store
from needle.base.errors import StorageError


def check_archives(store: Store, known: dict[str, int]) -> Iterator[str]:
    """Read every file of all archives: a line for each that is missing or damaged. known: is told the sizes of files,
    and what is in it is not read again."""
    for founding in clusters(store):
        for name in catalogs_of(store, founding):
            yield from _tried(known, name, read_catalog, store, name)
        try:
            head = read_head(store, founding).shards
        except StorageError as error:
            yield error.message
            head = {}
        for shard in archived_shards(store, founding):
            yield from _check_shard(store, founding, shard, head.get(shard, (0, 0))[0], known)


def _check_shard(store: Store, founding: int, shard: int, kept: int, known: dict[str, int]) -> Iterator[str]:
    bases = bases_of(store, founding, shard)
    for _, name in bases:
        yield from _tried(known, name, read_base, store, name)
        try:
            pieces = read_base(store, name).pieces()
        except StorageError:
            continue
        for ref in pieces:
            if ref.name not in known:
                yield from _tried(known, ref.name, read_block, store, ref)
                known.setdefault(ref.name, ref.size)
    for span in chunks_of(store, founding, shard):
        problems = list(_tried(known, span.name, read_chunk, store, span))
        if problems and span.name in files_of(
            store, directory(founding, shard)
        ):  # else it was joined with others meanwhile
            yield from problems
    chunks = chunks_of(store, founding, shard)
    reached = max([reach(chunks, index) for index, _ in bases], default=0)
    if reached < kept:
        yield f"shard {shard}: entries {reached + 1} to {kept} are missing"
    starts = {index for index, _ in bases}
    for gap, behind in gaps_of(store, founding, shard):
        if behind not in starts:  # else its state was copied, for the log had been cut
            yield gap


def _tried(known: dict[str, int], name: str, read: object, *arguments: object) -> Iterator[str]:
    try:
        read(*arguments)  # type: ignore[operator]
        known.setdefault(name, 0)
    except StorageError as error:
        yield error.message


def outdated(store: Store, before: int) -> list[str]:
    """Files that lead to no instant from `before` on (microseconds since 1970), in the order in which they are to be
    deleted. Raises CorruptBackup if a state cannot be read."""
    found: list[str] = []
    for founding in clusters(store):
        for shard in archived_shards(store, founding):
            bases = bases_of(store, founding, shard)
            first = next((one for one in reversed(bases) if read_base(store, one[1]).since <= before), None)
            if first is not None:
                found += [name for index, name in bases if index < first[0]]
                found += [span.name for span in chunks_of(store, founding, shard) if span.last <= first[0]]
        names = catalogs_of(store, founding)
        old = [name for name in names if number_of(name, CATALOG) <= before]
        found += old[:-1]
    return found


def pieces_of_archives(store: Store, without: set[str]) -> set[str]:
    """The pieces that states name, but for those states that are in `without`. Raises CorruptBackup."""
    return {
        piece.name
        for founding in clusters(store)
        for shard in archived_shards(store, founding)
        for _, name in bases_of(store, founding, shard) if name not in without
        for piece in read_base(store, name).pieces()
    }  # fmt: skip
