"""What a document of a collection weighs on a replica's disk, as an estimate that costs nothing to keep.

Its vector is there twice, in the file of documents and in an index file; ids and metadata count as the mean of those
that were written last. The same on all replicas but for that mean. Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

SAMPLE: Final = 64
"""Documents looked at, at most, of what is written at once, and when a file is opened."""
FORGETS: Final = 4096
"""Of so many documents seen, those seen earlier count half."""
ROW_BYTES: Final = 160
"""Of tables, indexes and the graph around a document, whatever is in it."""


class Weights:
    """Of one collection. vector_bytes: of a stored vector."""

    def __init__(self, vector_bytes: int) -> None:
        self._fixed = 2 * vector_bytes + ROW_BYTES
        self._seen = 0
        self._bytes = 0

    def note(self, documents: Collection[tuple[str, bytes]]) -> None:
        """Ids and metadata of documents that were written."""
        self._bytes += sum(len(name) + len(metadata) for name, metadata in documents)
        self._seen += len(documents)
        if self._seen > FORGETS:
            self._seen, self._bytes = self._seen // 2, self._bytes // 2

    @property
    def document_bytes(self) -> int:
        """Of one document."""
        return self._fixed + (self._bytes // self._seen if self._seen else 0)
