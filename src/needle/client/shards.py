"""The shards of a cluster as a client reaches them: straight to their leaders, by the newest topology it has.

Knows no documents.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from needle.base.errors import (
    ConnectionLost,
    DeadlineExceeded,
    Internal,
    NeedleError,
    OutcomeUnknown,
    OutOfMemory,
    Overloaded,
    SessionExpired,
    StorageError,
    Unauthenticated,
    Unavailable,
    UnknownMethod,
    in_seconds,
)
from needle.base.ids import NodeId, shard_group
from needle.base.model import WriteResult
from needle.base.parts import Payload
from needle.base.runtime import Rng
from needle.client.by_map import ByMap
from needle.client.directory import Caller, Directory
from needle.client.group import GroupClient, MakeBody, written
from needle.client.known_topology import KnownTopology, told_version
from needle.protocol import calls
from needle.protocol.catalog_commands import CatalogCommand, CreateCluster, Identity, encode
from needle.protocol.peer_calls import (
    CATALOG,
    INDEX_ROOM,
    SYNC,
    WHO,
    CatalogCall,
    IndexRoom,
    IndexRoomCall,
    SyncCall,
    WhoAnswer,
    WhoCall,
)
from needle.protocol.versioned import check_known
from needle.routing.meant import HOW_MADE
from needle.routing.topology import Topology

ASK_SECONDS = 1.0
PAUSE_SECONDS = 0.02
SHORT_SECONDS, SHORT_SECONDS_MAX = 0.05, 0.5
"""The first pause, and the longest, after a node said that it has no room."""

_FATE_UNKNOWN = (OutcomeUnknown, ConnectionLost, DeadlineExceeded, StorageError, Internal)
"""What may be said of a command that is executed, then or later."""


class ClusterShards:
    """`client.router.routes.Shards` over a network."""

    def __init__(self, caller: Caller, known: KnownTopology, *, rng: Rng, prefer: str | None = None) -> None:
        """prefer: the address that is asked first in eventual reads."""
        self._caller = caller
        self._known = known
        self._rng = rng
        self._prefer = prefer
        self._groups: dict[int, GroupClient] = {}
        self.topology: Callable[[], Topology] = known.topology
        """The newest known here."""
        self.look: Callable[[], None] = known.look
        """See, in the background, whether there is a newer one."""
        self.close: Callable[[], None] = known.close
        """Ask for none any more by itself."""

    def refresh(self, version: int, timeout: float) -> Coroutine[Any, Any, Topology]:
        """A topology of at least `version`; the newest known if there is none in time."""
        return self._known.refresh(version, timeout)

    def confirmed(self, timeout: float) -> Coroutine[Any, Any, Topology]:
        """What the catalog confirms to be the newest. Raises when it does not in time."""
        return self._known.confirmed(timeout, lambda: self.group(-1))

    def group(self, shard: int) -> GroupClient:
        """The calls to one shard; -1 is the catalog's group. Raises Unavailable for that while no node names it."""
        found = self._groups.get(shard)
        if found is None:
            if shard < 0 and not self.topology().catalog:
                raise Unavailable(f"this cluster has no catalog yet: {HOW_MADE}")
            directory = Directory(self._caller, shard, self._known.topology, self._prefer)
            found = self._groups[shard] = GroupClient(directory, self._rng, ByMap(shard, self._known))
        return found

    async def node_at(self, address: str) -> NodeId | None:
        """Which node answers at an address; None if none does."""
        try:
            return (await self.describe(address, ASK_SECONDS)).node_id
        except NeedleError:
            return None

    async def describe(self, address: str, timeout: float) -> WhoAnswer:
        """What the node at an address says of itself."""
        return calls.decode(await self._caller.call(address, WHO, calls.encode(WhoCall()), timeout), WhoAnswer)

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        """Execute a command of the catalog, once, through any node: it is sent until one answers. Raises ClusterTooOld,
        before it is sent, for one that not all nodes know."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await self._check_known(command, timeout)
        data, last, sent = self._identified(command), "", False
        short, backoff = None, SHORT_SECONDS
        while True:
            for address in self._known.in_turn():
                left = deadline - loop.time()
                if left <= 0:
                    if short is not None and not sent:
                        break
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
                    if _is_final(error, sent):
                        if sent and (error.of_the_node or isinstance(error, _FATE_UNKNOWN)):  # of this attempt only
                            raise OutcomeUnknown(f"the command was sent and no answer came; now {error}") from error
                        raise  # judged by the catalog's log, which knows a command that is repeated
                    last = f"; last error: {error.message}"
                    short = error if isinstance(error, OutOfMemory | Overloaded) else None
                    continue
                result = written(answer)
                with contextlib.suppress(Unauthenticated):  # it may have revoked the key with which it was sent
                    await self.refresh(result.version, max(0.001, deadline - loop.time()))
                return result
            left, pause = deadline - loop.time(), PAUSE_SECONDS
            if short is not None:
                pause, backoff = backoff, min(2 * backoff, SHORT_SECONDS_MAX)
                if not sent and left < pause + SHORT_SECONDS:  # what is sent too late would leave in doubt what it did
                    try:
                        raise short
                    finally:
                        del short  # its traceback holds this frame
            await asyncio.sleep(max(0.0, min(pause, left)))

    async def _check_known(self, command: CatalogCommand, timeout: float) -> None:
        """Nodes of a release before would execute it without what they do not know."""
        if not isinstance(command, CreateCluster) and command.needs() > self.topology().cluster_version:
            check_known(command, await self.confirmed(timeout))

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

    async def index_room(self, shard: int, collection: str, path: str, timeout: float, kind: str = "") -> IndexRoom:
        """What an index of a field would take on the shard's leader, and what there is for it."""
        group = shard_group(shard)
        answer = await self.group(shard).ask_leader(
            INDEX_ROOM, lambda left: calls.encode(IndexRoomCall(group, collection, path, left, kind)), timeout
        )
        return calls.decode(answer, IndexRoom)


def _is_final(error: NeedleError, sent: bool) -> bool:
    """Whether a command is not sent again. Where the catalog's leader takes more memory than it may, it seldom takes
    less within a call's time; but if the command may have been executed before, that is to be found out."""
    if isinstance(error, OutOfMemory) and "limit" in error.details and not sent:
        return True
    return not error.retryable and not isinstance(error, OutcomeUnknown)


class OverShards:
    """What the methods for operators need, and all that the client who has them gives."""

    _caller: Caller
    _shards: ClusterShards


async def ask_leader(
    client: OverShards,
    shard: int,
    method: str,
    body: MakeBody,
    timeout: float,
    final: tuple[type[NeedleError], ...] = (),
) -> Payload:
    """Ask a shard's leader, whoever that is by then. final: errors that are answers. Raises as `GroupClient`."""
    return await client._shards.group(shard).ask_leader(method, body, timeout, final)


async def tell_replicas(
    client: OverShards, shard: int, method: str, body: bytes, timeout: float
) -> dict[str, NeedleError]:
    """Tell all of a shard's replicas. Addresses of those that it does not reach, or that refuse, and why."""
    answers = await ask_replicas(client, shard, method, body, timeout)
    return {address: said for address, said in answers.items() if isinstance(said, NeedleError)}


async def ask_replicas(
    client: OverShards, shard: int, method: str, body: bytes, timeout: float, *, leader: bool = True
) -> dict[str, Payload | NeedleError]:
    """Ask all of a shard's replicas, once: what each answers, or why it does not, by address. leader: also the
    one that leads; without it, all that are not known to."""
    group = client._shards.group(shard)
    answers: dict[str, Payload | NeedleError] = {}

    async def ask(address: str) -> None:
        try:
            answers[address] = await group.ask_replica(address, method, body, timeout)
        except NeedleError as error:
            answers[address] = error

    leads = None if leader else group.leads_at()
    await asyncio.gather(*(ask(one) for one in group.replicas() if one != leads))
    return answers
