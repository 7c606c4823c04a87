"""What every method of the binary protocol needs of its caller. What is not in the table is answered to nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from needle.base.access import ADMIN, NODE, READER, WRITER, Identity
from needle.base.errors import Forbidden
from needle.base.model import WriteResult
from needle.base.parts import whole
from needle.base.versions import KNOWN
from needle.multiraft.inbound import CALL_METHODS
from needle.protocol import calls, commands
from needle.protocol.archive_calls import BACKED_UP, IMAGE, IMAGE_CHUNK, LOG
from needle.protocol.bounds import renamed
from needle.protocol.bulk_calls import BULK_BEGIN, BULK_BYTES, BULK_HERE, BULK_LOAD, BULK_PUT
from needle.protocol.calls import CollectionsAnswer
from needle.protocol.change_calls import CHANGES
from needle.protocol.index_file_calls import (
    INDEX_ADOPT,
    INDEX_BYTES,
    INDEX_FILES,
    INDEX_HASHES,
    INDEX_HOLD,
    INDEX_PUT,
)
from needle.protocol.node_calls import READ_SHARDS, SEARCH_SHARDS, asked_of_each
from needle.protocol.peer_calls import (
    CATALOG,
    FOUND,
    INDEX_ROOM,
    MOVE,
    SHARD_LEADER,
    SYNC,
    TOPOLOGY,
    WHO,
    ShardAnswer,
    TopologyAnswer,
)
from needle.protocol.probe_calls import CLOCK, LOAD, PROBE
from needle.protocol.rebalance_calls import PLAN, PROGRESS
from needle.routing.topology import Topology, public_name
from needle.server.access import check_collection, refusal
from needle.server.chores.comparing import DIGEST_AT
from needle.server.chores.field_upkeep import FILTERED_FIELDS
from needle.server.replica import READ_INDEX, SEGMENT_BUILDING, SEGMENT_CHUNK, SEGMENT_PUBLISH, SEGMENT_STAGED
from needle.server.service.former_clients import readable, reads
from needle.server.service.served import command_of

OWNED_SINCE: Final = 4
"""Since this version of the cluster keys for some collections have sessions of their own: a leader of a release before
would open, and use, those of everybody for them."""
ALL: Final = "the whole cluster"
NONE: Final = "no collection"
About = Callable[[Any], str | None]


class Needs(NamedTuple):
    """rank: see base.access. about: which collection a call names; or ALL, NONE: what it is about if it names none.
    Keys for some collections may ask for these and for NONE."""

    rank: int
    about: About | str


def _request(call: Any) -> str | None:
    return str(call.request.collection)


def _named(call: Any) -> str | None:
    return str(call.collection)


def _read(call: Any) -> str | None:
    method, asked = asked_of_each(call)
    return _request(asked) if method == calls.SEARCH else _named(asked)


def _written(call: Any) -> str | None:
    """Of a write; a session has none, and what makes collections is about more than one."""
    return getattr(command_of(call), "collection", None)


NEEDS: Final[dict[str, Needs]] = {
    calls.WRITE: Needs(WRITER, _written),
    calls.SEARCH: Needs(READER, _request),
    calls.SEARCH_MANY: Needs(READER, _request),
    SEARCH_SHARDS: Needs(READER, _request),
    READ_SHARDS: Needs(READER, _read),
    calls.GET: Needs(READER, _named),
    calls.COUNT: Needs(READER, _named),
    calls.FACET: Needs(READER, _named),
    calls.SCAN: Needs(READER, _named),
    calls.COLLECTIONS: Needs(READER, NONE),
    CHANGES: Needs(READER, _named),
    calls.LEADER: Needs(READER, NONE),
    SHARD_LEADER: Needs(READER, NONE),
    TOPOLOGY: Needs(READER, NONE),
    WHO: Needs(READER, NONE),
    calls.STATUS: Needs(READER, ALL),
    calls.DIGEST: Needs(READER, ALL),
    PLAN: Needs(READER, ALL),
    PROGRESS: Needs(READER, ALL),
    LOAD: Needs(READER, ALL),
    CLOCK: Needs(ADMIN, ALL),
    PROBE: Needs(ADMIN, ALL),
    BACKED_UP: Needs(READER, ALL),
    LOG: Needs(ADMIN, ALL),
    IMAGE: Needs(ADMIN, ALL),
    IMAGE_CHUNK: Needs(ADMIN, ALL),
    INDEX_FILES: Needs(READER, ALL),
    INDEX_BYTES: Needs(READER, ALL),
    INDEX_HASHES: Needs(READER, ALL),
    INDEX_HOLD: Needs(ADMIN, ALL),
    INDEX_PUT: Needs(ADMIN, ALL),
    INDEX_ADOPT: Needs(ADMIN, ALL),
    BULK_BEGIN: Needs(ADMIN, ALL),
    BULK_PUT: Needs(ADMIN, ALL),
    BULK_LOAD: Needs(ADMIN, ALL),
    BULK_HERE: Needs(ADMIN, ALL),
    BULK_BYTES: Needs(NODE, ALL),
    calls.STEP_DOWN: Needs(ADMIN, ALL),
    calls.FORCE_ELECTION: Needs(ADMIN, ALL),
    calls.MAINTENANCE: Needs(ADMIN, ALL),
    CATALOG: Needs(ADMIN, ALL),
    FOUND: Needs(ADMIN, ALL),
    SYNC: Needs(ADMIN, ALL),
    INDEX_ROOM: Needs(ADMIN, ALL),
    calls.ADDRESSES: Needs(NODE, ALL),
    READ_INDEX: Needs(NODE, ALL),
    FILTERED_FIELDS: Needs(NODE, ALL),
    SEGMENT_CHUNK: Needs(NODE, ALL),
    SEGMENT_PUBLISH: Needs(NODE, ALL),
    SEGMENT_BUILDING: Needs(NODE, ALL),
    SEGMENT_STAGED: Needs(NODE, ALL),
    DIGEST_AT: Needs(NODE, ALL),
    MOVE: Needs(NODE, ALL),
    **dict.fromkeys(CALL_METHODS, Needs(NODE, ALL)),
}
"""By method."""

OPENLY: Final = frozenset(NEEDS) - {calls.WRITE, TOPOLOGY, BACKED_UP}
"""Methods of which a key for all collections, of the rank that they need, may say and hear everything."""


def judge_call(caller: Identity, method: str, call: Any, known: Topology) -> Any:
    """The call, if it is about a collection that the caller may use, and only writes documents. (About which ones is
    for `bounds.bound_call` to say.) An alias in it gives way to what was judged: it may lead elsewhere by the time it
    is looked up again. That the log is archived, which would hide that it is not, is said by who may read it. Raises
    Forbidden, or InvalidArgument for a write that cannot be read."""
    if method == calls.WRITE and not getattr(call, "epoch", 0):
        command = command_of(call)
        if isinstance(command, commands.CreateCollection | commands.DropCollection):
            raise Forbidden("collections are made and dropped with a key of the role admin", needs="admin")
    if caller.is_for_all:
        if method == BACKED_UP and call.archive and caller.rank < ADMIN:
            raise Forbidden("that the log is archived is said by who may archive it, the role admin", needs="admin")
        return call
    about = NEEDS[method].about
    if about == NONE:
        return call
    name = about(call) if callable(about) else None
    if name is None and method == calls.WRITE and isinstance(command_of(call), commands.OpenSession):
        return call
    if name is not None:
        if getattr(call, "epoch", 0):
            name = public_name(name)
        elif (alias := known.alias(name)) is not None:
            name = alias.collection
            call = renamed(call, name)
    check_collection(caller, name, method)
    return call


def numbers_its_own(caller: Identity, method: str, call: Any, known: Topology) -> bool:
    """Whether a call of a key that is not for all collections is a write that a shard's session numbers: ids of these
    can be guessed, and whose number is used up counts as done, whatever collection it is about. A node that routes has
    sessions of its own."""
    some = caller.collections is not None and method == calls.WRITE and bool(call.epoch)
    return some and known.cluster_version >= OWNED_SINCE


def told(caller: Identity, method: str, call: Any, answer: Any, knows: int = KNOWN) -> Any:
    """What `caller` hears of an answer: of keys nothing, and only of collections that its own key is for, and that it
    can read by the version that it knows. Raises Unauthenticated for a reader of changes whose key was revoked while it
    waited."""
    if method == CHANGES and caller.rank < NEEDS[CHANGES].rank:
        raise refusal(caller, NEEDS[CHANGES].rank, CHANGES)
    if method == TOPOLOGY:
        known = answer.topology
        return TopologyAnswer(answer.node_id, None if known is None else readable(known.told_to(caller), knows))
    if method != calls.COLLECTIONS or (caller.collections is None and knows >= KNOWN):
        return answer
    if not call.epoch:
        return _some(caller, answer, str, knows)
    epoch, fingerprint, body = msgspec.msgpack.decode(whole(answer), type=tuple[int, int, bytes])  # a ShardAnswer
    found = _some(caller, calls.decode(body, CollectionsAnswer), public_name, knows)
    return ShardAnswer(epoch, fingerprint, calls.encode(found))


def documents_of(method: str, call: Any, answer: Any) -> int:
    """How many documents a call that was answered has written, or asked for."""
    if method == calls.WRITE:
        return answer.count if isinstance(answer, WriteResult) else 0
    if method == calls.GET:
        return len(call.ids)
    if method == READ_SHARDS:
        inner, asked = asked_of_each(call)
        each = documents_of(inner, asked, answer) if inner == calls.SEARCH else 0
        return sum(map(len, call.ids)) + each * len(call.shards)
    if method in (calls.SEARCH, calls.SEARCH_MANY, SEARCH_SHARDS):
        asked, shards = call.request, len(call.shards) if method == SEARCH_SHARDS else 1
        return int(asked.k * (asked.group_size if asked.group_by else 1) * (getattr(call, "count", 1) or 1) * shards)
    if method == CHANGES:
        return len(answer.kinds)
    return int(call.limit) if method == calls.SCAN else 0


def _some(caller: Identity, found: CollectionsAnswer, name: Callable[[str], str], knows: int) -> CollectionsAnswer:
    allowed = caller.collections
    rows = [
        row
        for row, spec in enumerate(found.collections)
        if reads(knows, spec) and (allowed is None or name(spec.name) in allowed)
    ]
    return CollectionsAnswer(
        [found.collections[row] for row in rows],
        [found.counts[row] for row in rows],
        found.applied_index,
        [found.sizes[row] for row in rows] if found.sizes else [],
    )
