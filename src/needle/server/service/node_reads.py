"""Gets, counts, and searches whose hits only the caller can merge, of several shards that this node holds, in one call:
each shard is read as if it were asked alone, and its answer travels as it is (docs/adr/0123).

Invariant: a shard that was not read as its call demands is refused by its own error; the others are answered. It must
not know how a shard is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from needle.base.errors import DiskFull, NeedleError, TooStale, invalid
from needle.base.ids import GroupId
from needle.base.model import ReadMode
from needle.base.parts import LARGE_BYTES, Body, Pieces, body_bytes, encode_parts
from needle.protocol import calls
from needle.protocol.calls import MANY_BYTES_MAX, Freshness
from needle.protocol.node_calls import AskedShard, OfShard, ReadShardsCall, Refused, asked_of_each
from needle.routing.topology import Ownership
from needle.server.service.documents import ShardDocuments
from needle.server.service.reads import Reads
from needle.server.service.served import ServedNode, add_address, encoded

_Told = tuple[int, Body | None, Refused | None]
"""A ReadShard, as it is encoded."""
_LEFT_OUT: Final[_Told] = (0, None, None)
_Run = Callable[[Any, Any], Awaitable[Any]]


class NodeReads:
    """See the module."""

    def __init__(self, node: ServedNode, documents: ShardDocuments, reads: Reads) -> None:
        self._node = node
        self._documents = documents
        self._runs: dict[str, _Run] = {
            calls.GET: reads.get,
            calls.COUNT: reads.count,
            calls.FACET: reads.facet,
            calls.SEARCH: reads.search,
        }

    async def read(self, call: ReadShardsCall, key: str = "") -> Body:
        """A ReadShardsAnswer. key: the name of the caller's API key. Raises InvalidArgument for what no shard could
        answer."""
        check_groups(call.shards, call.epoch)
        method, asked = asked_of_each(call)
        if len(call.ids) != (len(call.shards) if method == calls.GET else 0):
            raise invalid("ids", f"{len(call.ids)} lists", "one for each shard in a get, none in other calls")
        loop = asyncio.get_running_loop()
        each = [self._of_shard(method, _alone(call, asked, at), key) for at in range(len(call.shards))]
        tasks = [loop.create_task(one) for one in each]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        size, told = 0, list[_Told]()
        for one in found:
            size += body_bytes(one[1]) if one[1] is not None else 0
            told.append(one if size <= MANY_BYTES_MAX or not told else _LEFT_OUT)
        answer = (call.epoch, told)
        in_pieces = size >= LARGE_BYTES or any(isinstance(body, Pieces) for _, body, _ in told)  # so are many rows
        return encode_parts(answer) if in_pieces else calls.encode(answer)

    async def _of_shard(self, method: str, one: Any, key: str) -> _Told:
        node, documents, observed = self._node, self._documents, f"shard_{method}"
        watched = documents.watch.begin(observed, one, key)
        start = node.now()
        failure: NeedleError | None = None
        try:
            owned, answer = await read_shard(node, documents, self._runs[method], one)
            return owned.fingerprint(one.group - 1), await encoded(node, answer), None
        except NeedleError as error:
            failure = error
            add_address(error, node)
            return 0, None, Refused.of(error)
        finally:
            node.observe(observed, node.now() - start, failure)
            if watched is not None:
                watched.end(failure)
            failure = None  # its traceback holds this frame


def _alone(call: ReadShardsCall, asked: OfShard, at: int) -> OfShard:
    """What the shard at this place is asked."""
    shard, fresh = call.shards[at], call.freshness
    own = Freshness(fresh.mode, shard.min_index, fresh.max_staleness, fresh.timeout)
    more = {"ids": call.ids[at]} if call.ids else {}
    return msgspec.structs.replace(asked, group=shard.group, freshness=own, epoch=call.epoch, **more)


async def read_shard(node: ServedNode, documents: ShardDocuments, run: _Run, one: Any) -> tuple[Ownership, Any]:
    """What one of several shards is read for. Raises TooStale, and what `ShardDocuments.read` does."""
    check_applied(node, one.group, one.freshness)
    try:
        return await documents.read(run, one)
    except DiskFull:  # as in Service._serve: who asks for this shard alone is not told of it either
        await node.blocking(node.space.look)
        return await documents.read(run, one)


def check_applied(node: ServedNode, group: GroupId, fresh: Freshness) -> None:
    """An eventual read of several shards waits for no log: whoever asks has others who may answer. But what is only
    gathered here is applied for it. Raises TooStale."""
    owned = node.ownership
    if fresh.mode is not ReadMode.EVENTUAL or owned is None:
        return
    wanted, applied = max(fresh.min_index, owned.claim(group - 1).since), node.host.applied_index(group)
    if applied < wanted:
        if node.host.applies_at_once(group, wanted):
            return
        text = f"node {node.node_id} has applied index {applied} of shard {group - 1}, and {wanted} is needed"
        raise TooStale(text, applied=applied, wanted=wanted)


def check_groups(shards: Sequence[AskedShard], epoch: int) -> None:
    """Raises InvalidArgument for shards that are named twice, and for a call that names no map."""
    groups: list[GroupId] = [one.group for one in shards]
    if len({*groups}) != len(groups):
        raise invalid("shards", groups, "each shard once")
    if not epoch:
        raise invalid("epoch", epoch, "of the shard map by which the shards were chosen")
