"""Proposals in flight, and what may be said about each.

Invariant: a proposal is answered once. It is answered with a result only after its entry (same index, same term) was
applied here; with ProposalDropped only after another term's entry was applied at its index, for then its own never
will be; with OutcomeUnknown in every other case. Never "not leader": it did enter a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from needle.base.errors import NeedleError, OutcomeUnknown, ProposalDropped
from needle.base.ids import GroupId, group_name

_NEVER = float("inf")


class Receiver(Protocol):
    """Who is told the outcome: an asyncio.Future, or what settles like one."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...


class _Pending:
    __slots__ = ("deadline", "future", "next", "term")

    def __init__(self, term: int, future: Receiver, deadline: float) -> None:
        self.term = term
        self.future = future
        self.deadline = deadline
        self.next: _Pending | None = None  # an older proposal of this node for the same index


class Proposals:
    """The proposals of one group that wait for their entry to be applied, by index."""

    def __init__(self, group: GroupId) -> None:
        self._group = group
        self._by_index: dict[int, _Pending] = {}
        self.next_deadline = _NEVER

    def __len__(self) -> int:
        return len(self._by_index)

    def add(self, index: int, term: int, future: Receiver, deadline: float) -> None:
        """Wait for (index, term); deadline in seconds of the node's monotonic clock."""
        pending = _Pending(term, future, deadline)
        pending.next = self._by_index.get(index)
        self._by_index[index] = pending
        if deadline < self.next_deadline:
            self.next_deadline = deadline

    def applied(self, index: int, term: int, result: Any) -> None:
        """Entry (index, term) is applied with this result."""
        pending = self._by_index.pop(index, None)
        while pending is not None:
            future = pending.future
            if not future.done():
                if pending.term != term:
                    future.set_exception(self._dropped(index, pending.term, term))
                elif isinstance(result, NeedleError):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            pending = pending.next

    def _dropped(self, index: int, mine: int, other: int) -> NeedleError:
        return ProposalDropped(
            f"another leader's entry took index {index} of {group_name(self._group)}: the write did not take effect",
            group=self._group,
            index=index,
            term=mine,
            applied_term=other,
        )

    def _unknown(self, why: str) -> NeedleError:
        return OutcomeUnknown(
            f"{group_name(self._group)}: {why}; the write may or may not take effect", group=self._group
        )

    def covered(self, index: int) -> None:
        """A snapshot brought the state up to `index`: whose entries it holds cannot be told."""
        self._fail([i for i in self._by_index if i <= index], "a snapshot replaced the log")

    def expire(self, now: float) -> None:
        """Answer those whose deadline has passed, and forget those whose caller went away."""
        if now < self.next_deadline:
            return
        done = []
        self.next_deadline = _NEVER
        for index, head in self._by_index.items():
            waits = False
            pending: _Pending | None = head
            while pending is not None:
                if pending.deadline <= now and not pending.future.done():
                    pending.future.set_exception(self._unknown("it was not committed and applied in time"))
                if not pending.future.done():
                    waits = True
                    self.next_deadline = min(self.next_deadline, pending.deadline)
                pending = pending.next
            if not waits:
                done.append(index)
        for index in done:
            del self._by_index[index]

    def fail_all(self, why: str) -> None:
        """The group stops."""
        self._fail(list(self._by_index), why)

    def _fail(self, indexes: Sequence[int], why: str) -> None:
        for index in indexes:
            pending: _Pending | None = self._by_index.pop(index)
            while pending is not None:
                if not pending.future.done():
                    pending.future.set_exception(self._unknown(why))
                pending = pending.next
