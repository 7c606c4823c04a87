"""Which searches may make field indexes while they run, and what becomes of the others.

The first search that filters on a field makes the field's index, which takes seconds where there are many documents.
Each of these holds a search thread, so only a part of the threads may do it at a time; the other searches that need an
index that is not there come back later, without a thread. Invariant: at most `limit` hold a place at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from needle.base.errors import NeedleError
from needle.base.model import HitBatch

SHARE = 4
"""A quarter of the search threads may make indexes, at least one."""
FEW_DOCUMENTS = 4096
"""So many take some ten milliseconds to read and to index."""


class BeingIndexed(Exception):
    """The index that a search needs is not made yet, and this thread may not make it now. Asked again a little later,
    the search gets its turn, or finds the index."""


SearchAnswer = HitBatch | NeedleError | BeingIndexed
"""What stands where a request stood: its answer, or why there is none."""


class Builders:
    """The places of one node. Methods may be called from any thread."""

    def __init__(self, search_threads: int) -> None:
        self.limit = max(1, search_threads // SHARE)
        self._free = threading.BoundedSemaphore(self.limit)

    @contextmanager
    def place(self, documents: int) -> Iterator[None]:
        """Hold a place. documents: so many are to be read for an index. Raises BeingIndexed if all are taken."""
        if not self._free.acquire(blocking=False):
            raise BeingIndexed("other searches make the indexes of the fields that they filter on")
        try:
            yield
        finally:
            self._free.release()


class NoBuilders(Builders):
    """For searches beside which others wait: they bring indexes forward by a few documents, and make none."""

    def __init__(self) -> None:
        super().__init__(SHARE)

    @contextmanager
    def place(self, documents: int) -> Iterator[None]:
        """Without a place. Raises BeingIndexed for what takes long."""
        if documents > FEW_DOCUMENTS:
            raise BeingIndexed("an index is made by who asks this replica alone")
        yield
