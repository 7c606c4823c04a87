"""What an archiver holds of one shard: entries that were read and are not in the store yet. Pure."""

from __future__ import annotations

from typing import Final

from needle.backup.archive_format import Base
from needle.base.errors import StorageError
from needle.protocol.archive_calls import BEGUN_SECONDS, LogAnswer, LoggedEntry
from needle.protocol.commands import is_load

ENTRY_BYTES: Final = 64
"""What an entry takes beside its data."""
POINTS_MAX: Final = 64
_HEAD_BYTES: Final = 40
_PUBLISHED: Final = b"\xa7segment"
"""How the name of the command stands in an entry by which an index file is published."""


class ShardArchive:
    """One shard's. read: the last entry that was read, and its term, 0 if it is not known; kept: that is in the store.
    until: a clock of its leader before which nothing but these was acknowledged. based: the index, and the clock, of
    the last state; None if there is none. lacks_state: the log does not lead on from what is kept, so nothing is read
    before a state is copied. copied: the index of the one that is being copied, 0 for none; tried: when that was begun
    last (microseconds since 1970). serves: the cluster has this shard. published: the last entry that was read by which
    an index file came to be; indexed: the index, and the archiver's clock, of the last set of index files; index_waits:
    until this clock no other one is tried. loaded: the last entry by which documents came, or may have come, from a
    file (docs/adr/0119), which is in no entry: what leads on from there is a state of that index or a later one, so
    that nothing behind it is read before that is there.
    begun: when it began, 0 if that is not known, or long ago.
    followed: when replicas that do not lead were told last (microseconds since 1970). awaits_since: since when entries
    are waited for that the leader lacks (monotonic seconds)."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.read = self.kept = self.term = 0
        self.until = self.kept_until = 0
        self.based: tuple[int, int] | None = None
        self.entries: list[LoggedEntry] = []
        self.points: list[tuple[int, str]] = []
        self.bytes = 0
        self.copied = self.tried = 0
        self.lacks_state, self.serves = False, True
        self.published, self.indexed, self.index_waits = 0, (0, 0), 0
        self.followed = self.loaded = self.begun = 0
        self.awaits_since: float | None = None

    @property
    def based_at(self) -> int:
        """The clock of the last state, 0 without one."""
        return 0 if self.based is None else self.based[1]

    def began_lately(self, now: int) -> bool:
        """See LogCall.begun. now: microseconds since 1970."""
        return now - self.begun < BEGUN_SECONDS * 1e6

    def awaits(self, now: float, seconds: float) -> bool:
        """Whether entries that the leader lacks are waited for still: so many seconds from the first time on."""
        if self.awaits_since is None:
            self.awaits_since = now
        return now - self.awaits_since < seconds

    def lacks_indexes(self, now: int, every: float) -> bool:
        """Its index files are to be copied: there are new ones, and the last time was so many seconds ago, or the log
        has twice as many entries since. now: microseconds since 1970."""
        index, at = self.indexed
        if now < self.index_waits:
            return False
        return self.published > index and (now - at >= every * 1e6 or self.kept >= 2 * index)

    @property
    def meets_load(self) -> bool:
        """Whether the last entry that was read has its documents in a file, and there is no state behind it."""
        return self.read == self.loaded > (-1 if self.based is None else self.based[0])

    def take(self, answer: LogAnswer) -> bool:
        """Entries that follow, up to a bulk load; whether that was all there is. Raises StorageError if the log lost
        what is archived."""
        if answer.upto < self.read or (self.term and answer.term and answer.term != self.term):
            raise StorageError(
                f"shard {self.shard}: its leader confirms {answer.upto} entries, and not entry {self.read} as it was "
                "archived: the cluster lost writes that were acknowledged. Archive it into another target, and keep "
                "this one"
            )
        self.awaits_since = None
        for one in answer.entries or ():
            self.entries.append(one)
            self.bytes += len(one.data) + ENTRY_BYTES
            self.read, self.term = one.index, one.term
            if _PUBLISHED in one.data[:_HEAD_BYTES]:
                self.published = one.index
            if is_load(one.data) and one.index not in answer.refused:
                self.loaded = self.published = one.index
                return False
        whole = self.read >= answer.upto
        if whole:  # not the latest of all: the clock of the next leader, or one that was put back, may say less
            self.until = answer.until
        if answer.digest_at > self.kept and (not self.points or self.points[-1][0] < answer.digest_at):
            self.points = [*self.points[1 - POINTS_MAX :], (answer.digest_at, answer.digest)]
        return whole

    def begin_at(self, base: Base) -> None:
        """Go on behind a state."""
        self.lacks_state, self.awaits_since = False, None
        self.read, self.kept, self.term = base.index, base.index, base.term
        self.entries, self.points, self.bytes = [], [], 0
        self.followed = 0  # they keep their logs behind an entry that may be in none of them any more
        self.based = (base.index, base.at)
