"""`needle repair`: commands on the data directory of a node that is stopped."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

from needle.base.config import refuse
from needle.base.ids import group_name
from needle.cli.common import console
from needle.multiraft import offline
from needle.multiraft.log.wal_store import WalStore
from needle.multiraft.ports import KeyValueStore
from needle.server.files import NODE_FILE, log_directory

T = TypeVar("T")
Directory = Annotated[str, typer.Argument(metavar="DATA_DIR", help="The data directory of a node that is stopped.")]


def _on(data_dir: str, work: Callable[[KeyValueStore], T]) -> T:
    where = log_directory(data_dir)
    if not os.path.isfile(os.path.join(data_dir, NODE_FILE)) or not os.path.isdir(where):
        allowed = f"the data directory of a node, which has a file `{NODE_FILE}` and a directory `log`"
        raise refuse("DATA_DIR", data_dir, allowed)
    store = WalStore(where, salt=lambda: secrets.randbits(64))
    try:
        return work(store)
    finally:
        store.close()


def term(data_dir: Directory) -> None:
    """Lower a term that is too high for another election. Stop all nodes, run it on each of their directories."""
    lowered = _on(data_dir, offline.lower_terms)
    for found in lowered:
        console.print(f"{group_name(found.group)}: term {found.before} is {found.after} now")
    if not lowered:
        console.print("every term is one that elections can go on from: nothing was changed")


def resume(data_dir: Directory) -> None:
    """Let replicas go on that stopped because others contradict what they hold as committed: their data counts now."""
    cleared = _on(data_dir, offline.resume)
    for group, reason in sorted(cleared.items()):
        console.print(f"{group_name(group)} goes on; it had stopped: {reason}")
    if not cleared:
        console.print("no replica here had stopped because of a contradiction: nothing was changed")
