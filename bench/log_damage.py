"""`python -m bench.log_damage [trials]`: flips a bit of a Raft log at random, opens it, and counts what becomes of it.

The log is that of a node with 3 groups: HardState, configuration and start of each, 3,000 entries of 10 to 100 bytes
and six of 20 kB (with small entries most of the bytes are the log's own). "put right": the log is again what it was.
"fetched from peers": an entry is damaged, the node starts, does not vote for that group and fetches what it lost.
"does not start": the operator must replace the node.
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from needle.base.errors import CorruptLog
from needle.multiraft.log.log_records import StartRecord
from needle.multiraft.log.log_store import LogStore, LogWrite
from needle.multiraft.log.wal_store import WalStore
from needle.raft.messages import ConfState, Entry, HardState

GROUPS, WRITES, TRIALS = 3, 1000, 50


def _open(directory: Path) -> tuple[WalStore, LogStore]:
    rng = random.Random(7)
    store = WalStore(str(directory), salt=lambda: rng.getrandbits(64), segment_bytes=1 << 18)
    try:
        return store, LogStore(store, node_id="n1", cluster_id="bench")
    except BaseException:
        store.close()
        raise


def _fill(directory: Path) -> None:
    """Write the log as Raft does: small writes, the vote now and then, the beginning compacted."""
    rng = random.Random(3)
    store, logs = _open(directory)
    for number in range(1, WRITES + 1):
        writes = []
        for group in range(GROUPS):
            size = 20_000 if number % 500 == 0 else rng.randint(10, 100)
            entry = Entry(number, 1 + number // 100, 0, rng.randbytes(size))
            state = HardState(entry.term, "n1", number - 1) if number % 10 == 1 else None
            start = ConfState(("n1", "n2", "n3")) if number == 1 else None
            writes.append(LogWrite(log=logs.group(group), entries=(entry,), hard_state=state, bootstrap=start))
            if number % 400 == 0:
                writes.append(LogWrite(log=logs.group(group), compact=StartRecord(number - 300, entry.term)))
        logs.write(writes)
        logs.note(writes)
    store.close()


def _flip(directory: Path, rng: random.Random) -> None:
    files = sorted(path for path in directory.glob("*.wal"))
    sizes = [len(path.read_bytes().rstrip(b"\0")) for path in files]
    path, size = rng.choices(list(zip(files, sizes, strict=True)), weights=sizes)[0]
    data = bytearray(path.read_bytes())
    data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def trial(origin: Path, copy: Path, rng: random.Random) -> str:
    """Flip one bit of a copy and open it."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(origin, copy)
    _flip(copy, rng)
    try:
        store, logs = _open(copy)
    except CorruptLog:
        return "does not start"
    damaged = any(logs.group(group).damage for group in range(GROUPS))
    store.close()
    if damaged:
        return "fetched from peers"
    return "put right" if getattr(store, "corrected_bits", 0) else "hit nothing that is in force"


def main() -> None:
    logging.getLogger("needle").setLevel(logging.CRITICAL)
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as root:
        origin = Path(root, "origin")
        _fill(origin)
        found = Counter(trial(origin, Path(root, "copy"), rng) for _ in range(trials))
    for what, count in found.most_common():
        sys.stdout.write(f"{count:4} of {trials}: {what}\n")


if __name__ == "__main__":
    main()
