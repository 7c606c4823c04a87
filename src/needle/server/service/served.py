"""What the parts of a node's service share: the node as they see it, and the errors that all of them give.

It must not know methods.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from needle.base.config import RaftConfig
from needle.base.errors import DeadlineExceeded, InvalidArgument, NeedleError, NotLeader, UnsupportedFormat, invalid
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import HitBatch, RaftStatus, WriteResult
from needle.base.parts import LARGE_BYTES, Body, Pieces, encode_parts
from needle.base.runtime import beside
from needle.catalog.machine import CatalogMachine
from needle.client.directory import Caller
from needle.client.router.router import Router
from needle.multiraft.host import Host
from needle.protocol import calls, commands
from needle.protocol.bounds import DecodedWrite, command_in
from needle.protocol.calls import DocumentBatch, FacetAnswer, ScanAnswer, SearchManyAnswer, WriteCall
from needle.protocol.change_calls import ChangesAnswer
from needle.protocol.move_commands import MOVE_COMMANDS
from needle.protocol.node_calls import NodeHits
from needle.protocol.peer_calls import FoundCall, WhoAnswer
from needle.protocol.upkeep_commands import INDEX_COMMANDS
from needle.routing.stored_collections import StoredCollections
from needle.routing.topology import Ownership, Topology
from needle.routing.topology_changes import History
from needle.server.access import Access
from needle.server.address_book import AddressBook
from needle.server.catalog.collections import Reconciler
from needle.server.chores.comparing_catalog import CatalogCompared
from needle.server.machine.space import Space
from needle.server.ports import NodePorts, Peers
from needle.server.replica import HostedReplica
from needle.server.upkeep.coordinator import Coordinator
from needle.shard.several_searches import SeveralSearches

T = TypeVar("T")
LARGE_ROWS = 1000
JUDGED_BYTES_MAX = 64 * 1024
"""A larger command is checked in a thread: 16 MB of JSON take a third of a second, and heartbeats cannot wait."""
_OF_LEADERS = frozenset({
    commands.PinScan,
    commands.EndPins,
    commands.KnowCatalog,
    commands.Compare,
    *INDEX_COMMANDS,
    commands.Once,
    commands.Expire,
    *MOVE_COMMANDS,
})  # fmt: skip


class ServedNode(Protocol):
    """The node, as its service sees it."""

    node_id: NodeId
    config: RaftConfig
    ports: NodePorts
    host: Host
    peers: Peers
    groups: dict[GroupId, HostedReplica]
    space: Space
    book: AddressBook
    caller: Caller
    topology: Topology
    history: History
    ownership: Ownership | None
    catalog: CatalogMachine | None
    catalog_compared: CatalogCompared
    router: Router
    reconciler: Reconciler
    coordinator: Coordinator
    access: Access
    several: SeveralSearches

    def hosted(self, group: GroupId) -> HostedReplica: ...
    def status(self, group: GroupId, digest: bool) -> RaftStatus: ...
    def address_of(self, node: NodeId) -> str | None: ...
    def addresses(self) -> dict[NodeId, str]: ...
    def told(self) -> dict[NodeId, str]: ...
    def heard_from(self, node: NodeId) -> None: ...
    async def set_maintenance(self, on: bool, timeout: float) -> None: ...
    async def wait_topology(self, version: int, timeout: float) -> bool: ...
    async def confirmed(self, timeout: float) -> Topology: ...
    async def execute(self, command: bytes, timeout: float) -> WriteResult: ...
    async def found(self, call: FoundCall) -> None: ...
    def who(self) -> WhoAnswer: ...
    def observe(self, what: str, seconds: float, error: NeedleError | None, count: int = 1) -> None: ...
    def now(self) -> float: ...
    @property
    def expired(self) -> bool:
        """Whether nobody can connect to it any more: its certificate is no longer good."""
        ...

    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]:
        """Runs short blocking calls in the search threads."""
        ...


def not_leader(node: ServedNode, group: GroupId) -> NotLeader:
    """The answer to who takes this node for the group's leader."""
    leader = node.host.leader(group)
    where = f"{leader} does" if leader else "no leader is known"
    return NotLeader(f"node {node.node_id} does not lead {group_name(group)}; {where}", leader=leader, group=group)


def add_address(error: NeedleError, node: ServedNode) -> None:
    """Tell a caller who is sent to the leader where that is."""
    leader = error.details.get("leader") if isinstance(error, NotLeader) else None
    if leader:
        error.details["leader_address"] = node.address_of(str(leader))


def call_timeout(seconds: float) -> float:
    """What a caller allows us, bounded: nothing waits forever on behalf of a caller that is long gone."""
    if -86_400 <= seconds <= 0:
        raise DeadlineExceeded(f"the call's time was over {abs(seconds):g} s before it arrived; nothing was done")
    if not 0 < seconds <= 86_400:
        raise invalid("timeout", seconds, "seconds, more than 0 and at most 86400")
    return seconds


class Deadline:
    """When the time of one call is over that waits for several things, by the node's clock: what waits last has what
    the others left."""

    __slots__ = ("_end", "_now")

    def __init__(self, node: ServedNode, timeout: float) -> None:
        """timeout: as the caller gives it. Raises what `call_timeout` does."""
        self._now = node.now
        self._end = self._now() + call_timeout(timeout)

    def left(self) -> float:
        """Seconds, more than 0. Raises DeadlineExceeded: what was to be done next is not done."""
        left = self._end - self._now()
        if left <= 0:
            raise DeadlineExceeded("the call's time was over before it could be executed; nothing was done")
        return left


async def judge(node: ServedNode, size: int, fn: Callable[..., T], *arguments: object) -> T:
    """Run what takes long for a command of `size` bytes if that is large: in a thread, if it is."""
    return await beside(node.blocking if size > JUDGED_BYTES_MAX else None, fn, *arguments)


async def encoded(node: ServedNode, answer: object) -> Body:
    """An answer as bytes; a large one in pieces, made in a thread: one of many bytes, or of many rows, each of which
    takes some 5 us."""
    told: Sequence[HitBatch | DocumentBatch] = ()
    counted = len(answer.values) if isinstance(answer, FacetAnswer) else 0
    if isinstance(answer, HitBatch) or isinstance(answer, DocumentBatch):  # noqa: SIM101 - a tuple is slower
        told = (answer,)
    elif isinstance(answer, ScanAnswer | ChangesAnswer):
        told = (answer.documents,)
    elif isinstance(answer, SearchManyAnswer | NodeHits):
        told = answer.batches
    rows = counted or sum([len(one.ids) for one in told])
    if rows >= LARGE_ROWS or sum(map(calls.batch_bytes, told)) >= LARGE_BYTES:
        many = told if isinstance(answer, SearchManyAnswer | NodeHits) else ()
        pieces: Pieces = await node.blocking(_spent, answer, many)
        return pieces
    return calls.encode(answer)


def _spent(answer: object, many: Sequence[HitBatch | DocumentBatch]) -> Pieces:
    """An answer as bytes. many: parts of it that nobody looks at any more: they may have a million hits, and to give
    these back takes a tenth of a second."""
    pieces = encode_parts(answer)
    for one in many:
        for column in (one.ids, one.versions, one.metadata):
            column.clear()
    return pieces


async def bytes_of(node: ServedNode, told: Sequence[HitBatch]) -> int:
    """About how large these are together: counted in a thread where they have many rows."""
    threads = node.blocking if sum([len(one.ids) for one in told]) >= LARGE_ROWS else None
    return await beside(threads, lambda: sum(map(calls.batch_bytes, told)))


def decoded_command(data: bytes) -> commands.Command:
    """Raises InvalidArgument."""
    try:
        return commands.decode(data)
    except UnsupportedFormat as error:
        text = f"{error.message}; the caller, or this node, is of another release"
        raise InvalidArgument(text, field="command") from error


def command_of(call: WriteCall) -> commands.Command:
    """The command of a write, decoded once for each call. Raises InvalidArgument."""
    return command_in(call) if isinstance(call, DecodedWrite) else decoded_command(call.command)


def with_command(call: WriteCall) -> WriteCall:
    """The write with its command decoded, for all who look at it. Raises InvalidArgument."""
    return DecodedWrite(call.group, call.command, call.timeout, call.epoch, call.asked, command_of(call))


def is_plain(command: commands.Command, topology: Topology, known: StoredCollections) -> bool:
    """Whether this is a write of documents of which the catalog says nothing that its leader would have to do: no time
    to live, no sparse vectors; most are. known: what was found of collections before."""
    if type(command) is not commands.Insert or command.expires:
        return False
    info = known.find(topology, command.collection)
    return info is not None and not info.sparse and not info.spec.ttl


def check_for_callers(command: commands.Command) -> None:
    """Raises InvalidArgument for what only a shard's leader puts into its log."""
    if type(command) in _OF_LEADERS:
        raise InvalidArgument(
            "segments are published, documents expired, scans pinned, ranges moved, replicas compared, and requests "
            "remembered, by leaders only",
            field="command",
        )
