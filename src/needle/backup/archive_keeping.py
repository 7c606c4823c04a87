"""Looks after the archives of a target: checking them, and deleting what leads to no instant that is still wanted.

Blocking; it must not know clusters. Invariant: what is needed for an instant that stays is deleted last or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from needle.backup.archive_format import CATALOG, HEAD, TARGET, Base, IndexSet, directory, encode
from needle.backup.archive_looking import look_at
from needle.backup.archive_reading import (
    archived_shards,
    bases_of,
    catalogs_of,
    chunks_of,
    clusters,
    files_of,
    index_sets_of,
    number_of,
    read_base,
    read_catalog,
    read_chunk,
    read_index_set,
    read_target,
    undisturbed,
)
from needle.backup.replaying import read_block
from needle.backup.store import Store
from needle.base.errors import CorruptBackup, InvalidArgument, StorageError, invalid

GOES_ON_SECONDS: Final = 3600.0
BUILT_AGAIN: Final = ", of index files: a restore builds these again"


def check_archives(store: Store, known: dict[str, int]) -> Iterator[str]:
    """Read every file of all archives: a line for each that is missing or damaged. known: is told the sizes of files,
    and what is in it is not read again."""
    for founding in clusters(store):
        look = look_at(store, founding)
        if look is not None:
            known |= dict.fromkeys(look.files, 0)
            yield from look.damage
            problems = undisturbed(store, founding, partial(_damaged, store, founding, known), bool)
            sizes = files_of(store, directory(founding))
            known |= {name: stat.size for name, stat in sizes.items() if name in known}
            yield from problems if sizes else ()


def _damaged(store: Store, founding: int, known: dict[str, int]) -> list[str]:
    found = [*_tried(known, f"{directory(founding)}{TARGET}", read_target, store, founding)]
    for shard in archived_shards(store, founding):
        found += _check_shard(store, founding, shard, known)
    return found


def _check_shard(store: Store, founding: int, shard: int, known: dict[str, int]) -> Iterator[str]:
    for _, name in bases_of(store, founding, shard):
        yield from _check_pieces(store, name, read_base, known)
    for _, name in index_sets_of(store, founding, shard):
        yield from _tried(known, name, read_index_set, store, name, told=BUILT_AGAIN)
        yield from _check_pieces(store, name, read_index_set, known, told=BUILT_AGAIN)
    for span in chunks_of(store, founding, shard):
        problems = list(_tried(known, span.name, read_chunk, store, span))
        if problems and span.name in files_of(
            store, directory(founding, shard)
        ):  # else it was joined with others meanwhile
            yield from problems


def _check_pieces(
    store: Store, name: str, read: Callable[[Store, str], Base | IndexSet], known: dict[str, int], told: str = ""
) -> Iterator[str]:
    """Of what a file names; that the file itself cannot be read is told elsewhere."""
    try:
        pieces = read(store, name).pieces()
    except StorageError:
        return
    for ref in pieces:
        if ref.name not in known:
            yield from _tried(known, ref.name, read_block, store, ref, told=told)
            known[ref.name] = ref.size


def _tried(known: dict[str, int], name: str, read: object, *arguments: object, told: str = "") -> Iterator[str]:
    try:
        read(*arguments)  # type: ignore[operator]
        known.setdefault(name, 0)
    except StorageError as error:
        yield f"{error.message}{told}"


def begin_notes(store: Store, deleted: set[str]) -> list[tuple[str, bytes]]:
    """What has the oldest record of the catalog, and the oldest state of each shard, that stay say that the archive
    begins there, whatever others name: files to be put before `deleted` are deleted, so that these are not missing,
    also if that is broken off. Raises CorruptBackup if one cannot be read."""
    notes = list[tuple[str, bytes]]()
    for founding in clusters(store):
        names = catalogs_of(store, founding)
        stay = [name for name in names if name not in deleted]
        if stay and len(stay) < len(names):
            oldest = read_catalog(store, stay[0])
            if not oldest.begins:
                notes.append((stay[0], encode(msgspec.structs.replace(oldest, former=0, formers=[], begins=True))))
        for shard in archived_shards(store, founding):
            of_shard = files_of(store, directory(founding, shard))
            states = [name for _, name in bases_of(store, founding, shard) if name not in deleted]
            if states and not deleted.isdisjoint(of_shard):
                first = read_base(store, states[0])
                if not first.begins:
                    notes.append((states[0], encode(msgspec.structs.replace(first, begins=True))))
    return notes


def outdated(store: Store, before: int) -> list[str]:
    """Files that lead to no instant from `before` on (microseconds since 1970), in the order in which they are to be
    deleted. Raises CorruptBackup if a state cannot be read."""
    found: list[str] = []
    for founding in clusters(store):
        shards = archived_shards(store, founding)  # what comes later than this is named by a later catalog
        names = catalogs_of(store, founding)
        old = [name for name in names if number_of(name, CATALOG) <= before]
        needed = _served(store, names[len(old[:-1]) :])
        for shard in shards:
            bases = bases_of(store, founding, shard)
            chunks = chunks_of(store, founding, shard)
            sets = index_sets_of(store, founding, shard)
            if needed is not None and shard not in needed:  # it was retired, and no instant that stays needs it
                found += [name for _, name in [*bases, *sets]] + [span.name for span in chunks]
                continue
            first = next((one for one in reversed(bases) if read_base(store, one[1]).since <= before), None)
            if first is not None:
                found += [name for index, name in bases if index < first[0]]
                found += [span.name for span in chunks if span.last <= first[0]]
                found += [name for _, name in [one for one in sets if one[0] <= first[0]][:-1]]
        found += old[:-1]
    return found


def _served(store: Store, names: list[str]) -> set[int] | None:
    """The shards that these catalogs name; None if there is none of them. Raises CorruptBackup."""
    if not names:
        return None
    return {info.shard for name in names for info in read_catalog(store, name).topology.serving}


def whole_archive(store: Store, archive: str, now: int) -> list[str]:
    """All files of the archive of one cluster, by its founding in hex, in the order in which they are to be deleted:
    what says that instants can be had goes first. Raises InvalidArgument if there is none, or it goes on: something was
    archived within the last hour by this machine's clock (microseconds since 1970)."""
    found = {f"{founding:x}": founding for founding in clusters(store)}
    if archive not in found:
        names = f"one of the clusters that are archived at this target: {', '.join(found)}"
        raise invalid("drop_archive", archive, names if found else "nothing: no logs are archived at this target")
    files = files_of(store, directory(found[archive]))
    newest = max(stat.modified for stat in files.values())
    if now / 1e6 - newest < GOES_ON_SECONDS:
        raise InvalidArgument(
            f"archive {archive} was written to within the last hour, so it may go on, and nothing was deleted: "
            "end its archiver (`needle backup archive`), and drop it an hour later",
            field="drop_archive",
        )
    head = f"{directory(found[archive])}{HEAD}"
    return sorted(files, key=lambda name: (name != head, not name.endswith(CATALOG), name))


def pieces_of_archives(store: Store, without: set[str]) -> set[str]:
    """The pieces that states and index files name, but for those in `without`. Raises CorruptBackup for a damaged
    state. A damaged set of index files names nothing: no restore uses it any more."""
    found: set[str] = set()
    for founding in clusters(store):
        for shard in archived_shards(store, founding):
            for _, name in bases_of(store, founding, shard):
                found |= set() if name in without else {piece.name for piece in read_base(store, name).pieces()}
            for _, name in index_sets_of(store, founding, shard):
                with suppress(CorruptBackup):
                    found |= set() if name in without else {one.name for one in read_index_set(store, name).pieces()}
    return found
