"""The snapshot traffic of one group: offering one to peers that the log cannot serve, and taking one from a leader.

Durability order of an install: the files are staged and synced, the pending record is written, the state machine swaps
(durably, atomically), then one transaction moves the log behind the snapshot and clears the record. A crash anywhere
leaves what repair.py finishes or abandons.
Invariant: the core sees an offer only when all its files are here, verified; and they stay until it is installed.
It must not know the group's proposals and readers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from needle.base.errors import CorruptSnapshot, DiskFailed, NeedleError, ReplicaDamaged, StorageError
from needle.base.events import SNAPSHOT_FAILED, SNAPSHOT_INSTALLED, SNAPSHOT_MADE, SNAPSHOT_SENT, tell
from needle.base.file_errors import SHORTAGES
from needle.base.ids import NodeId, group_name
from needle.multiraft.codec import StateRequest, decode_manifest, encode_state_request
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_records import PendingInstall, StartRecord
from needle.multiraft.rebuild import STATE_METHOD, Rebuild
from needle.multiraft.replica import Replica
from needle.multiraft.snapshots.sender import Exported
from needle.multiraft.surroundings import Surroundings
from needle.raft.messages import HardState, Message, Ready, SnapshotMeta
from needle.raft.state import Role

_log = logging.getLogger("needle.multiraft")
FAR = 1 << 64
NO_ROOM_SECONDS = 0.5
"""How long what found no room, or no file handle, waits before it is tried again."""


class SnapshotTraffic:
    """See the module. offering: an export or an offer is under way. floor: the log after it belongs to that export."""

    def __init__(self, group: Replica, host: Surroundings, rebuild: Rebuild) -> None:
        """rebuild: fetches a snapshot of its own if the data is damaged; one is fetched at a time."""
        self.offering = False
        self.floor = FAR
        self._group = group
        self._host = host
        self._rebuild = rebuild
        self._export_lock = asyncio.Lock()
        self._wanting: dict[NodeId, None] = {}
        self._fetch: asyncio.Task[None] | None = None
        self._fetching = b""
        self._staged_index = 0

    @property
    def fetching(self) -> bool:
        """Whether one that was offered is on its way, or here and not installed yet."""
        under_way = self._fetch is not None and not self._fetch.done()
        raft = self._group.raft
        return under_way or self._group.log.pending is not None or raft.applied < self._staged_index <= raft.commit

    def cancel(self) -> None:
        """The group stops: fetch no further. What is staged stays, to be resumed."""
        if self._fetch is not None:
            self._fetch.cancel()

    # --- as the leader ----------------------------------------------------------------------------------------------
    def requested(self, peers: Iterable[NodeId]) -> None:
        """The core wants these peers to get a snapshot."""
        self._wanting.update(dict.fromkeys(peers))
        if not self.offering:
            self.offering = True
            self.floor = self._group.raft.applied  # an image made from now on holds at least that
            self._host.spawn(self._offer())

    async def exported(self, serves: Callable[[Exported], bool]) -> Exported:
        """The snapshot that is here if it `serves`, or a new one in its place. Who asks while one is made waits for it:
        a peer that hears nothing asks again, and would have each replaced while it is fetched. Raises what the state
        machine's export does."""
        host, group = self._host, self._group
        async with self._export_lock:
            exported = host.shelf.current(group.id)
            if exported is None or not serves(exported):
                now = host.clock.monotonic()
                exported = await host.shelf.export(group.id, group.machine, group.image_lock, now)
                host.counters.snapshots_made += 1
                size = sum(file.size for file in exported.files.values())
                tell(SNAPSHOT_MADE, group=group_name(group.id), index=exported.meta.index, bytes=size)
            exported.used = host.clock.monotonic()
            return exported

    async def _offer(self) -> None:
        """Offer the waiting peers a snapshot from which the log can go on; make one if there is none."""
        host, group = self._host, self._group
        while self._wanting and not host.stopped:
            exported = None
            try:
                exported = await self.exported(self._leads_into_log)
            except DiskFailed:
                raise
            except (StorageError, ReplicaDamaged, *SHORTAGES) as error:
                _log.warning("%s: no snapshot could be made: %s", group_name(group.id), error)
            now = host.clock.monotonic()
            peers, self._wanting = self._wanting, {}
            for peer in peers:
                if group.raft.role is not Role.LEADER:
                    continue
                if exported is None or not self._leads_into_log(exported):
                    group.raft.report_snapshot_failed(peer, now)
                else:
                    group.raft.send_snapshot(peer, exported.meta, now)
                    host.counters.snapshots_offered += 1
                    tell(SNAPSHOT_SENT, group=group_name(group.id), index=exported.meta.index, to=peer)
            host.wake(group)
        self.offering = False
        self.floor = FAR

    def _leads_into_log(self, exported: Exported) -> bool:
        return exported.meta.index >= self._group.log.first_index() - 1

    def wanted(self, now: float) -> bool:
        """Whether the exported snapshot should stay: it was offered, or a peer read from it, lately."""
        exported = self._host.shelf.current(self._group.id)
        return exported is not None and now - exported.used < self._host.config.snapshot_keep

    # --- as a follower ----------------------------------------------------------------------------------------------
    def offered(self, message: Message, installing: bool) -> str:
        """A leader offers a snapshot: fetch it first; the core sees the offer once the files are here. Returns why the
        offer is refused, "" if it is not."""
        meta, group = message.snapshot, self._group
        raft = group.raft
        if meta is None or message.term < raft.term or meta.index <= raft.commit or raft.refuses(message):
            return raft.step(message, self._host.clock.monotonic())
        if self._rebuild.fetching and not self._rebuild.gives_way():
            return ""  # it is offered again
        if raft.applied < self._staged_index <= raft.commit:
            return ""  # the core took an earlier one, whose files must stay until it is installed
        if self._fetch is not None and not self._fetch.done():
            if meta.descriptor == self._fetching or installing:
                return ""
            self._fetch.cancel()
        if group.log.pending is None:
            self._fetching = meta.descriptor
            self._fetch = self._host.spawn(self._fetch_offer(message, meta))
        return ""

    async def _fetch_offer(self, message: Message, meta: SnapshotMeta) -> None:
        host, group = self._host, self._group
        try:
            directory = await host.fetcher.fetch(group.id, message.frm, meta.descriptor, group.machine)
            await self._check(directory, message.frm, meta)
        except NeedleError as error:
            host.counters.snapshots_failed += 1
            tell(SNAPSHOT_FAILED, group=group_name(group.id), peer=message.frm, why=error)
            return
        host.counters.snapshots_fetched += 1
        if not host.stopped:
            refusal = group.raft.step(message, host.clock.monotonic())
            # If the log holds all of it by now, the core takes no more than the commit index.
            self._staged_index = meta.index if group.raft.is_restoring else 0
            if refusal:
                _log.warning("%s: the snapshot of %s is refused: %s", group_name(group.id), message.frm, refusal)
            host.wake(group)

    async def _check(self, directory: str, leader: NodeId, meta: SnapshotMeta) -> None:
        """The core must not take what the state machine would refuse. Raises CorruptSnapshot; then the leader makes
        another one for its next offer."""
        host, group = self._host, self._group
        try:
            await host.apply_pool.run(group.machine.check_snapshot, directory)
        except CorruptSnapshot:
            request = encode_state_request(StateRequest(group.id, 0, decode_manifest(meta.descriptor).snapshot))
            try:
                await host.transport.call(leader, STATE_METHOD, request, host.config.snapshot_chunk_timeout)
            except NeedleError as error:  # it may have heard it; if not, it is told with its next offer
                _log.info("%s: %s does not say that it makes another: %s", group_name(group.id), leader, error)
            raise

    async def install(self, ready: Ready, meta: SnapshotMeta) -> bool:
        """Replace state and log, in the order that the module states. False: the group was closed while it waited for
        room; the next start finishes it. Raises CorruptSnapshot, DiskFailed."""
        host, group, log = self._host, self._group, self._group.log
        began = host.clock.monotonic()
        directory = host.fetcher.staging(group.id, meta.descriptor)
        hard_state = ready.hard_state or log.hard_state or HardState()
        known = log.hard_state.commit if log.hard_state is not None else 0
        before = HardState(hard_state.term, hard_state.vote, known)
        await host.durable(LogWrite(log=log, pending=PendingInstall(meta, directory), hard_state=before))
        host.failpoint("snapshot.after_pending")
        async with group.image_lock, group.machine_lock:
            await group.machine_idle()
            while True:
                try:
                    await host.apply_pool.run(group.machine.install_snapshot, directory)
                    break
                except SHORTAGES as error:
                    if host.is_news(group.id, "install", error.code):
                        _log.error("%s: a snapshot waits to be installed: %s", group_name(group.id), error)
                    if group.closed:
                        return False
                    await asyncio.sleep(NO_ROOM_SECONDS)
            host.failpoint("snapshot.after_install")
        found = group.machine.applied_index()
        if found != meta.index:
            raise CorruptSnapshot(
                f"{group_name(group.id)}: the snapshot of index {meta.index} left the state at {found}", group=group.id
            )
        after = HardState(hard_state.term, hard_state.vote, max(known, meta.index))
        start = StartRecord(meta.index, meta.term)
        await host.durable(LogWrite(log=log, reset=start, entries=ready.entries, hard_state=after, pending=False))
        host.failpoint("snapshot.after_reset")
        host.counters.snapshots_installed += 1
        took = host.clock.monotonic() - began
        tell(SNAPSHOT_INSTALLED, group=group_name(group.id), index=meta.index, seconds=took)
        return True
