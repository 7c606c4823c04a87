"""A replica as its parts see it: those that cut its log, fetch its data again and carry its snapshots (group.py)."""

from __future__ import annotations

import asyncio
from typing import Protocol

from needle.base.ids import GroupId
from needle.multiraft.log.group_log import GroupLog
from needle.multiraft.ports import StateMachine
from needle.raft.raft import Raft


class Replica(Protocol):
    """machine_lock: held by an install; no apply begins then. image_lock: held by a checkpoint, an export, an install.
    closed: it stops, or has stopped."""

    id: GroupId
    raft: Raft
    log: GroupLog
    machine: StateMachine
    machine_lock: asyncio.Lock
    image_lock: asyncio.Lock
    closed: bool

    async def machine_idle(self) -> None:
        """Wait until no entry is being applied. The caller holds the machine's lock, so that none begins then."""
        ...
