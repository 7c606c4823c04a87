"""What an archiver says while it cannot go on: once for each kind of error, again each minute, and that it goes on."""

from __future__ import annotations

import logging
from typing import Final

from needle.base.errors import NeedleError
from needle.base.runtime import Clock

AGAIN_SECONDS: Final = 60.0
_log = logging.getLogger("needle.backup")


class Complaints:
    """Of one archiver."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._code, self._said = "", 0.0

    def waits(self, error: NeedleError) -> None:
        """A look failed, and is tried again."""
        now = self._clock.monotonic()
        if error.code != self._code or now - self._said >= AGAIN_SECONDS:
            self._code, self._said = error.code, now
            _log.warning("the archive waits, and tries again each second: %s", error.message)

    def goes_on(self) -> None:
        """A look went well."""
        if self._code:
            self._code = ""
            _log.warning("the archive goes on")
