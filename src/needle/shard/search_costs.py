"""What searches of several replicas take, by what jobs took lately, and whether threads that share one pay.

Where most of a search holds the interpreter, as small scans do, two threads that want it take more processor time for
the same work than one. So jobs that ran beside others are noted apart from those that ran alone. Neither kind is ever
left out for good: of many searches one goes the other way, so that what is known follows what searches take now.

Invariant: `takes` is the mean of the last jobs, whatever ran beside them, from the first one on. It must not know what
is searched. Threads: any; of notes that come at once, one may be lost.
"""

from __future__ import annotations

from typing import Final

KEPT: Final = 16
"""Of so many jobs the mean counts."""
PAYS: Final = 1.3
"""Sharing pays if a replica takes at most so many times as long beside another job as alone."""
WHOLE_EVERY: Final = 16
"""While it pays, one of so many searches that would be shared is not."""
SHARED_EVERY: Final = 64
"""While it does not pay, one of so many searches is shared all the same."""


class _Mean:
    """Of the last jobs of one kind. The first is no measure: what it needed was in no cache yet."""

    __slots__ = ("_at", "count", "seconds")

    def __init__(self) -> None:
        self.count = -1
        self.seconds = 0.0
        self._at = 0

    def note(self, took: float, at: int) -> None:
        """at: how many jobs of both kinds there were. After many of the other kind the mean is old."""
        self.count = min(KEPT, self.count + 1)
        if self.count:
            self.seconds += (took - self.seconds) / (2 if self.count > 1 and at - self._at > KEPT else self.count)
        self._at = at


class SearchCosts:
    """Processor time for one search of one replica, of one collection. takes: in seconds."""

    __slots__ = ("_alone", "_beside", "_jobs", "_turn", "takes")

    def __init__(self) -> None:
        self.takes = 0.0
        self._alone, self._beside = _Mean(), _Mean()
        self._jobs = self._turn = 0

    def note(self, took: float, *, alone: bool) -> None:
        """One job took so long. alone: no other ran meanwhile."""
        self._jobs += 1
        self.takes += (took - self.takes) / min(KEPT, self._jobs)
        (self._alone if alone else self._beside).note(took, self._jobs)

    @property
    def pays(self) -> bool:
        """Whether work that threads share takes about as long in all; so it is taken to be until it is known."""
        known = min(self._alone.count, self._beside.count) >= KEPT
        return not known or self._beside.seconds <= PAYS * self._alone.seconds

    def shares(self) -> bool:
        """Whether the next search, which idle threads could share, is to be shared."""
        self._turn += 1
        return bool(self._turn % WHOLE_EVERY) if self.pays else not self._turn % SHARED_EVERY
