"""The shards of a cluster as a client reaches them: straight to their leaders, by the newest topology it has.

Invariants: a write is routed again only if its shard said that nothing was done; a write of unknown fate stays with the
shard that may have executed it. One question for a newer topology runs at a time. Knows no documents.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from needle.base.errors import (
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    Internal,
    NeedleError,
    OutcomeUnknown,
    SessionExpired,
    StaleEpoch,
    StorageError,
    Unauthenticated,
    Unavailable,
    UnknownMethod,
    in_seconds,
    told_version,
)
from needle.base.ids import NodeId, shard_group
from needle.base.model import WriteResult
from needle.base.parts import Body, Payload
from needle.base.runtime import Rng
from needle.client.asking import asking
from needle.client.attempts import Attempts
from needle.client.directory import Caller, Directory
from needle.client.group import GroupClient, MakeBody, written
from needle.client.meaning import meant
from needle.protocol import calls
from needle.protocol.catalog_commands import CatalogCommand, Identity, encode
from needle.protocol.commands import DOCUMENT_WRITES, Command, encode_body
from needle.protocol.peer_calls import (
    CATALOG,
    INDEX_ROOM,
    SYNC,
    TOPOLOGY,
    WHO,
    CatalogCall,
    IndexRoom,
    IndexRoomCall,
    SyncCall,
    TopologyAnswer,
    TopologyCall,
    WhoAnswer,
    WhoCall,
)
from needle.routing.topology import Topology

Refresh = Callable[[int, float], Coroutine[Any, Any, Topology]]
ASK_SECONDS = 1.0
PAUSE_SECONDS = 0.02
UNKNOWN_EPOCH = -1
"""Older than any map: whoever is asked tells of its own."""
LOOK_SECONDS = 0.001
"""Long enough to have the question for a newer topology asked; who waits for it goes on."""


_FATE_UNKNOWN = (OutcomeUnknown, ConnectionLost, DeadlineExceeded, StorageError, Internal)
"""What may be said of a command that is executed, then or later."""


class ShardGroup(GroupClient):
    """Calls to one shard. Reads are made by the router; writes carry the newest epoch known at each attempt."""

    def __init__(
        self,
        shard: int,
        directory: Directory,
        rng: Rng,
        topology: Callable[[], Topology],
        refresh: Refresh,
        look: Callable[[], None],
    ) -> None:
        """look: ask for a newer topology in the background."""
        super().__init__(directory, rng)
        self._look = look
        self._topology = topology
        self._refresh = refresh
        self._named = f"shard {shard}" if shard >= 0 else "the catalog"

    def _body(self, command: Command) -> MakeBody:
        group, data = self.group, encode_body(command)
        asked = asking.get() if isinstance(command, DOCUMENT_WRITES) else None

        def body(seconds: float) -> Body:
            now, meaning = self._topology(), meant.get()
            epoch = now.map.epoch if now.map is not None else UNKNOWN_EPOCH
            if meaning is not None:
                epoch = meaning.epoch(now)
            call: tuple[Any, ...] = (group, data, seconds, epoch)  # a WriteCall
            return calls.encode_body(call if asked is None else (*call, asked), data)

        return body

    def _is_answer(self, error: NeedleError) -> bool:
        return isinstance(error, StaleEpoch) or super()._is_answer(
            error
        )  # what is raised of it is judged in _after_stale

    async def _after(self, error: NeedleError, address: str, attempts: Attempts) -> None:
        if isinstance(error, StaleEpoch):
            await self._after_stale(error, attempts)
            return
        if isinstance(error, ConnectionLost | DeadlineExceeded):
            self._look()  # it may have moved
        await super()._after(error, address, attempts)

    async def _after_stale(self, stale: StaleEpoch, attempts: Attempts) -> None:
        """Raises it if the shard has done nothing; waits if an earlier attempt of the same write may have been
        executed. final: the shard's log holds that this numbered write has no effect, whatever became of its copies."""
        if not attempts.writes or not attempts.unknown or stale.details.get("final"):
            raise stale
        why = "the write was sent before, no answer came, and now"
        if stale.details.get("owned") is False:
            raise OutcomeUnknown(f"{why} its shard has moved: {stale.message}") from stale
        await self._refresh(told_version(stale), max(0.001, attempts.left()))
        meaning = meant.get()
        if meaning is not None and not meaning.holds(self._topology()):
            raise OutcomeUnknown(f"{why} its alias has another meaning: {stale.message}") from stale
        await attempts.pause(self._rng)

    def _misplaced(self, node: NodeId) -> None:
        """Nodes have swapped addresses, or one has taken another's, since this topology."""
        self._look()

    async def _unreached(self, attempts: Attempts) -> None:
        """Nodes may have moved since this topology: ask for a newer one meanwhile."""
        await self._refresh(self._topology().version + 1, LOOK_SECONDS)
        await super()._unreached(attempts)

    def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> Coroutine[Any, Any, Payload]:
        """Ask one replica, once."""
        return self._caller.call(address, method, body, timeout)

    def replicas(self) -> list[str]:
        """Addresses of the replicas, the one to ask first at the front."""
        return self._directory.in_turn()

    def suspect(self, address: str) -> None:
        """That one failed: put it last for a while."""
        self._directory.suspect(address)
        self._look()


class ClusterShards:
    """`client.router.routes.Shards` over a network."""

    def __init__(
        self, caller: Caller, addresses: Iterable[str], topology: Topology, *, rng: Rng, prefer: str | None = None
    ) -> None:
        """addresses: where to ask when no node of the topology answers. prefer: asked first in eventual reads."""
        self._caller = caller
        self._seeds = list(addresses)
        self._rng = rng
        self._prefer = prefer
        self._now = topology
        self._groups: dict[int, ShardGroup] = {}
        self._asking: asyncio.Task[None] | None = None
        self._turn = 0

    def topology(self) -> Topology:
        """The newest known here."""
        return self._now

    def offer(self, topology: Topology | None) -> None:
        """Keep a topology if it is newer."""
        if topology is not None and topology.version > self._now.version:
            self._now = topology

    def group(self, shard: int) -> ShardGroup:
        """The calls to one shard; -1 is the catalog's group. Raises Unavailable for that while no node names it."""
        found = self._groups.get(shard)
        if found is None:
            if shard < 0 and not self.topology().catalog:
                raise Unavailable("this cluster has no catalog yet: `needle cluster create` makes it")
            directory = Directory(self._caller, shard, self.topology, self._prefer)
            found = ShardGroup(shard, directory, self._rng, self.topology, self.refresh, self.look)
            self._groups[shard] = found
        return found

    def _in_turn(self) -> list[str]:
        known = list(dict.fromkeys([*self.topology().addresses().values(), *self._seeds]))
        self._turn = (self._turn + 1) % len(known)
        return known[self._turn :] + known[: self._turn]

    async def refresh(self, version: int, timeout: float) -> Topology:
        """A topology of at least `version`, asking one node after the other; the newest known if there is none in
        time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self.topology().version < version and (left := deadline - loop.time()) > 0:
            asking = self._ask_soon()
            done, _ = await asyncio.wait((asking,), timeout=left)
            if done and (error := asking.exception()) is not None:
                raise error
            if self.topology().version < version:
                await asyncio.sleep(max(0.0, min(PAUSE_SECONDS, deadline - loop.time())))
        return self.topology()

    async def node_at(self, address: str) -> NodeId | None:
        """Which node answers at an address; None if none does."""
        try:
            return (await self.describe(address, ASK_SECONDS)).node_id
        except NeedleError:
            return None

    async def describe(self, address: str, timeout: float) -> WhoAnswer:
        """What the node at an address says of itself."""
        return calls.decode(await self._caller.call(address, WHO, calls.encode(WhoCall()), timeout), WhoAnswer)

    def look(self) -> None:
        """A node does not answer: ask another one, in the background, whether there is a newer topology."""
        self._ask_soon()

    def _ask_soon(self) -> asyncio.Task[None]:
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add_done_callback(_seen)
        return self._asking

    async def _ask(self) -> None:
        """The next node's topology; one that does not answer is passed over. Raises ClientClosed; Unauthenticated if no
        node answers, and some because of that."""
        refused: Unauthenticated | None = None
        try:
            for address in self._in_turn():
                body = calls.encode(TopologyCall(self.topology().version))
                try:
                    data = await self._caller.call(address, TOPOLOGY, body, ASK_SECONDS)
                    found = calls.decode(data, TopologyAnswer).topology
                except ClientClosed:
                    raise
                except Unauthenticated as error:
                    refused = error
                    continue
                except NeedleError:
                    continue  # the next node will know
                self.offer(found)
                return
            if refused is not None:
                raise refused
        finally:
            self._asking = None

    async def confirmed(self, timeout: float) -> Topology:
        """What the catalog's leader confirms to be the newest. Raises when it does not answer in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if not (await self.refresh(1, timeout)).catalog:
            raise DeadlineExceeded(
                f"no node named the catalog's nodes within {in_seconds(timeout)}: none answers, or they belong to no "
                "cluster yet (a majority of cluster_nodes founds it, or `needle cluster create`)"
            )
        timeout = max(0.001, deadline - loop.time())
        body = calls.encode(TopologyCall(0, 0.0, True))
        data = await self.group(-1).ask_leader(TOPOLOGY, lambda _: body, timeout)
        self.offer(calls.decode(data, TopologyAnswer).topology)
        return self.topology()

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        """Execute a command of the catalog, once, through any node: it is sent until one answers."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        data, last, sent = self._identified(command), "", False
        while True:
            for address in self._in_turn():
                left = deadline - loop.time()
                if left <= 0:
                    if sent:
                        raise OutcomeUnknown(
                            f"the catalog did not say within {in_seconds(timeout)} what became of it{last}"
                        )
                    raise DeadlineExceeded(f"the catalog did not answer within {in_seconds(timeout)}{last}")
                seconds, asked = min(left, max(ASK_SECONDS, timeout / 3)), False
                try:
                    if not self._caller.connected(address):
                        await self._caller.connect(address, seconds)
                        seconds = max(0.001, min(seconds, deadline - loop.time()))
                    asked = True
                    answer = await self._caller.call(
                        address, CATALOG, calls.encode(CatalogCall(data, seconds)), seconds
                    )
                except SessionExpired as error:
                    if sent:
                        raise OutcomeUnknown(f"the command was sent before, no answer came, and now {error}") from error
                    await self.refresh(told_version(error), max(0.001, deadline - loop.time()))
                    data, last = self._identified(command), f"; last error: {error.message}"
                    continue
                except UnknownMethod as error:  # a node of another release has that address now
                    last = f"; last error: {error.message}"
                    continue
                except NeedleError as error:
                    sent |= asked and isinstance(error, _FATE_UNKNOWN)
                    if not error.retryable and not isinstance(error, OutcomeUnknown):
                        if sent and (error.of_the_node or isinstance(error, _FATE_UNKNOWN)):  # of this attempt only
                            raise OutcomeUnknown(f"the command was sent and no answer came; now {error}") from error
                        raise  # judged by the catalog's log, which knows a command that is repeated
                    last = f"; last error: {error.message}"
                    continue
                result = written(answer)
                with contextlib.suppress(Unauthenticated):  # it may have revoked the key with which it was sent
                    await self.refresh(result.version, max(0.001, deadline - loop.time()))
                return result
            await asyncio.sleep(max(0.0, min(PAUSE_SECONDS, deadline - loop.time())))

    def nonce(self) -> int:
        """A random number that tells one command from others like it."""
        return self._rng.getrandbits(63)

    def _identified(self, command: CatalogCommand) -> bytes:
        """With an identity of its own, by which the catalog executes it once."""
        return encode(command, Identity(self.nonce(), self.topology().version))

    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None:
        """Have the shard's leader apply the catalog's collections as of `version`. by_log: see SyncCall."""
        group = shard_group(shard)
        await self.group(shard).ask_leader(
            SYNC, lambda left: calls.encode(SyncCall(group, version, left, by_log)), timeout
        )

    async def index_room(self, shard: int, collection: str, path: str, timeout: float) -> IndexRoom:
        """What an index of a field would take on the shard's leader, and what there is for it."""
        group = shard_group(shard)
        answer = await self.group(shard).ask_leader(
            INDEX_ROOM, lambda left: calls.encode(IndexRoomCall(group, collection, path, left)), timeout
        )
        return calls.decode(answer, IndexRoom)


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever waits for it raises its error; when nobody does, it counts as seen."""
    if not task.cancelled():
        task.exception()
