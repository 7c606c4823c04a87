"""When an entry of a shard's log was proposed: eight bytes in front of its command (docs/adr/0076). Pure.

Nothing that is applied depends on it: who restores to an instant reads it. Callers' commands have none.
"""

from __future__ import annotations

from typing import Final

STAMPED: Final = b"\x02"
"""In the place of commands.FORMAT; then come the clock of the leader that proposed the entry, in microseconds since
1970, and what follows FORMAT elsewhere."""
STAMPED_SINCE: Final = 4
STAMP_BYTES: Final = 8
HEAD_BYTES: Final = len(STAMPED) + STAMP_BYTES


def head(at: int) -> bytes:
    """What stands in front of a command that is proposed at this instant."""
    return STAMPED + max(0, at).to_bytes(STAMP_BYTES, "big")


def stamp(data: bytes) -> int:
    """When a log entry was proposed, by its leader's clock (microseconds since 1970); 0 if it does not say."""
    return int.from_bytes(data[len(STAMPED) : HEAD_BYTES], "big") if data[:1] == STAMPED else 0
