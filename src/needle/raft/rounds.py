"""Confirmation rounds: proof that this node still leads, for ReadIndex and for leases (thesis, 6.4).

A round is a number with a start time; every append and heartbeat sent afterwards carries it, and every answer echoes
it. Once a quorum of every active voter set has answered round r or a later one, this node was the leader at some
moment after r began: all reads that arrived before r may be served, and the lease runs from r's start.

Invariant: a read belongs to a round that began after it arrived; the start time is read before anything is sent.
"""

from __future__ import annotations

from needle.base.ids import NodeId
from needle.raft import lease
from needle.raft.messages import ReadState
from needle.raft.quorum import quorum_value
from needle.raft.state import State


def reads_can_start(s: State) -> bool:
    """Reads wait until an entry of this term is committed: before, the commit index may be behind (paper, 8)."""
    return bool(s.reads_new) and s.has_committed_in_term()


def begin(s: State) -> None:
    """Open a round if reads wait for one or time has passed since the last, and put the waiting reads into it."""
    with_reads = reads_can_start(s)
    if with_reads or s.now > s.round_started_at:
        s.round += 1
        s.round_started_at = s.now
        s.round_times.append((s.round, s.now))
        own = s.progress.get(s.id)
        if own is not None:
            own.acked_round = s.round
    if with_reads:
        s.reads_waiting.append((s.round, s.commit, s.reads_new))
        s.reads_new = []


def confirm(s: State) -> None:
    """Leader: after new answers or a new configuration, release the reads and extend the lease that they prove."""
    if s.confirmed_round == s.round and not s.reads_waiting:
        return  # nothing later has begun: the answers of those who were not waited for end here
    progress = s.progress

    def acked(node: NodeId) -> int:
        return progress[node].acked_round

    confirmed = quorum_value(s.conf, acked)
    if confirmed > s.confirmed_round:
        s.confirmed_round = confirmed
        times = s.round_times
        while times and times[0][0] <= confirmed:
            lease.extend(s, times.popleft()[1])
    waiting = s.reads_waiting
    while waiting and waiting[0][0] <= confirmed:
        _, index, contexts = waiting.popleft()
        s.reads.extend([ReadState(context, index) for context in contexts])
