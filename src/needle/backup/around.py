"""The time, threads and randomness of a backup, as arguments."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from needle.base.runtime import Blocking, Clock, Rng
from needle.system import SystemClock


@dataclass(frozen=True)
class Around:
    """clock: of this machine. rest: waits so many seconds. blocking: runs what blocks. rng: draws the ends of ids."""

    clock: Clock = field(default_factory=SystemClock)
    rest: Callable[[float], Awaitable[None]] = asyncio.sleep
    blocking: Blocking = asyncio.to_thread
    rng: Rng = field(default_factory=random.SystemRandom)

    def micros(self) -> int:
        """Microseconds since 1970."""
        return int(self.clock.wall() * 1e6)


REAL = Around()
