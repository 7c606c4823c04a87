"""The client's methods for API keys. A part of `Client`, for admins.

Invariant: a key is made here and leaves this process only to its caller; the cluster is told its SHA-256.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from needle.base.access import (
    KEY_BYTES,
    KeyInfo,
    Role,
    check_key_name,
    check_new_key_name,
    check_role,
    digest_of,
    new_key,
)
from needle.base.errors import Forbidden, NeedleError, Unauthenticated, invalid
from needle.base.ids import NodeId
from needle.base.model import WriteResult
from needle.base.rates import WHAT, Rates, check_rates
from needle.client import values
from needle.client.feeds import TIMEOUT, FilterLike
from needle.client.shards import OverShards, ask_leader
from needle.client.values import Seconds
from needle.protocol import calls
from needle.protocol.key_commands import CreateKey, LimitKey, RevokeKey
from needle.protocol.peer_calls import TOPOLOGY, TopologyAnswer, TopologyCall
from needle.protocol.probe_calls import CLOCK, ClockCall
from needle.routing.topology_changes import FORM

TOLD_SECONDS = 1.0
"""So long a node has to say that it has heard of a key, or of its end."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to know of an API key. role: monitor, reader, writer or admin. collections: the only ones that it
    may use; None for all. filter: of the only documents that it sees and writes, in its canonical dict form; None for
    all. requests, documents, bytes: a second, of each node; 0 for as many as it can."""

    name: str
    role: Role
    collections: list[str] | None = None
    filter: dict[str, Any] | None = None
    requests: float = 0.0
    documents: float = 0.0
    bytes: float = 0.0


class NewApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An ApiKey that was just made. key: what clients give; nobody can find it out again."""

    name: str
    role: Role
    collections: list[str] | None = None
    filter: dict[str, Any] | None = None
    requests: float = 0.0
    documents: float = 0.0
    bytes: float = 0.0
    key: str


class KeyMethods(OverShards):
    """See the module."""

    async def create_key(
        self,
        name: str,
        role: Role | str = Role.READER,
        *,
        collections: Iterable[str] | None = None,
        filter: FilterLike = None,
        requests: float = 0.0,
        documents: float = 0.0,
        bytes: float = 0.0,
        timeout: Seconds = TIMEOUT,
    ) -> NewApiKey:
        """Make an API key. role: monitor, reader, writer or admin. collections: the only ones that it may use, by their
        own names, whether they are there already or not; None for all. filter: documents that do not match it are not
        there for this key, and it can write none that do not (docs/security.md); None for all. requests, documents,
        bytes: as `limit_key`. An admin may use all. Every node that answers knows the key when this returns. Raises
        AlreadyExists for a name in use, InvalidArgument, Forbidden; ClusterTooOld for a filter, rates or a monitor
        while a node does not know of these."""
        seconds, check_key = values.check_timeout(timeout), check_new_key_name(name)
        given = None if collections is None else [values.check_name(one) for one in _listed(collections)]
        key, kind = new_key(secrets.token_bytes(KEY_BYTES)), check_role(role)
        bound = values.filter_bytes(filter)
        rates = _rates(requests, documents, bytes)
        command = CreateKey(check_key, digest_of(key), kind, given, bound, rates)
        await self._told(await self._shards.command(command, seconds), seconds)
        made = _shown(KeyInfo(check_key, b"", kind, None if given is None else tuple(given), 0, bound, rates))
        return NewApiKey(**msgspec.structs.asdict(made), key=key)

    async def keys(self, *, timeout: Seconds = TIMEOUT) -> list[ApiKey]:
        """The API keys of the cluster, by name; what they are is not kept. Raises Forbidden."""
        seconds = values.check_timeout(timeout)
        found = (await self._shards.confirmed(seconds)).keys
        if not found:  # others than admins are told of none, which is no answer: so ask what only admins may
            await ask_leader(self, -1, CLOCK, lambda _: calls.encode(ClockCall()), seconds)
        if not all(key.digest for key in found):
            raise Forbidden("the keys of the cluster are listed with a key of the role admin", needs=Role.ADMIN.value)
        return [_shown(key) for key in found]

    async def limit_key(
        self,
        name: str,
        *,
        requests: float = 0.0,
        documents: float = 0.0,
        bytes: float = 0.0,
        timeout: Seconds = TIMEOUT,
    ) -> list[NodeId]:
        """How much a key may ask of each node in a second, from now on, also on connections that are open; 0 for as
        much as the node can. documents: that are written or asked for. bytes: of requests and answers. What is more is
        refused with TooManyRequests, which says how long to wait; clients wait and try again within their timeout.
        Returns the nodes that did not confirm it, as `revoke_key`. Raises InvalidArgument for a name that no key has,
        and for an admin's; Forbidden, ClusterTooOld."""
        seconds = values.check_timeout(timeout)
        command = LimitKey(check_key_name(name), _rates(requests, documents, bytes))
        return await self._told(await self._shards.command(command, seconds), seconds)

    async def revoke_key(self, name: str, *, timeout: Seconds = TIMEOUT) -> list[NodeId]:
        """Take an API key back: calls with it are refused from now on, also on connections that are open. Returns the
        nodes that did not confirm it, [] as a rule: each refuses the key as soon as it hears from the others. Raises
        InvalidArgument if there is no such key, Forbidden."""
        seconds = values.check_timeout(timeout)
        result = await self._shards.command(RevokeKey(check_key_name(name)), seconds)
        if not result.existed:
            raise invalid("name", name, "the name of a key: `needle keys list` shows them")
        return await self._told(result, seconds)

    async def _told(self, result: WriteResult, timeout: float) -> list[NodeId]:
        """Ask all nodes whether they have heard of it; which of them do not say so in time."""
        seconds = min(timeout, TOLD_SECONDS)
        founding = self._shards.topology().founding
        body = calls.encode(TopologyCall(result.version - 1, seconds, founding=founding, form=FORM))

        async def heard(address: str) -> bool:
            try:
                answer = calls.decode(await self._caller.call(address, TOPOLOGY, body, seconds), TopologyAnswer)
            except Unauthenticated:
                return True  # it has heard that this client's own key is revoked
            except NeedleError:
                return False
            return answer.has_news

        nodes = self._shards.topology().addresses()
        known = await asyncio.gather(*map(heard, nodes.values()))
        return [node for node, has in zip(nodes, known, strict=True) if not has]


def _shown(key: KeyInfo) -> ApiKey:
    return ApiKey(
        name=key.name,
        role=key.role,
        collections=None if key.collections is None else list(key.collections),
        filter=msgspec.json.decode(key.filter, type=dict[str, Any]) if key.filter else None,
        **msgspec.structs.asdict(key.rates),
    )


def _rates(*given: float) -> Rates:
    for name, value in zip(WHAT, given, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise invalid(name, value, "a number a second, 0 for no limit")
    return check_rates(Rates(*map(float, given)))


def _listed(names: Iterable[str]) -> list[str]:
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise invalid("collections", names, "a list of names of collections, or None for all")
    return list(names)
