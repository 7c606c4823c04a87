"""What is known of a cluster, and asking its nodes for news of it.

Invariant: one question for a newer topology runs at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol

from needle.base.errors import ClientClosed, DeadlineExceeded, NeedleError, Unauthenticated, in_seconds
from needle.base.parts import Payload
from needle.base.runtime import Rng
from needle.client.directory import Caller
from needle.client.finding import two_clusters
from needle.client.following import NEAR, Following
from needle.client.group import GroupClient
from needle.client.hearing import Hearing
from needle.protocol.peer_calls import TOPOLOGY
from needle.routing.meant import HOW_MADE
from needle.routing.topology import Topology

ASK_SECONDS = 1.0
PAUSE_SECONDS = 0.02


class KnownTopology(Protocol):
    """The newest topology known, and where newer ones come from: here, asked of nodes; in a node, its own."""

    def topology(self) -> Topology:
        """The newest known here."""
        ...

    def refresh(self, version: int, timeout: float) -> Coroutine[Any, Any, Topology]:
        """One of at least `version`; the newest known if there is none in time."""
        ...

    def look(self) -> None:
        """Somebody does not answer: see, in the background, whether there is a newer one."""
        ...

    def close(self) -> None:
        """Nobody uses it any more."""
        ...

    def in_turn(self) -> list[str]:
        """Addresses of all nodes, another one at the front each time."""
        ...

    def confirmed(self, timeout: float, catalog: Callable[[], GroupClient]) -> Coroutine[Any, Any, Topology]:
        """One at least as new as all that was committed before the call. catalog: its group; raises Unavailable while
        no node of it is known."""
        ...


class Turn:
    """Whom to ask, in turn: the nodes of a topology, and some addresses for when none of them answers."""

    def __init__(self, seeds: Iterable[str]) -> None:
        self._seeds = list(seeds)
        self._next = 0

    def of(self, topology: Topology) -> list[str]:
        """All of them, another one at the front each time."""
        known = list(dict.fromkeys([*topology.addresses().values(), *self._seeds]))
        self._next = (self._next + 1) % len(known)
        return known[self._next :] + known[: self._next]


class AskedTopology:
    """`KnownTopology` that asks one node after the other."""

    def __init__(
        self,
        caller: Caller,
        addresses: Iterable[str],
        topology: Topology,
        founded: Callable[[int], None] = lambda founding: None,
    ) -> None:
        """addresses: where to ask when no node of the topology answers. founded: told the founding of the cluster once
        it is known."""
        self._caller = caller
        self._turn = Turn(addresses)
        self._now = topology
        self._asking: asyncio.Task[None] | None = None
        self._following: Following | None = None
        self._founded = founded
        self.hearing = Hearing()
        if topology.founding:
            founded(topology.founding)

    def topology(self) -> Topology:
        """The newest known here."""
        return self._now

    def in_turn(self) -> list[str]:
        """See KnownTopology."""
        return self._turn.of(self._now)

    def _offer(self, topology: Topology | None) -> None:
        """Raises WrongCluster for that of another one."""
        if topology is None or topology.version <= self._now.version:
            return
        if self._now.settings is not None and topology.founding != self._now.founding:
            raise two_clusters(self._now.founding, topology.founding)
        if topology.founding != self._now.founding:
            self._founded(topology.founding)
        self._now = topology

    async def refresh(self, version: int, timeout: float) -> Topology:
        """See KnownTopology."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._now.version < version and (left := deadline - loop.time()) > 0:
            known, began, asking = self._now.version, loop.time(), self._ask_soon(wait=PAUSE_SECONDS)
            done, _ = await asyncio.wait((asking,), timeout=left)
            if done and (error := asking.exception()) is not None:
                raise error
            if self._now.version == known:  # the node waited for news as long, unless it did not answer
                await asyncio.sleep(max(0.0, min(began + PAUSE_SECONDS, deadline) - loop.time()))
        return self._now

    def look(self, *, near: bool = False) -> None:
        """See KnownTopology. near: first the nodes to which there are connections already, once they are a few."""
        self._ask_soon(near)

    def follow(self, rng: Rng) -> None:
        """Look now and then, until `close`."""
        self._following = Following(self, rng)

    def close(self) -> None:
        """Look no more by itself. Idempotent."""
        if self._following is not None:
            self._following.stop()

    def _ask_soon(self, near: bool = False, wait: float = 0.0) -> asyncio.Task[None]:
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask(near, wait))
            self._asking.add_done_callback(_seen)
        return self._asking

    async def _ask(self, near: bool, wait: float) -> None:
        """The next node's topology, as soon as it has a newer one, or has none after `wait` seconds; one that does not
        answer is passed over. Raises ClientClosed; Unauthenticated if no node answers, and some because of that."""
        refused: Unauthenticated | None = None
        try:
            for address in self._nearest() if near else self.in_turn():
                try:
                    self._offer(await self.hearing.ask(partial(self._call, address), self._now, wait))
                except ClientClosed:
                    raise
                except Unauthenticated as error:
                    refused = error
                    continue
                except NeedleError:
                    continue  # the next node will know
                return
            if refused is not None:
                raise refused
        finally:
            self._asking = None

    def _call(self, address: str, body: bytes) -> Awaitable[Payload]:
        return self._caller.call(address, TOPOLOGY, body, ASK_SECONDS)

    def _nearest(self) -> list[str]:
        """All addresses. Any node may be the one that is cut off from the others, so a single one is not enough."""
        addresses = self.in_turn()
        connected = {address for address in addresses if self._caller.connected(address)}
        return sorted(addresses, key=lambda address: address not in connected) if len(connected) >= NEAR else addresses

    async def confirmed(self, timeout: float, catalog: Callable[[], GroupClient]) -> Topology:
        """What the catalog's leader confirms to be the newest. Raises when it does not answer in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if not (await self.refresh(1, timeout)).catalog:
            raise DeadlineExceeded(
                f"no node named the catalog's nodes within {in_seconds(timeout)}: none answers, or they belong to no "
                f"cluster yet: {HOW_MADE}"
            )

        def ask(body: bytes) -> Awaitable[Payload]:
            return catalog().ask_leader(TOPOLOGY, lambda _: body, max(0.001, deadline - loop.time()))

        self._offer(await self.hearing.ask(ask, self._now, confirmed=True))
        return self._now


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever waits for it raises its error; when nobody does, it counts as seen."""
    if not task.cancelled():
        task.exception()


def told_version(error: NeedleError) -> int:
    """`details["version"]`, which another node wrote; 0 if that is no version."""
    version = error.details.get("version")
    return version if type(version) is int and version > 0 else 0
