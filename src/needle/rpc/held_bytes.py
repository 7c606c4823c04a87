"""What a server holds for one of its peers, beside what it holds for all of them.

Invariant: while the server holds too much, who has more than a fair share of it is told so, and nobody else. Does not
know what is held.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

from needle.base.errors import Overloaded
from needle.rpc.connection import RpcLimits

SHARE_BYTES_MIN = 1024 * 1024
"""A connection that holds no more than this is not refused for what others hold, up to twice the bound of all."""


class Holding(Protocol):
    """What it needs of the server. held: bytes held for all peers."""

    held: int
    limits: RpcLimits

    @property
    def connections(self) -> Sized: ...
    def over_budget(self, more: int) -> bool:
        """Whether `more` bytes are too many beside those that are held for all peers together."""
        ...


class HeldBytes:
    """Of one connection."""

    def __init__(self, server: Holding) -> None:
        self._server = server
        self.now = 0
        """As far as the server was told."""

    def tell(self, held: int) -> None:
        """So many are held for this peer now."""
        if held != self.now:
            self._server.held += held - self.now
            self.now = held

    def are_greedy(self, more: int = 0) -> bool:
        """Whether the server holds too much, and for this peer more than its share."""
        server, limit = self._server, self._server.limits.held_bytes_max
        if not server.over_budget(more):
            return False
        share = limit // max(1, len(server.connections))
        if server.held + more <= 2 * limit:
            share = max(SHARE_BYTES_MIN, share)
        return self.now + more > share

    def overloaded(self, what: str) -> Overloaded:
        """The refusal of `what` for this peer."""
        limit = self._server.limits.held_bytes_max
        return Overloaded(
            f"this node holds {self._server.held} bytes of requests and unread answers, its limit is {limit}: there is "
            f"no room for {what}",
            limit=limit,
        )
