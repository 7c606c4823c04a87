"""Where a shard is, by the newest map of the cluster: writes carry its epoch, and news of it is asked for.

Invariant: a write is routed again only if its shard said that nothing was done; a write of unknown fate stays with the
shard that may have executed it.
"""

from __future__ import annotations

from typing import Any

from needle.base.errors import OutcomeUnknown, StaleEpoch
from needle.base.ids import GroupId
from needle.base.parts import Body
from needle.client.asking import asking
from needle.client.attempts import Attempts
from needle.client.group import MakeBody
from needle.client.known_topology import KnownTopology, told_version
from needle.client.meaning import meant
from needle.protocol import calls
from needle.protocol.commands import DOCUMENT_WRITES, Command, encode_body

UNKNOWN_EPOCH = -1
"""Older than any map: whoever is asked tells of its own."""
LOOK_SECONDS = 0.001
"""Long enough to have the question for a newer topology asked; who waits for it goes on."""


class ByMap:
    """`group.Place` of a shard, or of the catalog."""

    def __init__(self, shard: int, known: KnownTopology) -> None:
        self.name = f"shard {shard}" if shard >= 0 else "the catalog"
        self._known = known

    def body(self, group: GroupId, command: Command) -> MakeBody:
        """A write with the newest epoch known at each attempt."""
        data, topology = encode_body(command), self._known.topology
        asked = asking.get()
        if asked is not None and not isinstance(command, DOCUMENT_WRITES):
            asked = None

        def body(seconds: float) -> Body:
            now, meaning = topology(), meant.get()
            epoch = now.map.epoch if now.map is not None else UNKNOWN_EPOCH
            if meaning is not None:
                epoch = meaning.epoch(now)
            call: tuple[Any, ...] = (group, data, seconds, epoch)  # a WriteCall
            return calls.encode_body(call if asked is None else (*call, asked), data)

        return body

    def look(self) -> None:
        """Ask for a newer topology in the background."""
        self._known.look()

    async def unreached(self) -> None:
        """Nodes may have moved since this topology: have a newer one asked for."""
        await self._known.refresh(self._known.topology().version + 1, LOOK_SECONDS)

    async def stale(self, error: StaleEpoch, attempts: Attempts) -> None:
        """Raises it if the shard has done nothing; returns if an earlier attempt of the same write may have been
        executed. final: the shard's log holds that this numbered write has no effect, whatever became of its copies."""
        if not attempts.writes or not attempts.unknown or error.details.get("final"):
            raise error
        why = "the write was sent before, no answer came, and now"
        if error.details.get("owned") is False:
            raise OutcomeUnknown(f"{why} its shard has moved: {error.message}") from error
        await self._known.refresh(told_version(error), max(0.001, attempts.left()))
        meaning = meant.get()
        if meaning is not None and not meaning.holds(self._known.topology()):
            raise OutcomeUnknown(f"{why} its alias has another meaning: {error.message}") from error
