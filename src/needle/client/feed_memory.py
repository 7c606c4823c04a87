"""What a change feed holds in memory until its reader has taken it: pages of changes, and of documents.

Invariant: what has come is counted before it is kept, and no more once it was handed out, or given up. It must not know
where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from needle.protocol.calls import DocumentBatch, ScanAnswer
from needle.protocol.change_calls import ChangesAnswer

PAGE_BYTES: Final = 512
CHANGE_BYTES: Final = 512
"""Besides its id, vector and metadata."""
DECODED: Final = 4
"""Times as many bytes as JSON has are its values, about."""


class Held:
    """Of one feed. told: is told of so many bytes more, or less. It may refuse more by an error, which the feed's next
    step raises; what had come then is given up, and asked for again."""

    def __init__(self) -> None:
        self.bytes = 0
        self.told: Callable[[int], None] = lambda count: None

    def take(self, count: int) -> None:
        """So many more. Raises what `told` raises."""
        self.told(count)
        self.bytes += count

    def free(self, count: int) -> None:
        """So many less, or all."""
        count = min(count, self.bytes)
        self.bytes -= count
        self.told(-count)


def size_of(page: ChangesAnswer | ScanAnswer | None) -> int:
    """About how many bytes it takes, as what a feed hands out of it."""
    if page is None:
        return 0
    size = PAGE_BYTES + _batch(page.documents)
    if isinstance(page, ChangesAnswer):
        size += CHANGE_BYTES * len(page.deleted) + sum(map(len, page.deleted))
    return size


def _batch(documents: DocumentBatch) -> int:
    size = CHANGE_BYTES * len(documents.ids) + sum(map(len, documents.ids)) + len(documents.vectors)
    size += sum(len(one.vectors) for one in documents.named)
    return size + DECODED * sum(map(len, documents.metadata))
