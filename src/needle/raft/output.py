"""What a core hands to its host: messages, what is to be written, what is to be applied (`Ready`, messages.py).

Invariant: at most one Ready with something to write is out; an answer leaves only with, or after, the write of what it
acknowledges; committed entries are handed out in pages, one at a time, once they are on this disk.
"""

from __future__ import annotations

from needle.raft import replication
from needle.raft.messages import Entry, HardState, Message, Ready, SnapshotMeta
from needle.raft.state import LEADER, State


def has_ready(s: State, persist: bool, apply: bool) -> bool:
    """Whether `take` would carry something."""
    if s.retired:
        return bool(s.dropped_reads)
    if s.messages or s.reads or s.dropped_reads or s.snapshot_requests:
        return True
    if s.role is LEADER and replication.wants_to_send(s):
        return True
    if persist and (s.messages_after_persist or s.needs_disk()) and _may_persist(s):
        return True
    return apply and s.applied < s.commit and s.applying == s.applied < s.log.durable_index


def _may_persist(s: State) -> bool:
    """One write at a time; and no snapshot is installed under a running apply."""
    return s.writing is None and (s.log.snapshot is None or s.applying == s.applied)


def take(s: State, persist: bool, apply: bool) -> Ready:
    """See `Raft.ready`."""
    if s.role is LEADER and replication.wants_to_send(s):
        replication.emit(s)
    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None
    after: tuple[Message, ...] = ()
    must_sync = False
    if persist and _may_persist(s):
        must_sync = s.needs_disk()
        if must_sync:
            snapshot = s.log.snapshot
            entries = s.log.unwritten()
            s.log.mark_handed()
            current = s.hard_state()
            if current != s.handed_hard_state:
                hard_state = s.handed_hard_state = current
        after, s.messages_after_persist = tuple(s.messages_after_persist), []
    result = Ready(
        hard_state=hard_state,
        entries=entries,
        snapshot=snapshot,
        messages=tuple(s.messages),
        messages_after_persist=after,
        committed=_next_page(s) if apply and s.applied < s.commit else (),
        reads=tuple(s.reads),
        dropped_reads=tuple(s.dropped_reads),
        snapshot_requests=tuple(s.snapshot_requests),
        must_sync=must_sync,
    )
    for waiting in (s.messages, s.reads, s.dropped_reads, s.snapshot_requests):
        if waiting:
            waiting.clear()
    if must_sync:
        s.writing = result
    return result


def _next_page(s: State) -> tuple[Entry, ...]:
    """Committed entries that are on this disk too, up to apply_bytes_max; none while a page is being applied."""
    last = min(s.commit, s.log.durable_index)
    if s.applying != s.applied or last <= s.applied:
        return ()
    page = tuple(s.log.slice(s.applied + 1, last + 1, s.config.apply_bytes_max))
    s.applying = page[-1].index
    s.uncommitted_bytes = max(0, s.uncommitted_bytes - sum([len(e.data) for e in page]))
    return page


def written(s: State, ready: Ready) -> bool:
    """What `ready` had written is durable. False if it is not the write under way."""
    if ready is not s.writing:
        return False
    s.writing = None
    s.disk_idle_at = s.now
    if ready.snapshot is not None:
        s.installed(ready.snapshot)
    if ready.hard_state is not None:
        s.durable_hard_state = ready.hard_state
    s.log.stable_to(ready.entries)
    return True
