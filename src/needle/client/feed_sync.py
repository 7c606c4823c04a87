"""`Changes` for code without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Self

from needle.client.feed import Change, Changes
from needle.client.loop_thread import LoopThread


class SyncChanges(Iterator[Change]):
    """The changes of one collection, one after the other: an iterator, for one reader. Of the process that made it: one
    that is forked goes on with another feed, by the token."""

    def __init__(self, feed: Changes, thread: LoopThread) -> None:
        self._feed = feed
        self._thread = thread

    @property
    def token(self) -> str:
        """See Changes.token."""
        return self._feed.token

    def begin(self) -> Self:
        """See Changes.begin."""
        self._thread.run(self._feed.begin())
        return self

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Change:
        return self._thread.run(self._feed.__anext__())

    def next(self, timeout: float) -> Change | None:
        """The next change; None if there is none within so many seconds. Nothing is lost then."""
        return self._thread.run(self._within(timeout))

    async def _within(self, timeout: float) -> Change | None:
        try:
            async with asyncio.timeout(timeout):
                return await self._feed.__anext__()
        except TimeoutError:
            return None

    def close(self) -> None:
        """See Changes.aclose."""
        self._thread.run(self._feed.aclose())
