"""Writes with idempotency keys: sent again, under other numbers, while what became of them is not known.

Invariant: once an attempt may have been executed, that a later one did nothing says nothing of the write.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from needle.base.errors import AlreadyExists, Internal, NeedleError, VersionMismatch
from needle.base.model import WriteResult
from needle.client.asking import asked_by
from needle.protocol.commands import Asked
from proof.sim.promises import may_be_told, surely_without_effect

SHARE = 0.3
"""Of writes of one document."""
ATTEMPTS = 4


class Keyed:
    """Of one client."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def ask(self, ask: Callable[[], Awaitable[WriteResult]], *, may: bool) -> WriteResult:
        """What a write is answered, with a key perhaps. may: have one."""
        if not may or self._rng.random() >= SHARE:
            return await ask()
        unknown: NeedleError | None = None
        asked = Asked(self._rng.randbytes(16), self._rng.randbytes(16))
        for _ in range(ATTEMPTS):
            try:
                with asked_by(asked):
                    return await ask()
            except (AlreadyExists, VersionMismatch):
                raise
            except NeedleError as error:
                fate_is_open = not surely_without_effect(error)
                if unknown is None and not (fate_is_open and may_be_told(error, None)):
                    raise
                unknown = error if fate_is_open else unknown
        raise unknown or Internal("no attempt was made")
