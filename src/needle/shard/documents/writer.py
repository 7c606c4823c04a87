"""What a replica writes into its SQLite file: batches of log entries, checkpoints, and the purge of what is dead.

A batch first waits in memory and is committed together with later ones: when somebody is about to read, when there are
many, when no more come (server/replica.py), or at a checkpoint. For a commit costs a dozen system calls and a page of
each table, whatever is in it. A crash loses what waits, as a power loss loses the WAL's tail: the log replays both.

Invariants:
- One commit takes whole batches, and the applied index, term and configuration behind the last of them.
- `find` and `newest` know the batches that wait. Every other read comes after a `save` (DocumentStore.reading).
- After a failed commit nothing is committed any more: what memory holds may not be what the file holds.

It must not know what commands mean, faiss, or Raft.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from pyroaring import BitMap

from needle.base.errors import CorruptDocuments, StorageError
from needle.base.file_errors import SHORTAGES
from needle.shard.disk import ReplicaDisk, disk_errors
from needle.shard.documents import purging
from needle.shard.documents.purging import Held
from needle.shard.documents.records import (
    INDEXING,
    ORDINAL_BITS,
    DocRef,
    DocumentRow,
    Doomed,
    StoredDocument,
    WriteSet,
    row_id,
)
from needle.shard.documents.row_check import verify_image_file
from needle.shard.documents.sqlite_file import open_writer
from needle.shard.documents.table_rows import applied_rows, collection_row, found_waiting, id_rows
from needle.shard.documents.wal_check import Seen, WalCheck

log = logging.getLogger("needle.shard")

T = TypeVar("T")

CHUNK: Final = 512
"""Ids of one statement."""
WAITING_BYTES: Final = 1 << 20
"""As much may wait, and `Limits.commit_rows_max` rows: it bounds what a crash has to replay, and for how long a commit
delays an apply."""


STEP_PAGES: Final = 128
SPARE_PAGES: Final = 1024
"""Pages (of 4 KiB) that are given back in one step, and that may stay free while writes go on."""


def padded(items: Sequence[Any]) -> Sequence[Any]:
    """Padded to a power of two by repeating the last, so that few different IN (...) statements are compiled."""
    size = 1
    while size < len(items):
        size *= 2
    return [*items, *[items[-1]] * (size - len(items))]


class DocumentWriter:
    """The one connection that writes, shared by apply, checkpoint and purge, which may come from different threads;
    `save` may come from any."""

    def __init__(
        self,
        path: str,
        disk: ReplicaDisk,
        failpoint: Callable[[str], None],
        rows_max: int,
        on_damage: Callable[[CorruptDocuments], None] = lambda _: None,
    ) -> None:
        """Open or create the file. rows_max: Limits.commit_rows_max. on_damage: told of every CorruptDocuments that
        a later call raises. Raises UnsupportedFormat, CorruptDocuments or DiskFailed."""
        self.path = path
        self._disk = disk
        self._failpoint = failpoint
        self._rows_max = rows_max
        self._on_damage = on_damage
        self._waiting: WriteSet | None = None
        self._newest: dict[int, DocumentRow] = {}
        self._buried: list[tuple[int, int]] = []
        """The documents that wait, by row; none once a commit has found no room. Replaced when they are committed."""
        self._failed: BaseException | None = None
        self._lock = threading.Lock()
        self._wal = WalCheck(path)
        self._seen: Seen | None = None
        """What `check_wal` compared for the checkpoint that follows it."""
        self._looked_at = -1
        """The row of graves behind which `doomed` goes on, while some are kept for scans."""
        with disk_errors(path):
            self._connection = open_writer(path, disk, verify_image_file)

    def close(self) -> None:
        """Commit what waits, if that is possible, and close the connection. Idempotent."""
        with self._alone():
            try:
                if self._failed is None:
                    self._save()
            except (StorageError, *SHORTAGES) as error:
                # Nothing is lost by it, and who closes because of a failure has that one to report.
                log.warning("%s: what waited was not committed, the Raft log will bring it back: %s", self.path, error)
            finally:
                self._connection.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            with self._lock, disk_errors(self.path, self._connection):
                yield
        except CorruptDocuments as error:
            self._on_damage(error)
            raise

    # --- batches of log entries --------------------------------------------------------------------------------------
    def write(self, changes: WriteSet, *, may_wait: bool) -> None:
        """Make one batch of entries part of the state. Not durable yet (module docstring). Raises StorageError."""
        with self._alone():
            self._check()
            hides = self.hides
            self._buried = changes.graves  # before any read can see it
            if self._waiting is None:
                self._waiting = changes
            else:
                self._waiting.merge(changes)
            many = self._waiting.rows >= self._rows_max or self._waiting.size >= WAITING_BYTES
            if many or changes.rare or not may_wait:
                try:
                    self._save()
                except SHORTAGES as error:
                    log.error("%s: what is applied waits to be committed: %s", self.path, error)
            elif not hides:
                self._newest.update((row[0], row) for row in changes.documents)

    def write_at_once(self, changes: WriteSet) -> None:
        """The same, of a bulk load: committed behind what waits, or not at all. It never waits itself, so that no read
        waits for it: they see what was before. Raises StorageError; a shortage with nothing of it changed."""
        with self._alone():
            self._save()
            self._commit_whole(changes)
            self._failpoint("apply-after-commit")

    def buried(self, collection_id: int) -> BitMap:
        """The ordinals of a collection whose rows died with the newest write: reads may see it before memory has it."""
        base = row_id(collection_id, 0)
        return BitMap(row - base for row, _ in self._buried if base <= row < base + (1 << ORDINAL_BITS))

    @property
    def waits(self) -> bool:
        """Whether there is something to `save`; so it stays after a commit that failed."""
        return self._waiting is not None

    def save(self) -> None:
        """Have every connection see what was written. Raises StorageError."""
        if self._waiting is not None:
            with self._alone():
                try:
                    self._save()
                except SHORTAGES:
                    if self._waiting is None or self._waiting.size:
                        raise
                    # Entries without a command (a new leader's) change nothing that a reader looks at.

    def save_up_to(self, collection_id: int, row: int) -> None:
        """The same for the documents of a collection up to this row: a search need not wait for the commits of a bulk
        load if it has found older ones."""
        waiting = self._waiting
        if waiting is not None and row >= waiting.first_rows.get(collection_id, row + 1):
            self.save()

    def newest(self, collection_id: int, ordinals: Sequence[int], *, metadata: bool) -> dict[int, StoredDocument]:
        """Those of these documents that wait, and need not be committed to be read; without their vectors. Waits for
        nothing. The others are in the file, or want `save_up_to`."""
        newest, base = self._newest, row_id(collection_id, 0)
        if not newest or self._failed is not None:
            return {}
        found = ((ordinal, newest.get(base | ordinal)) for ordinal in ordinals)
        return {at: StoredDocument(row[1], at, row[2], row[3] if metadata else b"") for at, row in found if row}

    @property
    def hides(self) -> bool:
        """Whether there are documents that have to be committed before anything of them is read."""
        waiting = self._waiting
        return waiting is not None and len(self._newest) < len(waiting.documents)

    def _check(self) -> None:
        if isinstance(self._failed, StorageError):
            raise self._failed
        if self._failed is not None:
            raise StorageError(f"{self.path}: an earlier commit failed ({self._failed!r}); restart the node")

    def _save(self) -> None:
        self._check()
        if self._waiting is None:
            return
        try:
            self._commit_whole(self._waiting)
        except SHORTAGES:
            self._newest = {}
            raise  # it was rolled back, and waits on: the next attempt may find room
        # Only now: whoever sees that nothing waits must find everything in the file.
        self._waiting, self._newest = None, {}
        self._failpoint("apply-after-commit")

    def _commit_whole(self, changes: WriteSet) -> None:
        """Or nothing of it, for want of room; after any other failure nothing is committed any more."""
        try:
            with disk_errors(self.path, self._connection):
                self._commit(changes)
        except SHORTAGES:
            raise
        except BaseException as error:
            self._failed = error
            raise

    def _commit(self, changes: WriteSet) -> None:
        run, many = self._connection.execute, self._connection.executemany
        run("BEGIN IMMEDIATE")
        try:
            self._write_documents(changes)
            if changes.collections:
                many(
                    "INSERT OR REPLACE INTO collections VALUES (?, ?, ?, ?, ?)",
                    map(collection_row, changes.collections.values()),
                )
            for collection_id in changes.removed:
                run("DELETE FROM collections WHERE id = ?", (collection_id,))
                run("DELETE FROM segments WHERE collection_id = ?", (collection_id,))
                run("DELETE FROM meta WHERE name = ?", (f"{INDEXING}{collection_id}",))
                run("INSERT OR IGNORE INTO dropped VALUES (?)", (collection_id,))
            for collection_id, manifest in changes.manifests.items():
                run("DELETE FROM segments WHERE collection_id = ?", (collection_id,))
                many("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)", map(msgspec.structs.astuple, manifest))
            if changes.sessions:
                many("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)", changes.sessions.values())
            self._write_answers(changes)
            if changes.sessions_removed:
                gone = [(session,) for session in changes.sessions_removed]
                many("DELETE FROM sessions WHERE id = ?", gone)
                many("DELETE FROM answers WHERE session = ?", gone)
            many("UPDATE meta SET value = ? WHERE name = ?", applied_rows(changes))
            for name in ("holdings", "pins", "catalog"):
                if (value := getattr(changes, name)) is not None:
                    run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
            for collection_id, state in changes.indexing.items():
                run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"{INDEXING}{collection_id}", state))
            self._failpoint("apply-before-commit")
            run("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _write_answers(self, changes: WriteSet) -> None:
        many = self._connection.executemany
        forgotten = [key for key, answer in changes.answers.items() if answer is None]
        if forgotten:
            many("DELETE FROM answers WHERE session = ? AND seq = ?", forgotten)
        if len(forgotten) < len(changes.answers):
            kept = ((*key, answer) for key, answer in changes.answers.items() if answer is not None)
            many("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", kept)

    def _write_documents(self, changes: WriteSet) -> None:
        many = self._connection.executemany
        if changes.documents:
            many("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", changes.documents)
        if changes.vectors:
            many("INSERT INTO vectors VALUES (?, ?)", changes.vectors)
        for block in changes.loaded() if changes.loaded is not None else ():
            many("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", block.documents)
            many("INSERT INTO vectors VALUES (?, ?)", block.vectors)
            many("INSERT INTO ids VALUES (?, ?, ?, ?, ?, ?, ?)", block.ids)
        removed = [key for key, ref in changes.ids.items() if ref is None]
        if removed:
            many("DELETE FROM ids WHERE collection_id = ? AND id = ?", removed)
        if len(removed) < len(changes.ids):
            many("INSERT OR REPLACE INTO ids VALUES (?, ?, ?, ?, ?, ?, ?)", id_rows(changes))
        if changes.graves:
            many(
                "INSERT INTO graves VALUES (?, ?) ON CONFLICT (row) DO UPDATE SET what = what | excluded.what",
                changes.graves,
            )
        if changes.kept:
            many("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?)", changes.kept)

    def find(self, collection_id: int, ids: Sequence[str]) -> dict[str, DocRef]:
        """The current versions of `ids`, as of the last batch written; absent ids are left out."""
        found: dict[str, DocRef] = {}
        with self._alone():
            if self._waiting is not None:
                ids = found_waiting(self._waiting, collection_id, ids, found)
            for start in range(0, len(ids), CHUNK):
                part = padded(ids[start : start + CHUNK])
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(
                    "SELECT id, ordinal, version, hash, vector, expires FROM ids "
                    f"WHERE collection_id = ? AND id IN ({marks})",
                    (collection_id, *part),
                )
                for id_, *ref in rows:
                    found[id_] = DocRef(*ref)
        return found

    # --- checkpoints and purges --------------------------------------------------------------------------------------
    def wal_bytes(self) -> int:
        """How long the write-ahead log is."""
        with disk_errors(self.path):
            wal = f"{self.path}-wal"
            return os.path.getsize(wal) if os.path.exists(wal) else 0

    def check_wal(self, *, save: bool = True) -> None:
        """Compare what a checkpoint would move with what was written; `save` as there. Raises CorruptDocuments."""
        with self._alone():
            if save:
                self._save()
            self._seen = self._wal.run(self._connection)

    def checkpoint(self, *, save: bool = True) -> int:
        """Make everything written durable; returns its applied index. On return the WAL is empty, unless somebody
        reads for long. save: what waits to be committed, too; without it this needs no room but for what is new in the
        file."""
        with self._alone():
            if save:
                self._save()
            seen, self._seen = self._seen, None
            self._wal.run(self._connection, seen)
            index = int(self._connection.execute("SELECT value FROM meta WHERE name = 'index'").fetchone()[0])
            busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:  # a long read (an export) holds the WAL: then the WAL itself has to be durable
                self._disk.sync(self.path + "-wal")
            self._disk.sync(self.path)
        return index

    def doomed(self, at_least: int, rows_max: int, held: Callable[[], Held] = dict) -> Doomed:
        """What `purge` may delete: superseded and deleted rows, the first `rows_max` of them, unless there are fewer
        than `at_least`; and dropped collections; as of now. held: by collection, ordinals of rows that are to stay."""
        with self._alone():
            self._save()
            # Counted first: what stays for now is looked at often, and apply waits meanwhile.
            some = "SELECT count(*) FROM (SELECT 1 FROM graves LIMIT ?)"
            enough = rows_max > 0 and self._connection.execute(some, (at_least,)).fetchone()[0] >= at_least
            rows, self._looked_at = (
                purging.unpinned(self._connection, self._looked_at, rows_max, held())
                if enough
                else ([], self._looked_at)
            )
            dropped = self._connection.execute("SELECT collection_id FROM dropped ORDER BY 1").fetchall()
        return Doomed(rows, [collection_id for (collection_id,) in dropped])

    def release(self, oldest: int | None, rows_max: int) -> bool:
        """See purging.release, in one transaction."""
        with self._alone():
            self._save()
            return self._transaction(lambda: purging.release(self._connection, oldest, rows_max))

    def purge(self, doomed: Doomed, rows_max: int) -> bool:
        """Delete up to rows_max doomed rows in one transaction; False once nothing is left. The caller makes sure that
        no search reads them. When it happens differs between replicas, and nothing else depends on it."""
        with self._alone():
            self._transaction(lambda: purging.purge(self._connection, doomed, rows_max))
        return bool(doomed.rows or doomed.collections)

    def give_back(self, *, all_of_it: bool) -> bool:
        """Give some pages that hold nothing back to the file system, once the file is checkpointed; False if there are
        none, or, unless `all_of_it`, few enough to be used again."""
        with self._alone():
            self._save()
            free = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
            pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
            if free <= (0 if all_of_it else max(SPARE_PAGES, pages // 8)):
                return False
            self._connection.execute(f"PRAGMA incremental_vacuum({STEP_PAGES})").fetchall()
        return True

    def _transaction(self, work: Callable[[], T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            done = work()
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        return done
