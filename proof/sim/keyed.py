"""Writes with idempotency keys: sent again, under other numbers, while what became of them is not known, and sometimes
when it is.

Invariant: once an attempt may have been executed, that a later one did nothing says nothing of the write. One that was
answered is answered so again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from needle.base.errors import AlreadyExists, Internal, NeedleError, VersionMismatch
from needle.base.model import WriteResult
from needle.client.asking import asked_by
from needle.protocol.commands import Asked
from proof.checkers.violation import Violation
from proof.sim.promises import may_be_told, surely_without_effect

SHARE, AGAIN_SHARE = 0.3, 0.4
"""Of writes of one document; of these, those that are sent once more though they were answered."""
ATTEMPTS = 4

Ask = Callable[[], Awaitable[WriteResult]]


class Keyed:
    """Of one client. broken: told of an answer that is another one than the first."""

    def __init__(self, rng: random.Random, broken: Callable[[Violation], None]) -> None:
        self._rng = rng
        self._broken = broken

    async def ask(self, ask: Ask, *, may: bool) -> WriteResult:
        """What a write is answered, with a key perhaps. may: have one."""
        if not may or self._rng.random() >= SHARE:
            return await ask()
        asked, again = Asked(self._rng.randbytes(16), self._rng.randbytes(16)), self._rng.random() < AGAIN_SHARE
        result = await self._until_known(ask, asked)
        if again:
            await self._once_more(ask, asked, result)
        return result

    async def _until_known(self, ask: Ask, asked: Asked) -> WriteResult:
        unknown: NeedleError | None = None
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

    async def _once_more(self, ask: Ask, asked: Asked, first: WriteResult) -> None:
        """Its index is another one if the document has moved since."""
        told: object
        try:
            with asked_by(asked):
                second = await ask()
            told, same = second, (second.version, second.count) == (first.version, first.count)
        except NeedleError as error:
            told, same = error, may_be_told(error, None)
        if not same:
            self._broken(Violation("a request is answered as the first time", f"{first}, and then {told!r}"))
