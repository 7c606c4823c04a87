"""The nodes as a client without a map sees them: any of them will do, and one that says nothing is left for another.

It must not know documents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from needle.base.errors import DeadlineExceeded, NeedleError, StaleEpoch
from needle.base.ids import GroupId, NodeId
from needle.base.model import WriteResult
from needle.base.parts import Body, Payload
from needle.base.runtime import Rng
from needle.client.attempts import PATIENCE_SECONDS, Attempts, Unanswered
from needle.client.directory import Caller, Directory
from needle.client.group import GroupClient, MakeBody
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from needle.protocol.commands import Command, Session, encode_body
from needle.routing.topology import Topology


class AnyNode(Directory):
    """Some addresses; whoever answers at one routes, and so counts as the leader."""

    asks = calls.LEADER

    def __init__(self, caller: Caller, addresses: Iterable[str]) -> None:
        super().__init__(caller, 0, Topology)
        self._given = list(addresses)

    def nodes(self) -> dict[NodeId, str]:
        return {address: address for address in self._given}

    def addresses(self) -> list[str]:
        return self._given

    def _place(self, answer: LeaderAnswer, said: str) -> str | None:
        return said


class Waiting(Unanswered):
    """A request is waited for as long as the node that has it answers anything."""

    def __init__(self, directory: AnyNode) -> None:
        super().__init__(directory)
        self._nodes = directory

    async def call(self, address: str, method: str, body: Body, seconds: float) -> Payload | None:
        """As `Unanswered.call`; None if the node says nothing at all."""
        nodes = self._nodes
        answer = asyncio.ensure_future(nodes.caller.call(address, method, body, seconds))
        try:
            while not (await asyncio.wait((answer,), timeout=PATIENCE_SECONDS))[0]:
                if await nodes.ask(address) is None and not answer.done():
                    nodes.suspect(address)
                    nodes.forget_leader(address)
                    return None
            return answer.result()
        finally:
            answer.cancel()


class Anywhere:
    """`needle.client.group.Place` of a group that any node finds."""

    name = "the cluster"

    def body(self, group: GroupId, command: Command) -> MakeBody:
        """A write without an epoch."""
        data = encode_body(command)
        return lambda seconds: calls.encode_body((group, data, seconds), data)  # a WriteCall

    def look(self) -> None:
        """There is nothing to look for."""

    async def unreached(self) -> None:
        """There is nothing to look for."""

    async def stale(self, error: StaleEpoch, attempts: Attempts) -> None:
        """The node that was asked finds the newer map by itself."""
        attempts.last = error


class PlainGroup(GroupClient):
    """All nodes, as if they held one group. `last_index`: the newest log index that an answer has carried."""

    last_index = 0

    def __init__(self, nodes: AnyNode, rng: Rng) -> None:
        super().__init__(nodes, rng, Anywhere())
        self.unanswered = Waiting(nodes)

    def saw(self, index: int) -> None:
        """An answer carried this log index."""
        self.last_index = max(self.last_index, index)

    async def write(self, make: Callable[[Session], Command], timeout: float) -> WriteResult:
        """As GroupClient.write."""
        result = await super().write(make, timeout)
        self.saw(result.index)
        return result

    async def ask_any(self, method: str, make_body: MakeBody, timeout: float) -> Payload:
        """Ask one node after the other, in turn, until one answers."""
        attempts = Attempts(timeout)
        last: NeedleError = DeadlineExceeded(f"no node answered within {timeout:g} s")
        while attempts.left() > 0:
            for address in self._directory.in_turn():
                if (left := attempts.left()) <= 0:
                    break
                try:
                    return await self._caller.call(address, method, make_body(left), left)
                except NeedleError as error:
                    if not error.retryable and not error.of_the_node:
                        raise
                    last = error
                    self._directory.suspect(address)
            await attempts.pause(self._rng)
        raise DeadlineExceeded(f"no node answered within {timeout:g} s: {last.message}")
