"""What a server serves, and for whom.

It must not know connections, or methods.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from needle.base.access import Identity
from needle.base.parts import Body, Payload
from needle.base.versions import KNOWN

Answer = Body


class Peer:
    """Who is at the other end, as said in its hello. node_id: "" for clients. remote: its "host:port". identity: what
    it may do, as the handler says that admits it. within, knows: see Hello.

    closed: the connection is gone and answers are dropped; a handler of reads may look at it and stop early.
    """

    __slots__ = ("closed", "identity", "incarnation", "knows", "node_id", "remote", "within")

    def __init__(
        self, node_id: str, incarnation: int, remote: str, identity: Identity, within: str = "", knows: int = KNOWN
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.remote = remote
        self.identity = identity
        self.within = within
        self.knows = knows
        self.closed = False


class Handler(Protocol):
    """What a server serves. Called on the event loop; must not block."""

    def admit(self, node_id: str, key: str, proven: bool, remote: str) -> Identity:
        """Who has said hello, with this API key if any; proven: that it knows the cluster's secret. Raises
        Unauthenticated."""
        ...

    def on_oneway(self, peer: Peer, body: Payload) -> None:
        """A one-way frame arrived. An exception is logged; nobody is told."""
        ...

    def on_request(self, peer: Peer, method: str, body: Payload) -> Answer | Awaitable[Answer]:
        """The answer, or a promise of it, or any awaitable (run as a task).

        A NeedleError is sent to the caller; any other exception as Internal. When the caller is gone, work that
        `is_droppable` is cancelled; other work finishes and its answer is dropped. body: a view into the received
        chunk when large; decode it, or copy it.
        """
        ...

    def is_droppable(self, method: str) -> bool:
        """Whether nobody but the caller minds if this work is cancelled."""
        ...

    def on_gone(self, peer: Peer) -> None:
        """A connection that had said its hello has ended; there may be others of the same peer."""
        ...
