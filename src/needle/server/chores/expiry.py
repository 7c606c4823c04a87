"""When documents expire: what a leader puts into the writes that it proposes, and the Expire that it proposes.

This is the one place where a wall clock decides. What it decides goes into the log, so replicas never disagree, and a
clock that goes back brings nothing back: who is deleted is deleted (docs/adr/0044). While nothing can expire, nothing
is done but a comparison of two numbers.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import msgspec

from needle.base.errors import invalid
from needle.base.instants import MICROS_MAX, rfc3339
from needle.base.runtime import Clock, micros_of
from needle.protocol import commands
from needle.protocol.commands import AS_IT_IS, NEVER
from needle.routing.stored_collections import StoredCollections
from needle.routing.topology import Topology
from needle.server.chores.context import ChoreContext

LOOK_SECONDS: Final = 1.0
"""A document is deleted about so long after its instant at the latest, if its shard has a leader."""
MORE_SECONDS: Final = 0.05
"""Between two entries while there is more to delete."""
ROWS_MAX: Final = 1000
"""Documents of one entry."""

C = TypeVar("C", bound=commands.Command)


def _ttl_of(topology: Topology, stored: str, known: StoredCollections) -> float:
    """The time to live of a collection, by its name inside the shards; 0 for none."""
    info = known.find(topology, stored)
    return 0.0 if info is None else info.spec.ttl


def timed(
    command: commands.Command, topology: Topology, clock: Clock, known: StoredCollections | None = None
) -> commands.Command:
    """A write as it goes into the log: with the instant that the collection's time to live makes of the clock, where it
    names none itself. known: what was found of collections before. Raises InvalidArgument for an instant that has
    passed."""
    known = known or StoredCollections()
    if isinstance(command, commands.Insert):
        ttl = _ttl_of(topology, command.collection, known)
        if not ttl and not command.expires:
            return command
        now = micros_of(clock)
        for said in command.expires:
            _check(said, now)
        usual = _usual(ttl, now)
        expires = [said or usual for said in command.expires] or [usual] * len(command.ids)
        return msgspec.structs.replace(command, expires=expires)
    if isinstance(command, commands.UpdateVectors):
        said = _said(command.expires, _ttl_of(topology, command.collection, known), clock)
        return command if said == command.expires else msgspec.structs.replace(command, expires=said)
    if isinstance(command, commands.Patch | commands.ChangeWhere) and command.change is not None:
        change = command.change
        said = _said(change.expires, _ttl_of(topology, command.collection, known), clock)
        if said != change.expires:
            return msgspec.structs.replace(command, change=msgspec.structs.replace(change, expires=said))
    return command


def _said(said: int, ttl: float, clock: Clock) -> int:
    if not said and not ttl:
        return AS_IT_IS
    now = micros_of(clock)
    _check(said, now)
    return said or _usual(ttl, now)


def _usual(ttl: float, now: int) -> int:
    return min(now + max(1, round(ttl * 1_000_000)), MICROS_MAX) if ttl else AS_IT_IS


def _check(said: int, now: int) -> None:
    if said in (AS_IT_IS, NEVER):
        return
    if not 0 < said <= MICROS_MAX:
        raise invalid("expires_at", said, f"microseconds since 1970, up to {MICROS_MAX}")
    if said <= now:
        error = invalid(
            "expires_at", rfc3339(said), f"an instant after {rfc3339(now)}, which it is on the shard's leader"
        )
        error.details["now"] = now
        raise error


class Expiry:
    """Has what has passed its instant deleted, while this node leads the group."""

    def __init__(self, at: ChoreContext) -> None:
        self._at = at

    async def run(self) -> None:
        """Until the node stops."""
        at = self._at
        while not at.host.stopped:
            more = False
            if at.replica.may_expire(micros_of(at.clock)) and at.leads:
                more = bool(await at.attempt(self._expire(), "what has expired stays for now"))
            if more:
                await asyncio.sleep(MORE_SECONDS)
            else:
                await at.beats.next(LOOK_SECONDS, lambda: not at.replica.may_expire(micros_of(at.clock)))

    async def _expire(self) -> bool:
        """Have up to ROWS_MAX documents of one collection deleted; whether there may be more."""
        now = micros_of(self._at.clock)
        collection = await self._at.pool.run(self._at.replica.expired, now)
        return bool(collection) and bool((await self._at.propose(commands.Expire(collection, now, ROWS_MAX))).count)
