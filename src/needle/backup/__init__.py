"""Backups of a running cluster, and bringing one back: over the client, to a directory or a bucket (docs/backup.md).

A layer above the client: it knows no server. What a backup is made of is in format.py; where it lies, in store.py.
"""

from needle.backup.archive_comparing import ComparedShard
from needle.backup.archive_looking import Archived, list_archives
from needle.backup.archiving import archive
from needle.backup.creating import Made, create
from needle.backup.format import Manifest
from needle.backup.index_waiting import wait_indexed
from needle.backup.instant import restore_at
from needle.backup.keeping import Listed, Verified, list_backups, prune, verify
from needle.backup.places import indexes_at
from needle.backup.restoring import Restored, restore
from needle.backup.store import Store, open_store

__all__ = [
    "Archived",
    "ComparedShard",
    "Listed",
    "Made",
    "Manifest",
    "Restored",
    "Store",
    "Verified",
    "archive",
    "create",
    "indexes_at",
    "list_archives",
    "list_backups",
    "open_store",
    "prune",
    "restore",
    "restore_at",
    "verify",
    "wait_indexed",
]
