"""Opens the write-ahead log for tests."""

from __future__ import annotations

import random

from needle.multiraft.log.wal_store import WalStore

_salts = random.Random(11)


def open_wal(directory: str, *, segment_bytes: int = 1 << 20) -> WalStore:
    return WalStore(directory, salt=lambda: _salts.getrandbits(64), segment_bytes=segment_bytes)
