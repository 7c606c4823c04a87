"""What a change feed asks of the shards: where their changes end, the next ones, and which moves of ranges have left.

Any replica that has applied a position may tell what is behind it, for only what is committed is applied. It must not
know what becomes of the changes (client/feed.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from needle.base.errors import CollectionNotFound, NeedleError, StaleEpoch, TooStale, Unavailable
from needle.base.ids import shard_group
from needle.base.model import ReadMode
from needle.client.feed_calls import Asked, Begun
from needle.client.router.routes import Routes, in_callers_names
from needle.protocol import calls
from needle.protocol.calls import Freshness
from needle.protocol.change_calls import ANY_EPOCH, CHANGES, LIMIT_MAX, ChangesAnswer, ChangesCall, Position
from needle.protocol.peer_calls import ReceivedAnswer
from needle.routing.topology import Topology, collection_id, public_name

ANSWER_SECONDS = 2.0
"""For a replica's answer, beyond the time that it may wait for a change."""
_NOW: Position = (1, 0)


class Feeding:
    """The calls of one router."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    @property
    def topology(self) -> Topology:
        """The newest known here."""
        return self._routes.shards.topology()

    async def renewed(self, timeout: float) -> Topology:
        """As the catalog confirms it."""
        return await self._routes.shards.confirmed(timeout)

    async def look(self, timeout: float) -> Topology:
        """A newer topology, if a node tells of one in time."""
        return await self._routes.shards.refresh(self.topology.version + 1, timeout)

    async def begin(self, collection: str, timeout: float, vectors: Sequence[str] = ()) -> Begun:
        """Where the changes of all shards end. No move of a range is half before that and half behind: all shards own
        there what one map says. vectors: named ones. Raises CollectionNotFound; InvalidArgument for a vector that there
        is not."""

        async def run(stored: str, left: float) -> Begun:
            named = [await self._routes.vector(stored, name, left) for name in vectors]
            return Begun(stored, collection_id(stored) or 0, await self.ends(stored, left), tuple(named))

        return await self._routes.named(collection, timeout, run)

    async def ends(self, stored: str, timeout: float) -> dict[int, Position]:
        """By shard; see `begin`."""
        answers = await self._routes.fan_out.read(
            CHANGES,
            lambda shard, fresh, epoch: ChangesCall(shard_group(shard), stored, _NOW, 1, False, fresh, epoch),
            lambda _: [info.shard for info in self.topology.serving],
            lambda _: Freshness(ReadMode.STRONG),
            timeout,
        )
        return {shard: calls.decode(body, ChangesAnswer).reached for shard, body in answers.by_shard.items()}

    async def page(self, asked: Asked, timeout: float) -> ChangesAnswer | None:
        """The next changes of a shard; None if no replica knows all of them any more. Raises the last error of a
        replica if none answers in time; CollectionNotFound, for a named vector too."""
        call = ChangesCall(
            shard_group(asked.shard), asked.stored, asked.position, min(asked.limit, LIMIT_MAX), asked.with_vectors,
            Freshness(), ANY_EPOCH, asked.wait, asked.past, 0, b"", asked.filter, asked.near, asked.named,
        )  # fmt: skip
        return await self._of_any(asked.shard, call, max(asked.applied, asked.position[0] - 1), timeout)

    async def _of_any(self, shard: int, call: ChangesCall, applied: int, timeout: float) -> ChangesAnswer | None:
        """What a replica answers that has applied that entry and knows what is asked; None if none does. Those that do
        not answer are asked three times, while another one has answered."""
        loop, group = asyncio.get_running_loop(), self._routes.shards.group(shard)
        deadline, rounds = loop.time() + timeout, 0
        seconds = call.wait + ANSWER_SECONDS
        fresh = Freshness(ReadMode.EVENTUAL, applied, 0.0, seconds)
        body = calls.encode(self._routes.fan_out.binding(CHANGES, msgspec.structs.replace(call, freshness=fresh)))
        last: NeedleError = Unavailable(f"no replica of shard {shard} is known")
        while True:
            forgot = failed = 0
            for address in group.replicas():
                try:
                    data = await group.ask_replica(address, CHANGES, body, seconds)
                except NeedleError as error:
                    passing = error.retryable or error.of_the_node or self._not_there_yet(error, call)
                    if not passing or isinstance(error, StaleEpoch):
                        raise
                    last, failed = error, failed + 1
                    if not isinstance(error, TooStale | CollectionNotFound):
                        group.suspect(address)
                    continue
                answer = calls.decode(calls.decode(data, ReceivedAnswer).body, ChangesAnswer)
                if answer.known:
                    batch = answer.documents
                    batch = (
                        msgspec.structs.replace(batch, named=in_callers_names(batch.named)) if batch.named else batch
                    )
                    return msgspec.structs.replace(answer, documents=batch)
                forgot += 1
            rounds += 1
            if forgot and (not failed or rounds >= 3):
                return None
            if loop.time() > deadline:
                raise last
            await self._routes.shards.refresh(self.topology.version + 1, 0.1 * rounds)

    def _not_there_yet(self, error: NeedleError, call: ChangesCall) -> bool:
        """Whether a replica only has not heard yet of a named vector that was added lately: the catalog has it."""
        info = self.topology.named(public_name(call.collection))
        if not isinstance(error, CollectionNotFound) or "vector" not in error.details or info is None:
            return False
        asked = [*call.named, *([call.near.vector_name] if call.near and call.near.vector_name else [])]
        return {*asked} <= {info.stored_vector(one) for one in info.vectors}

    async def released(self, stored: str, shard: int, position: Position, move: int, timeout: float) -> int | None:
        """The entry behind `position` by which a move took ranges away from a shard, 0 if none did; None if no replica
        knows. It sees all that was committed before the call."""
        call = ChangesCall(shard_group(shard), stored, position, 1, False, Freshness(), ANY_EPOCH, move=move)

        def body(left: float) -> bytes:
            fresh = Freshness(ReadMode.STRONG, position[0] - 1, 0.0, left)
            return calls.encode(self._routes.fan_out.binding(CHANGES, msgspec.structs.replace(call, freshness=fresh)))

        data = await self._routes.shards.group(shard).ask_leader(CHANGES, body, timeout)
        answer: ChangesAnswer | None = calls.decode(calls.decode(data, ReceivedAnswer).body, ChangesAnswer)
        if answer is not None and not answer.known:  # it was opened lately: one that has applied as much may know
            answer = await self._of_any(shard, call, answer.reached[0] - 1, timeout)
        return None if answer is None else answer.released
