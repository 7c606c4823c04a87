"""Asks a shard's replicas for entries of its log.

Its leader says what a majority has. Where it came by a snapshot, it has no entries behind that: then the others are
asked, which may have them. Invariant: what followers give they have applied, so it is committed, and the same in all
logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from needle.backup.shard_archive import ShardArchive
from needle.base.errors import NeedleError, Unavailable
from needle.client import Client
from needle.client.shards import ask_leader, ask_replicas
from needle.protocol import calls
from needle.protocol.archive_calls import LOG, LogAnswer, LogCall

CALL_SECONDS: Final = 10.0
TELL_SECONDS: Final = 2.0
TOLD_AT_ONCE: Final = 8
"""Shards."""
AWAIT_SECONDS: Final = 120.0
"""So long entries are waited for that a replica may have which does not answer, as one that is just restarted."""


async def ask_log(client: Client, shard: int, call: LogCall) -> LogAnswer:
    """The leader."""
    answer = await ask_leader(
        client, shard, LOG, lambda left: calls.encode(msgspec.structs.replace(call, timeout=left)), CALL_SECONDS
    )
    return calls.decode(answer, LogAnswer)


class Followers:
    """Tells replicas that do not lead how far the archive is, so that the next leader knows it, beside all else: one
    that hangs keeps nothing waiting but this. Who does not answer hears of it later."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._telling: asyncio.Future[list[None]] | None = None

    @property
    def idle(self) -> bool:
        """All were told."""
        return self._telling is None or self._telling.done()

    def tell(self, said: Mapping[int, LogCall]) -> None:
        """By shard. For when it is idle."""
        room = asyncio.Semaphore(TOLD_AT_ONCE)

        async def told(shard: int, call: LogCall) -> None:
            body = calls.encode(
                msgspec.structs.replace(call, follower=True, after=call.kept, bytes_max=0, timeout=TELL_SECONDS)
            )
            async with room:
                await ask_replicas(self._client, shard, LOG, body, TELL_SECONDS, leader=False)

        self._telling = asyncio.gather(*(told(*one) for one in said.items()))

    async def close(self) -> None:
        """Break off."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)


async def ask_followers(
    client: Client, archive: ShardArchive, call: LogCall, leader: LogAnswer, now: float
) -> LogAnswer:
    """What the leader answered, with the entries that it lacks if another replica has them. One of a release before
    this one gives none. now: monotonic seconds. Raises Unavailable where a replica may have them and does not answer,
    or has not applied them yet: without them the archive would have a gap forever."""
    body = calls.encode(msgspec.structs.replace(call, follower=True))
    awaited = list[str]()
    for address, found in (await ask_replicas(client, archive.shard, LOG, body, CALL_SECONDS)).items():
        if isinstance(found, NeedleError):
            awaited.append(f"{address} does not answer: {found.message}")
            continue
        answer = calls.decode(found, LogAnswer)
        if archive.term and answer.term not in (0, archive.term):
            continue
        entries = [one for one in answer.entries or () if one.index <= leader.upto]
        if entries and entries[0].index == call.after + 1:
            archive.awaits_since = None
            return msgspec.structs.replace(leader, entries=entries, term=answer.term)
        if answer.entries is not None and answer.upto <= call.after < leader.upto:
            awaited.append(f"{address} has applied {answer.upto} entries so far")
    if awaited and archive.awaits(now, AWAIT_SECONDS):
        raise Unavailable(
            f"shard {archive.shard}: the log of its leader does not go back to entry {call.after + 1}, and another "
            f"replica may have it: {'; '.join(awaited)}"
        )
    return leader
