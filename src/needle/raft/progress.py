"""What a leader knows about one member: how far it is, and how much may be sent to it (etcd's tracker.Progress).

Invariant: match < next; entries in [match + 1, next) are in flight. PROBE sends one append at a time to find the
point where the logs agree; REPLICATE pipelines within bounds; SNAPSHOT sends none until the snapshot is answered.
It must not know messages or the log.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from needle.raft.messages import SnapshotMeta


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT
"""See `state.LEADER`."""


class Progress:
    """One member, as its leader sees it.

    match: highest index known to be durable there. next: next index to send. contact: when it last answered
    (leader's clock, seconds). acked_round: highest confirmation round it answered. sent_commit: commit index it was
    told. lost_match: what it acknowledged and then seemed not to have. paused: a probe is under way. poke: send an
    empty append to find out whether appends were lost.
    """

    __slots__ = (
        "_inflight",
        "acked_round",
        "contact",
        "inflight_bytes",
        "is_learner",
        "lost_match",
        "match",
        "match_round",
        "next",
        "paused",
        "poke",
        "recent_active",
        "retry_at",
        "sent_commit",
        "snapshot",
        "state",
    )

    def __init__(self, next_index: int, now: float, *, is_learner: bool) -> None:
        self.match = 0
        self.lost_match = 0
        self.match_round = 0
        self.next = next_index
        self.state = PROBE
        self.is_learner = is_learner
        self.contact = now
        self.recent_active = False
        self.acked_round = 0
        self.sent_commit = 0
        self.paused = False
        self.poke = False
        self.retry_at = 0.0
        self.snapshot: SnapshotMeta | None = None
        self._inflight: deque[tuple[int, int]] = deque()
        self.inflight_bytes = 0

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.poke = False
        self.snapshot = None
        self._inflight.clear()
        self.inflight_bytes = 0

    def become_probe(self) -> None:
        self.next = self.match + 1
        self._enter(PROBE)

    def become_replicate(self) -> None:
        self.next = self.match + 1
        self._enter(REPLICATE)

    def become_snapshot(self, retry_at: float) -> None:
        self._enter(SNAPSHOT)
        self.retry_at = retry_at

    def may_send(self, messages_max: int, bytes_max: int) -> bool:
        """Whether an append with entries may go out now."""
        if self.state is REPLICATE:
            return len(self._inflight) < messages_max and self.inflight_bytes < bytes_max
        return self.state is PROBE and not self.paused

    def sent(self, last: int, size: int) -> None:
        """An append up to `last` with `size` bytes of data was sent. Probes without entries are sent too."""
        if self.state is REPLICATE:
            if last >= self.next:
                self.next = last + 1
                self._inflight.append((last, size))
                self.inflight_bytes += size
        else:
            self.paused = True

    def acked(self, index: int) -> bool:
        """The member holds everything up to `index`. True if that is news."""
        inflight = self._inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        return True

    def rejected(self, index: int, retry_from: int, round_id: int) -> bool:
        """The member refused the append behind `index`; it may agree at `retry_from`. False if the answer is stale."""
        if index <= self.match:
            # A late answer, unless it belongs to a later round than the match: then the member lost its disk.
            if round_id <= self.match_round or retry_from >= self.match:
                return False
            self.lost_match = max(self.lost_match, self.match)
            self.match = 0
        elif index != self.next - 1 if self.state is PROBE else index >= self.next:
            return False  # of an append of before, or one that was never sent
        self._enter(PROBE)
        self.next = max(min(index, retry_from + 1), self.match + 1)
        return True
