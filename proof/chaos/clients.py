"""The clients of a chaos run, and what writes their history down.

Those that know the map go straight to the shards' leaders, one of them over links of its own; plain ones reach one node
after the other, as behind a load balancer, and that node routes for them. It must not know faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import IO, Any

from needle.base.errors import ConnectionLost, DeadlineExceeded, NeedleError
from needle.base.parts import Body, Payload
from needle.client.directory import Caller
from proof.chaos.history_file import Recorder
from proof.checkers.history import Operation
from proof.sim.databases import Proxied

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
        super().__init__(caller, lambda _: self._address())
        self._addresses = addresses
        self._rng = rng
        self.node = ""
        self._choose()

    def _address(self) -> str:
        """Of the chosen node; of another one, if that is no more a node of the cluster."""
        if self.node not in self._addresses():
            self._choose()
        return self._addresses()[self.node]

    def _choose(self) -> None:
        self.node = self._rng.choice(sorted(self._addresses()))

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload:
        try:
            return await super().call(address, method, body, timeout)
        except (ConnectionLost, DeadlineExceeded):
            self._choose()
            raise

    async def connect(self, address: str, timeout: float) -> None:
        try:
            await super().connect(address, timeout)
        except NeedleError:
            self._choose()
            raise


class Balanced(Proxied):
    """Through the nodes, which route. via: the node that routes now."""

    def __init__(self, balancer: Balancer, rng: random.Random) -> None:
        super().__init__(balancer, ["127.0.0.1:1"], rng)
        self._balancer = balancer

    @property
    def via(self) -> str:
        return self._balancer.node


class ShardRecorder(Recorder):
    """A history in which indexes are told by shard. owner: of a key, as long as no range moves; latest: by shard, the
    highest index that an answer has named."""

    def __init__(self, file: IO[str], **facts: Any) -> None:
        super().__init__(file, **facts)
        self.owner: Callable[[str], int]
        self.latest: dict[int, int] = {}

    def last(self) -> dict[int, int]:
        """By shard, what a strong read must have seen."""
        return dict(self.latest)

    def contended(self) -> bool:
        return False

    def invoke(self, client: str, kind: Any, key: str, time: float, **fields: Any) -> Operation:
        details = dict(fields.pop("details", {}))
        if key:
            details["shard"] = self.owner(key)
        return super().invoke(client, kind, key, time, details=details, **fields)

    def finish(self, operation: Operation, outcome: Any, time: float, **fields: Any) -> None:
        super().finish(operation, outcome, time, **fields)
        if outcome == "ok" and operation.key:
            shard = operation.details["shard"]
            self.latest[shard] = max(self.latest[shard], operation.index, operation.details.get("applied", 0))
