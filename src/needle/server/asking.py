"""Where nodes are, asked of others: a node that hears from one whose address it does not know could never answer it.

Invariant: what others say is believed only of nodes that this one knows no address of. It must not know the catalog.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from needle.base.config import RaftConfig
from needle.base.errors import NeedleError
from needle.base.ids import NodeId
from needle.protocol import calls
from needle.protocol.calls import AddressBook as AddressBookMessage
from needle.server.address_book import AddressBook
from needle.server.ports import Peers

log = logging.getLogger("needle.server")

ASK_SECONDS = 1.0


class AskingNode(Protocol):
    """The node that asks."""

    node_id: NodeId
    config: RaftConfig
    book: AddressBook
    peers: Peers

    def addresses(self) -> dict[NodeId, str]: ...


class AddressNews:
    """See the module."""

    def __init__(self, node: AskingNode) -> None:
        self._node = node
        self._asking: asyncio.Task[None] | None = None
        self._asked_for: NodeId | None = None
        self._ended = False

    def heard_from(self, node: NodeId) -> None:
        """A node speaks to this one. If this node does not know where it listens (it was down when that one joined),
        the others are asked."""
        if self._ended or self._node.book.get(node) is not None:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask(node))

    async def _ask(self, node: NodeId) -> None:
        level = logging.DEBUG if node == self._asked_for else logging.INFO  # it speaks on, and is asked for each second
        self._asked_for = node
        log.log(level, "node %s speaks to this node, which does not know its address: asking the others", node)
        try:
            await self._exchange(level)
        except NeedleError as error:
            log.warning("the address of node %s could not be learned: %s", node, error)
        await asyncio.sleep(ASK_SECONDS)  # if nobody knew it, the next frame asks again, not every frame

    async def _exchange(self, level: int) -> None:
        """Tell all others where this node is, and learn of them where those are that it does not know."""
        node = self._node
        body = calls.encode(AddressBookMessage({node.node_id: node.config.announced}))
        others = [other for other in node.addresses() if other != node.node_id]
        answers = await asyncio.gather(
            *(node.peers.call(other, calls.ADDRESSES, body, ASK_SECONDS) for other in others), return_exceptions=True
        )
        for other, answer in zip(others, answers, strict=True):
            if isinstance(answer, NeedleError):
                log.log(level, "node %s was not told where this node is: %s", other, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                node.book.learn_missing(calls.decode(answer, AddressBookMessage).addresses)

    def end(self) -> None:
        """Ask no more: the listener still takes what others send while the node stops."""
        self._ended = True
        if self._asking is not None:
            self._asking.cancel()
