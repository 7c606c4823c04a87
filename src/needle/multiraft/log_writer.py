"""Makes durable what the groups of a node want durable: one transaction at a time, of all that waits.

While nothing is written, a node that leads anything writes now and then, so that a disk that hangs is noticed before
somebody waits for it.

Invariant: whoever waits is told after the transaction returned and was noted in the logs, never before; without room on
the disk it is tried again, and after any other error the node stops. It must not know turns, nor more of groups than
that this node leads some.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from needle.base.file_errors import SHORTAGES
from needle.base.ids import GroupId
from needle.base.runtime import Clock, Pool
from needle.multiraft.config import HostConfig
from needle.multiraft.counters import Counters
from needle.multiraft.group import Group, Work
from needle.multiraft.group_snapshots import NO_ROOM_SECONDS
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_store import LivesWrite, LogStore
from needle.raft.state import FAR, Role

_log = logging.getLogger("needle.multiraft")
Extra = tuple[LogWrite | LivesWrite, asyncio.Future[None]]


class WriterHost(Protocol):
    """What this needs of its host."""

    config: HostConfig
    counters: Counters
    stopped: bool

    @property
    def clock(self) -> Clock: ...
    async def durable(self, write: LogWrite | LivesWrite) -> None: ...
    def guarded(self, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
        """Run work that nobody awaits; its failure stops the node."""
        ...

    def background_failed(self, error: BaseException) -> None: ...
    def is_news(self, *what: object) -> bool: ...
    def persisted(self, work: list[Work]) -> None:
        """The writes of these are durable and noted."""
        ...


class LogWriter:
    """See the module. busy: a transaction is in flight. Methods are called on the event loop."""

    def __init__(self, host: WriterHost, store: LogStore, pool: Pool) -> None:
        self.busy = False
        self._waits_since = FAR
        self._wrote = 0.0
        self._host = host
        self._store = store
        self._pool = pool
        self._extra: list[Extra] = []

    def waits_since(self) -> float:
        """When the transaction in flight was handed to the disk; FAR while the disk has none, as while it is waited for
        room on it."""
        return self._waits_since

    def add(self, write: LogWrite | LivesWrite) -> asyncio.Future[None]:
        """Put a write of no loop turn into the next transaction; done once it is durable and noted."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._extra.append((write, future))
        return future

    def begin(self, work: list[Work]) -> list[Extra] | None:
        """What `persist` must write in addition to `work`, soon; None if there is nothing to write at all."""
        if not work and not self._extra:
            return None
        extra, self._extra = self._extra, []
        self.busy = True
        return extra

    def persist(self, work: list[Work], extra: list[Extra]) -> None:
        """Write what `begin` was asked for and answered."""
        writes: list[LogWrite | LivesWrite] = [item.write for item in work]
        writes.extend(write for write, _ in extra)
        quick = not extra and self._host.config.is_quick([entry for write in writes for entry in write.entries])

        def done(_: None, error: BaseException | None) -> None:
            self._waits_since = FAR
            if isinstance(error, SHORTAGES):
                # Nothing was written. Until there is room nothing more is: this node neither votes nor acknowledges.
                if self._host.is_news("write", error.code):
                    _log.error("the Raft log waits: %s", error)
                loop = asyncio.get_running_loop()
                loop.call_later(NO_ROOM_SECONDS, self._host.guarded, self.persist, (work, extra))
            elif error is not None:
                self._host.background_failed(error)
            elif not self._host.stopped:
                self._written(work, extra, writes)

        self._wrote = self._waits_since = self._host.clock.monotonic()
        self._pool.call(done, self._store.write, writes, quick=quick)

    async def probe(self, groups: Mapping[GroupId, Group]) -> None:
        """Write something whenever nothing was written for a while, though this node leads some of these."""
        every = self._host.config.disk_probe
        while True:
            await asyncio.sleep(every)
            idle = not self.busy and self._host.clock.monotonic() - self._wrote >= every
            if idle and any(group.raft.role is Role.LEADER for group in groups.values()):
                await self._host.durable(LivesWrite(again=True))

    def _written(self, work: list[Work], extra: list[Extra], writes: list[LogWrite | LivesWrite]) -> None:
        self._host.counters.persists += 1
        self.busy = False
        self._store.note(writes)
        for _, future in extra:
            if not future.done():
                future.set_result(None)
        self._host.persisted(work)
