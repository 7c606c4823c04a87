"""Where an archiver goes on: what a store has already of a cluster and its shards. Blocking; it must not know
clusters."""

from __future__ import annotations

import contextlib
import logging

from needle.backup.archive_format import CATALOG, FORMERS_MAX, Base, told_of
from needle.backup.archive_reading import (
    bases_of,
    catalogs_of,
    chain,
    chunks_of,
    number_of,
    read_base,
    read_catalog,
    read_chunk,
    read_head,
)
from needle.backup.index_archiving import indexed
from needle.backup.shard_archive import ShardArchive
from needle.backup.store import Store
from needle.base.errors import CorruptBackup
from needle.protocol.commands import is_load

_log = logging.getLogger("needle.backup")


def last_told(store: Store, founding: int) -> tuple[object, list[int]]:
    """What the newest archived topology says, None if it cannot be read, or is lost; and the instants of the last
    records, ascending, with those that others name and that are not there."""
    names, told, records = catalogs_of(store, founding), None, set[int]()
    with contextlib.suppress(CorruptBackup):
        records |= {*read_head(store, founding).named}
    newest = number_of(names[-1], CATALOG) if names else 0
    if names:
        records.add(newest)
        with contextlib.suppress(CorruptBackup):
            record = read_catalog(store, names[-1])
            records |= {*record.named}
            told = told_of(record.topology)
    if newest < max(records, default=0):
        told = None
    return told, sorted(records)[-FORMERS_MAX:]


def known_of(store: Store, founding: int, shard: int) -> ShardArchive:
    """What there is of a shard. A damaged state is a place to go on from, and is copied again."""
    archive = ShardArchive(shard)
    bases = bases_of(store, founding, shard)
    if bases:
        try:
            base = read_base(store, bases[-1][1])
        except CorruptBackup as error:
            _log.error("%s: the state of shard %d is copied again", error.message, shard)
            base = Base(index=bases[-1][0], at=0, files=[])
        archive.begin_at(base)
        archive.begun = base.at if len(bases) == 1 else 0  # killed before others had heard of it
        *_, last = (None, *chain(chunks_of(store, founding, shard), base.index))
        if last is not None:
            archive.read = archive.kept = last.last
            with contextlib.suppress(CorruptBackup):
                end = read_chunk(store, last).entries[-1]
                archive.term = end.term
                if is_load(end.data):
                    archive.loaded, archive.lacks_state = end.index, True
    archive.published, archive.indexed = archive.kept, indexed(store, founding, shard)
    return archive
