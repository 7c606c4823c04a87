"""What a replica keeps of its log: for members that can still be served from it, within bounds in bytes. Pure.

A member that was away, or is new, gets a snapshot, and then what was written since the snapshot was made. If the log is
cut meanwhile, the snapshot is obsolete when it arrives, and so is the next one, for as long as writes go on. So the
leader keeps what comes after a snapshot that is under way, and after the last entry of a member that is behind; but
only as much as that is worth: less for a member that does not answer, nothing once the disk's bound is near.
It must not know disks or Raft's rules.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from needle.multiraft.log.log_sizes import LogSizes

IDLE_TAIL_BYTES = 1 << 20


class Bounds(msgspec.Struct, frozen=True):
    """Bytes. compact: applied entries of a group at which its log is cut, also if they are few. hold: of entries kept
    for a member that answers. away: the same of one that does not. tail: kept in any case. pressed: of all logs of the
    node, from which on nothing is kept for anyone. refused: of all, from which on no write is taken. dropped: from
    which on no entry of a leader is taken."""

    compact: int
    hold: int
    away: int
    tail: int
    pressed: int
    refused: int
    dropped: int

    @classmethod
    def of(cls, log_bytes_max: int) -> Bounds:
        """For a log that may take so many bytes."""
        compact = min(64 << 20, log_bytes_max // 32)
        return cls(
            compact=compact,
            hold=log_bytes_max // 4,
            away=compact,
            tail=compact // 4,
            pressed=log_bytes_max // 2,
            refused=log_bytes_max // 4 * 3,
            dropped=log_bytes_max // 8 * 7,
        )


class Member(msgspec.Struct, frozen=True):
    """Another member, as the leader sees it. match: the last entry it is known to hold. snapshot: the index of the
    snapshot that is on its way to it, or could be used for it; -1 if there is none. active: it answers."""

    match: int
    snapshot: int
    active: bool


def keep_after(members: Iterable[Member], sizes: LogSizes, bounds: Bounds) -> int:
    """The index after which the leader's log is to be kept for its members; the log's end if nobody needs it."""
    floor = sizes.last
    for member in members:
        needed = member.match if member.match >= sizes.start else member.snapshot
        if sizes.start <= needed < floor and sizes.after(needed) <= (bounds.hold if member.active else bounds.away):
            floor = needed
    return floor


def tail_after(applied: int, entries: int, tail_bytes: int, sizes: LogSizes) -> int:
    """The index after which the log is kept in any case, for followers a little behind: at most so many entries, and so
    many bytes, up to `applied`."""
    return min(applied, max(applied - entries, sizes.within(tail_bytes)))
