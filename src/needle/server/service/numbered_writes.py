"""The numbered writes of clients that know nothing of shards: what became of each, kept for their repetitions.

Invariant: a numbered write is executed at most once through this node. One whose answer is forgotten, because its
client acknowledged it or too many are kept, is refused. Sessions live in this process, so a write repeated at another
node is answered SessionExpired, which its client reports as unknown, never as done or not done.

It must not know what is written.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable

from needle.base.errors import Internal, NeedleError, OutcomeUnknown, SessionExpired
from needle.base.model import WriteResult
from needle.base.runtime import Rng
from needle.protocol import commands
from needle.shard.apply.sessions import ANSWERS_MAX, SESSIONS_MAX

KEPT_MAX = 65_536
"""Writes of all sessions, of some 1 KiB each: sessions that were not used for longest forget their oldest ones."""
ROWS_KEPT = 16
"""Documents written of a batch that did not get through whole, or ids of an answer, that weigh as much as a write."""
LEFT = "documents_left"
"""Detail of the error for a batch that can be repeated for its rest."""


class NumberedWrite:
    """A numbered write. task: while it runs. outcome: once that is all there will be. written: what is written of a
    batch that did not get through whole, and may be repeated for its rest. weight: what it counts of KEPT_MAX."""

    __slots__ = ("outcome", "task", "weight", "written")

    def __init__(self) -> None:
        self.task: asyncio.Task[WriteResult] | None = None
        self.outcome: WriteResult | NeedleError | None = None
        self.written: dict[int, WriteResult] = {}
        self.weight = 1


class Session:
    """owner: as in commands.OpenSession. acked: the writes below are forgotten. writes: the others, by number. weight:
    of all of them."""

    __slots__ = ("acked", "owner", "weight", "writes")

    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.acked = 0
        self.weight = 0
        self.writes: dict[int, NumberedWrite] = {}

    def forget(self, acked: int) -> int:
        """Nobody will repeat writes below `acked`. What they weighed."""
        before = self.acked
        if acked <= before:
            return 0
        self.acked = acked
        numbers: Iterable[int] = range(before, acked)
        if acked - before > len(self.writes):
            numbers = [seq for seq in self.writes if seq < acked]
        return sum(write.weight for seq in numbers if (write := self.writes.pop(seq, None)) is not None)


class NumberedWrites:
    """Of one node."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self.sessions: dict[int, Session] = {}
        self.kept = 0
        self.keeping: dict[int, None] = {}
        """Sessions with writes, those that were used last at the end, as in `sessions`."""

    def open(self, owner: int = 0) -> WriteResult:
        """A new session: its id is the result's index."""
        while len(self.sessions) >= SESSIONS_MAX:
            oldest = next(iter(self.sessions))
            self.kept -= self.sessions.pop(oldest).weight
            self.keeping.pop(oldest, None)
        made = self._rng.getrandbits(52) + 1
        self.sessions[made] = Session(owner)
        return WriteResult(version=0, index=made)

    def find(self, session: commands.Session, owner: int = 0) -> tuple[Session, NumberedWrite]:
        """A write that may be executed, or was. Raises SessionExpired."""
        known = self.sessions.get(session.id)
        if known is None or known.owner != owner:
            raise SessionExpired("this node does not know the session: it was opened through another node")
        del self.sessions[session.id]
        self.sessions[session.id] = known  # the ones used last stay longest
        if session.id in self.keeping:
            del self.keeping[session.id]
            self.keeping[session.id] = None
        self._weigh(session.id, known, -known.forget(session.acked))
        if session.seq < known.acked:  # a copy that was late
            raise SessionExpired(
                f"write {session.seq} of session {session.id} was answered before and its answer is forgotten; "
                "it was not executed again"
            )
        write = known.writes.get(session.seq)
        if write is None:
            write = known.writes[session.seq] = NumberedWrite()
            self.keeping[session.id] = None
            self._weigh(session.id, known, write.weight)
            if len(known.writes) > ANSWERS_MAX:
                self._forget_oldest(session.id)
            self._bound()
        return known, write

    def settled(
        self, session: commands.Session, known: Session, write: NumberedWrite, task: asyncio.Task[WriteResult]
    ) -> None:
        """A write is over, whether or not its client still waits. The task is not kept: what failed holds its command
        in the frames of its traceback."""
        write.task = None
        outcome = _outcome(task)
        again = isinstance(outcome, NeedleError) and (outcome.retryable or LEFT in outcome.details)
        if not again:
            write.outcome, write.written = outcome, {}
        if known.writes.get(session.seq) is not write:
            return  # forgotten meanwhile
        weight = 1 + len(write.written) // ROWS_KEPT
        if isinstance(write.outcome, WriteResult):
            weight += len(write.outcome.ids) // ROWS_KEPT
        if again and not write.written:
            del known.writes[session.seq]  # nothing happened: the client may send it again
            weight = 0
        before, write.weight = write.weight, weight
        self._weigh(session.id, known, weight - before)
        self._bound()

    def _forget_oldest(self, session: int) -> None:
        known = self.sessions[session]
        oldest = known.acked if known.acked in known.writes else min(known.writes)
        self._weigh(session, known, -known.forget(oldest + 1))

    def _bound(self) -> None:
        while self.kept > KEPT_MAX:
            self._forget_oldest(next(iter(self.keeping)))

    def _weigh(self, session: int, known: Session, more: int) -> None:
        """The writes of a session weigh so much more, or less."""
        known.weight += more
        if self.sessions.get(session) is not known:
            return  # the session is forgotten
        self.kept += more
        if not known.writes:
            self.keeping.pop(session, None)


def _outcome(task: asyncio.Task[WriteResult]) -> WriteResult | NeedleError:
    """What came of a write, without anything that it was made of; so a failure counts as seen."""
    if task.cancelled():
        return OutcomeUnknown("the node stopped while it executed the write")
    failure = task.exception()
    if failure is None:
        return task.result()
    return copy.copy(failure) if isinstance(failure, NeedleError) else Internal(f"{type(failure).__name__}: {failure}")


def told(outcome: WriteResult | NeedleError) -> WriteResult:
    """What a repetition of a write is answered. Raises what the write raised."""
    if isinstance(outcome, NeedleError):
        raise copy.copy(outcome)  # a copy: what is raised holds the frames that it passes
    return outcome
