"""How fast a backup reads: at most so many bytes a second, or so that it gives way to others (docs/adr/0106)."""

from __future__ import annotations

from typing import Final

from needle.backup.around import Around
from needle.base.errors import invalid

GIVES_WAY: Final = 2.0
"""It rests for so many times as long as it worked: nodes that are busy answer later, and get longer rests."""
RESTS_SECONDS: Final = 200.0
"""What rests of one collection may add: a scan is ended after limits.pinned_scan_seconds (600)."""


def check_rate(rate: float | None) -> None:
    """Raises InvalidArgument."""
    if rate is not None and not rate >= 0:
        raise invalid("rate", rate, "bytes a second, 0 for no bound, or None to give way to others")


class Pace:
    """See the module. read: bytes so far."""

    def __init__(self, rate: float | None, around: Around) -> None:
        """rate: bytes a second, 0 for no bound, None for giving way."""
        self._rate, self._around = rate, around
        self._began = self._worked_since = around.clock.monotonic()
        self._left = RESTS_SECONDS
        self.read = 0

    def begin(self, *, again: bool = False) -> None:
        """A collection. again: reading it took too long before, so now it is read without rests."""
        self._left = 0.0 if again else RESTS_SECONDS
        self._worked_since = self._around.clock.monotonic()

    async def rest(self, size: int) -> None:
        """So much was read: wait until more may be."""
        self.read += size
        now = self._around.clock.monotonic()
        if self._rate is None:
            pause = min(self._left, GIVES_WAY * (now - self._worked_since))
            self._left -= pause
        else:
            pause = self.read / self._rate - (now - self._began) if self._rate else 0.0
        if pause > 0:
            await self._around.rest(pause)
        self._worked_since = self._around.clock.monotonic()
