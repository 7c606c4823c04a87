"""How fast a cluster copies, beside the pauses that a rebalance makes: what was measured once, and what its own latest
moves have shown. Plain data."""

from __future__ import annotations

from typing import Final

import msgspec

REPLICA_BYTES: Final = 30_000_000
"""Of a new replica come in a second (docs/benchmarks.md, node replace), if nothing slows it down."""
RANGE_DOCUMENTS: Final = 4_000
"""Of a move of key ranges are copied in a second, beside callers (docs/benchmarks.md, moves)."""


class CopyRates(msgspec.Struct, frozen=True, kw_only=True):
    """replica_bytes: of a new replica, a second. range_documents: of a move of key ranges, a second. None: no move of
    the kind has shown it since the node leads the catalog that was asked."""

    replica_bytes: float | None = None
    range_documents: float | None = None

    @property
    def replica(self) -> float:
        """Bytes a second to expect."""
        return REPLICA_BYTES if self.replica_bytes is None else self.replica_bytes

    @property
    def range(self) -> float:
        """Documents a second to expect."""
        return RANGE_DOCUMENTS if self.range_documents is None else self.range_documents


MEASURED_ELSEWHERE: Final = CopyRates()
