"""Opens the write-ahead log for tests."""

from __future__ import annotations

import random

from needle.multiraft.wal_store import WalStore

_salts = random.Random(11)


def open_wal(directory: str, *, size_max: int = 1 << 28) -> WalStore:
    return WalStore(directory, size_max=size_max, salt=lambda: _salts.getrandbits(64), segment_bytes=1 << 20)
