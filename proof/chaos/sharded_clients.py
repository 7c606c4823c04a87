"""Clients of a sharded cluster under chaos, and what writes their history down.

Shard-aware ones may reach the nodes over links of their own; plain ones reach one node after the other, as behind a
load balancer, and that node routes for them. It must not know faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import IO, Any

from needle.base.errors import ConnectionLost, DeadlineExceeded, NeedleError
from needle.base.model import HitBatch, ReadMode
from needle.base.parts import Body, Payload
from needle.client.directory import Caller
from needle.routing.topology import Topology
from proof.chaos.history_file import Recorder
from proof.plain_client import PlainClient
from proof.sim.databases import Proxied, ShardAware
from proof.sim.databases import Recorder as AnswerRecorder
from proof.sim.history import Operation

PARTIAL_CHANCE = 0.15
Where = Callable[[str], str]
"""The address to connect to, for one that the client was told."""


class Through:
    """A network on which addresses are reached over links."""

    def __init__(self, caller: Caller, where: Where) -> None:
        self._caller, self._where = caller, where

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload:
        return await self._caller.call(self._where(address), method, body, timeout)

    def connected(self, address: str) -> bool:
        return self._caller.connected(self._where(address))

    async def connect(self, address: str, timeout: float) -> None:
        await self._caller.connect(self._where(address), timeout)

    async def close(self) -> None:
        await self._caller.close()


class Balancer(Through):
    """Every address is the one node that a load balancer chose; it chooses again when that fails. node: its name."""

    def __init__(self, caller: Caller, addresses: Callable[[], Mapping[str, str]], rng: random.Random) -> None:
        super().__init__(caller, lambda _: addresses()[self.node])
        self._names = sorted(addresses())
        self._rng = rng
        self.node = rng.choice(self._names)

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload:
        try:
            return await super().call(address, method, body, timeout)
        except (ConnectionLost, DeadlineExceeded):
            self.node = self._rng.choice(self._names)
            raise

    async def connect(self, address: str, timeout: float) -> None:
        try:
            await super().connect(address, timeout)
        except NeedleError:
            self.node = self._rng.choice(self._names)
            raise


class ShardAwareSession(ShardAware):
    """Straight to the shards' leaders; now and then it asks for a partial answer. applied: by shard, of the last
    search; told: what else to record of it."""

    via = ""

    def __init__(
        self, caller: Caller, addresses: list[str], topology: Topology, rng: random.Random, partials: random.Random
    ) -> None:
        """partials: draws the searches that may be answered in part."""
        super().__init__(caller, addresses, topology, rng)
        self.applied: dict[int, int] | None = None
        self.told: dict[str, Any] = {}
        self._partials = partials

    async def search(self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool) -> HitBatch:
        partial = mode is not ReadMode.EVENTUAL and self._partials.random() < PARTIAL_CHANCE
        answer = await self.find(vector, k, filter, mode, exact, partial)
        self.applied = answer.applied
        gaps = [[start.hex(), end if end is None else end.hex()] for start, end in answer.gaps]
        self.told = {"partial": True, "missing": list(answer.missing), "gaps": gaps} if partial else {}
        return answer.batch


class PlainSession(Proxied):
    """Through the nodes, which route."""

    applied = None
    told: Mapping[str, Any] = {}

    def __init__(self, balancer: Balancer, rng: random.Random, latest: Callable[[str], int]) -> None:
        recorder = AnswerRecorder(balancer)
        super().__init__(recorder, PlainClient(recorder, ["127.0.0.1:1"], rng=rng), latest)
        self._balancer = balancer

    @property
    def via(self) -> str:
        """The node that routes now."""
        return self._balancer.node


Session = ShardAwareSession | PlainSession


class ShardRecorder(Recorder):
    """A history in which indexes are told by shard. owner: of a key; sessions: by client; latest: by shard, the
    highest index that an answer has named."""

    def __init__(self, file: IO[str], **facts: Any) -> None:
        super().__init__(file, **facts)
        self.owner: Callable[[str], int] = lambda key: 0
        self.sessions: dict[str, Session] = {}
        self.latest: dict[int, int] = {}

    def latest_of(self, key: str = "") -> int:
        """What a strong read of `key` must have seen; 0 for no key."""
        return self.latest.get(self.owner(key), 0) if key else 0

    def invoke(self, client: str, kind: Any, key: str, time: float, **fields: Any) -> Operation:
        details = dict(fields.pop("details", {}))
        if key:
            details["shard"] = self.owner(key)
        elif details["mode"] == ReadMode.EVENTUAL:
            details["required"] = self.sessions[client].tokens(self.latest)
        else:
            details["required"] = dict(self.latest)
        return super().invoke(client, kind, key, time, details=details, **fields)

    def finish(self, operation: Operation, outcome: Any, time: float, **fields: Any) -> None:
        session, details = self.sessions[operation.client], operation.details
        if outcome == "ok" and operation.kind == "search" and not operation.key:
            details |= {"applied": session.applied, **session.told}
        if session.via:
            details["via"] = session.via
        super().finish(operation, outcome, time, **fields)
        if outcome == "ok" and operation.key:
            shard = details["shard"]
            self.latest[shard] = max(self.latest.get(shard, 0), operation.index, details.get("applied", 0))
