"""Hearing of a newer topology: a node is asked for what changed, and for the whole where that does not fit.

Invariant: what is returned is what some node has, never something between two of them: changes that do not make it out
of what is known here are thrown away. A node of an earlier release answers with the whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from needle.base.parts import Payload
from needle.protocol import calls
from needle.protocol.peer_calls import TopologyAnswer, TopologyCall
from needle.routing.topology import Topology
from needle.routing.topology_changes import FORM, Changes, Summed, changed


class Hearing:
    """Of one client or node. misfits: how often changes did not fit. shortened: how often they did."""

    def __init__(self) -> None:
        self.misfits = self.shortened = 0
        self._summed: Summed | None = None
        """Of what was known when changes came last."""

    async def ask(
        self,
        call: Callable[[bytes], Awaitable[Payload]],
        known: Topology,
        wait: float = 0.0,
        *,
        confirmed: bool = False,
    ) -> Topology | None:
        """A topology that is newer than `known`; None if the node has none. call: brings a body to the node, and its
        answer. wait, confirmed: as in TopologyCall. Raises what the call raises, and ProtocolError."""
        question = TopologyCall(known.version, wait, confirmed, known.founding, FORM)
        answer = calls.decode(await call(calls.encode(question)), TopologyAnswer)
        if answer.changes is None:
            if answer.topology is not None:
                self._summed = None  # its rows are other objects: what was known until now is not kept for them
            return answer.topology
        made = self._made(known, answer.changes)
        if made is not None:
            return made
        question = TopologyCall(known.version, 0.0, confirmed, known.founding)
        return calls.decode(await call(calls.encode(question)), TopologyAnswer).topology

    def _made(self, known: Topology, changes: Changes) -> Topology | None:
        before = Summed.of(known) if self._summed is None else self._summed.next(known)[0]
        self._summed = changed(before, changes)
        if self._summed is None:
            self.misfits += 1
            return None
        self.shortened += 1
        return self._summed.topology
