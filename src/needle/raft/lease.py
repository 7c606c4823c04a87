"""Leases: reads without a round trip while no other leader can exist (raft.md, section 2; thesis, 6.4.1).

Followers refuse votes for T after a leader's message (see `election.is_promised`). A round that began at `s` on the
leader's clock and was answered by a quorum of every active configuration therefore proves that nobody else is elected
before s + T; what may be served is a little shorter, for clocks that run at different rates.

Invariant: the lease is judged by the configuration in force; it never survives a TIMEOUT_NOW, a step-down or a
configuration change.
"""

from __future__ import annotations

from needle.raft.state import LEADER, NEVER, State


def end(s: State) -> float:
    """When the lease ends on the leader's clock; -inf without one."""
    return s.lease_start + s.config.lease_duration


def extend(s: State, started: float) -> None:
    """A quorum has answered a round that began at `started`."""
    s.lease_start = max(s.lease_start, started)


def suspend(s: State) -> None:
    """Give the lease up for the rest of the term: another node may be elected from now on (rule 4)."""
    s.lease_suspended = True


def on_conf_change(s: State) -> None:
    """The old quorum's answers prove nothing about the new one: start again, and remember the old end (rule 5)."""
    if not s.lease_suspended:
        s.lease_floor = max(s.lease_floor, end(s))
    s.lease_start = NEVER


def covers_old(s: State) -> bool:
    """Rule 5: whether the present quorum's lease reaches as far as the one before the last membership change."""
    return s.now >= s.lease_floor or end(s) >= s.lease_floor


def remaining(s: State) -> float:
    """Seconds for which leased reads may still be served, 0 for none. `s.now` must be fresh (rule 3)."""
    if s.role is not LEADER or s.lease_suspended or not s.has_committed_in_term():
        return 0.0
    return max(0.0, end(s) - s.now)
