"""Numbers a client's writes so that each is executed at most once, however often it is sent. Pure.

Ongaro's thesis, section 6.3. Invariant: `acked` never passes a number whose answer its caller still waits for, so the
replicas keep every answer that a retry may need. Knows no connections.
"""

from __future__ import annotations

from needle.protocol.commands import Session


class WriteNumbers:
    """The numbering of one open session."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.last = 0
        self._open: dict[int, None] = {}  # in the order of their numbers: they are only ever appended

    def next(self) -> Session:
        """The stamp of a new write. Call `done` with its seq when it will not be sent again."""
        self.last += 1
        self._open[self.last] = None
        return Session(self.session, self.last, next(iter(self._open)))

    def done(self, seq: int) -> None:
        """The write's caller has its answer, or has given up."""
        self._open.pop(seq, None)

    def check_invariants(self) -> None:
        """Raise AssertionError if the bookkeeping is wrong; for tests."""
        open_now = list(self._open)
        assert open_now == sorted(open_now)
        assert all(0 < seq <= self.last for seq in open_now)
