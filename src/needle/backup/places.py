"""Which index of each shard's log an instant is."""

from __future__ import annotations

from needle.backup.archive_reading import base_before, catalog_at, check_reach, chosen, entries, founding_of, read_head
from needle.backup.store import Store
from needle.protocol.stamps import stamp


def indexes_at(store: Store, at: int, *, archive: str | None = None) -> dict[int, int]:
    """The index that each shard's log had at an instant (microseconds since 1970): what `restore_at` restores, also
    where it refuses an instant because a clock was put back. archive: as there. Reads the logs since the state before
    the instant. Blocking. Raises InvalidArgument for an instant that is not archived, CorruptBackup."""
    founding = chosen(store, founding_of(archive))
    head, found = read_head(store, founding).shards, dict[int, int]()
    for shard in catalog_at(store, founding, at)[1]:
        found[shard], newest = base_before(store, founding, shard, lambda _: None, at=at, index=None).index, 0
        for one, _ in entries(store, founding, shard, found[shard]):
            newest = max(newest, stamp(one.data))
            if newest > at:
                break
            found[shard] = one.index
        if newest <= at:
            check_reach(store, founding, head.get(shard, (0, 0)), shard, found[shard], at)
    return found
