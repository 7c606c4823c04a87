"""Asks a shard's replicas for entries of its log.

Its leader says what a majority has. Where it came by a snapshot, it has no entries behind that: then the others are
asked, which may have them. Invariant: what followers give they have applied, so it is committed, and the same in all
logs.
"""

from __future__ import annotations

from typing import Final

import msgspec

from needle.backup.shard_archive import ShardArchive
from needle.base.errors import NeedleError
from needle.client import Client
from needle.client.shards import ask_leader, ask_replicas
from needle.protocol import calls
from needle.protocol.archive_calls import LOG, LogAnswer, LogCall

CALL_SECONDS: Final = 10.0
TELL_SECONDS: Final = 2.0


async def ask_log(client: Client, shard: int, call: LogCall) -> LogAnswer:
    """The leader."""
    answer = await ask_leader(
        client, shard, LOG, lambda left: calls.encode(msgspec.structs.replace(call, timeout=left)), CALL_SECONDS
    )
    return calls.decode(answer, LogAnswer)


async def tell_followers(client: Client, shard: int, call: LogCall) -> None:
    """All replicas, so that the next leader knows how far the archive is. Who does not answer hears of it later."""
    body = calls.encode(
        msgspec.structs.replace(call, follower=True, after=call.kept, bytes_max=0, timeout=TELL_SECONDS)
    )
    await ask_replicas(client, shard, LOG, body, TELL_SECONDS)


async def ask_followers(client: Client, archive: ShardArchive, call: LogCall, leader: LogAnswer) -> LogAnswer:
    """What the leader answered, with the entries that it lacks if another replica has them. One of a release before
    this one gives none."""
    body = calls.encode(msgspec.structs.replace(call, follower=True))
    for found in (await ask_replicas(client, archive.shard, LOG, body, CALL_SECONDS)).values():
        if isinstance(found, NeedleError):
            continue
        answer = calls.decode(found, LogAnswer)
        if archive.term and answer.term not in (0, archive.term):
            continue
        entries = [one for one in answer.entries or () if one.index <= leader.upto]
        if entries and entries[0].index == call.after + 1:
            return msgspec.structs.replace(leader, entries=entries, term=answer.term)
    return leader
