"""A search of several shards that this node holds, in one call: each is read as if it were asked alone, and the hits of
all are merged here, so that k of them travel.

Invariant: a shard that was not searched as its call demands is refused by its own error, and gives no hits; the others
do. It must not know how a shard is searched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from needle.base.errors import NeedleError, invalid
from needle.base.ids import GroupId
from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.base.parts import Body
from needle.base.tracebacks import release
from needle.client.router.hedging import forget
from needle.client.router.merge import chosen, nearest, of_shard
from needle.multiraft.leased import Leased, leased_indices
from needle.protocol import calls
from needle.protocol.calls import MANY_BYTES_MAX, QUERIES_MAX, Freshness, SearchCall, SearchManyCall
from needle.protocol.node_calls import AskedShard, NodeHits, Refused, SearchedShard, SearchShardsCall
from needle.routing.topology import Ownership
from needle.server.replica import HostedReplica
from needle.server.service.documents import ShardDocuments
from needle.server.service.early import Confirmed, confirming
from needle.server.service.node_reads import check_groups, read_shard
from needle.server.service.reads import QUERIES_AT_ONCE, Reads
from needle.server.service.served import LARGE_ROWS, ServedNode, add_address, bytes_of, call_timeout, encoded
from needle.server.service.shares import Work
from needle.shard.several import Together
from needle.shard.several_searches import Part

Told = tuple[SearchedShard, list[HitBatch]]


class _Hits(NamedTuple):
    """What is found for each vector, and whose each hit is, by places in the call; one place if all are of one shard.
    of: where `places` are those in a part of the call, which of the call each of them is."""

    batches: list[HitBatch]
    places: list[list[int]] | list[int]
    of: Sequence[int] = ()

    def owners(self, at: int) -> list[int] | int:
        """Whose the hits for a vector are."""
        places = self.places[at]
        return places if isinstance(places, int) or not self.of else [self.of[place] for place in places]


class _Begun(NamedTuple):
    """A shard that is searched. place: in the call."""

    place: int
    group: GroupId
    hosted: HostedReplica
    confirmed: Confirmed


class _Early(NamedTuple):
    """What was found without a task for each shard: who has answered, and all their hits."""

    told: dict[GroupId, SearchedShard]
    hits: list[_Hits]


class NodeSearches:
    """See the module."""

    def __init__(self, node: ServedNode, documents: ShardDocuments, reads: Reads) -> None:
        self._node = node
        self._documents = documents
        self._reads = reads

    async def search(self, call: SearchShardsCall, key: str = "") -> Body:
        """key: the name of the caller's API key. Raises InvalidArgument for what no shard could answer, Overloaded."""
        _check(call)
        self._documents.bulk.called(Work.SEARCH)
        loop, start = asyncio.get_running_loop(), self._node.now()
        told, hits = await self._early(call)
        if len(told) < len(call.shards):
            seconds = call.freshness.timeout - (self._node.now() - start)
            left = [(place, one) for place, one in enumerate(call.shards) if one.group not in told]
            tasks = [loop.create_task(self._of_shard(call, one, seconds, key)) for _, one in left]
            try:
                for (place, one), (shard, batches) in zip(left, await asyncio.gather(*tasks), strict=True):
                    told[one.group] = shard
                    if batches:
                        hits.append(_Hits(batches, [place] * len(batches)))
            finally:
                for task in tasks:
                    task.cancel()
        found = await self._merged(hits, call)
        if call.count and await bytes_of(self._node, found.batches) > MANY_BYTES_MAX:
            raise invalid("queries", f"{call.count} vectors", "fewer: their hits have too many bytes for one answer")
        body = await encoded(self._node, found)
        shards = [told[one.group] for one in call.shards]
        return calls.encode_body((call.epoch, shards, body), body)  # a SearchShardsAnswer

    async def _merged(self, hits: Sequence[_Hits], call: SearchShardsCall) -> NodeHits:
        count = max(1, call.count) if hits else 0
        takes_long = len(hits) > 1 or any(one.of for one in hits)
        if takes_long and sum(len(batch.ids) for one in hits for batch in one.batches) >= LARGE_ROWS:
            found: NodeHits = await self._node.blocking(_merged_once, hits, call.request.k, count)
            return found
        return merged(hits, call.request.k, count)

    async def _early(self, call: SearchShardsCall) -> _Early:
        """Leased searches whose lease holds, eventual ones of replicas that are new enough, and strong ones that most
        likely see now what their rounds will ask for, all of them as one search, without a task for each. Who has not
        answered in it has to be read as if this had not been: no error of this counts. None has if somebody follows the
        call, or asks for explanations, for then each shard's part is told by itself; nor of more vectors than go at
        once. Raises Overloaded."""
        node, documents, early = self._node, self._documents, _Early({}, [])
        owned, request = node.ownership, call.request
        if owned is None or owned.epoch != call.epoch or call.count > QUERIES_AT_ONCE or documents.watch.follows():
            return early
        single = [] if request.explain else _single(self._reads.as_searched(request, None, explain=False), call.count)
        if not single:
            return early
        timeout, start = call_timeout(call.freshness.timeout), node.now()
        waiting, parts = self._confirming(call, owned, timeout), list[Part]()
        if not waiting:
            return early
        self._reads.reading += 1
        try:
            replicas = {one.group: one.hosted for one in waiting}
            members = node.several.members(owned, replicas, lambda group: owned.claim(group - 1))
            parts = node.several.begin(single, members, timeout)
            judged = [(part, *await _seen(part, waiting)) for part in parts]
        finally:
            self._reads.reading -= 1
            node.several.forget(request.collection, parts)
            forget([one for part in parts for one in part.found])
            forget([one.confirmed for one in waiting if not isinstance(one.confirmed, int)])
        if node.ownership is not owned:
            return early
        for part, found, seen in judged:
            if documents.lacks(*[waiting[part.first + at].group for at in seen]):
                for at in [at for at in seen if documents.lacks(waiting[part.first + at].group)]:
                    del seen[at]
            # Hits of one that does not count may stand where those of others would: then all of them are asked again.
            if seen and (len(seen) == len(part.members) or all(seen.keys() >= {*one.places} for one in found)):
                self._note(call, single, [waiting[part.first + at].hosted for at in seen], node.now() - start)
                early.hits.append(_hits(part, found, waiting))
                each = part.members.each
                for at, applied in seen.items():
                    early.told[waiting[part.first + at].group] = SearchedShard(each[at].claim.fingerprint, applied)
        return early

    def _confirming(self, call: SearchShardsCall, owned: Ownership, timeout: float) -> list[_Begun]:
        """The shards that can be searched now, and what each has to see; those that must be waited for are left out."""
        fresh, found, node = call.freshness, list[_Begun](), self._node
        groups, leased = node.groups, dict[GroupId, Leased]()
        if fresh.mode is ReadMode.LEASED:
            leased = leased_indices(node.host.engine, [one.group for one in call.shards])
        for place, one in enumerate(call.shards):
            group = one.group
            hosted = groups.get(group)
            if hosted is None:
                continue
            least, known = max(one.min_index, owned.claim(group - 1).since), leased.get(group)
            if known is not None:  # as `confirming` says it
                if max(least, known[0]) <= known[1]:
                    found.append(_Begun(place, group, hosted, known[0]))
                continue
            try:
                own = Freshness(fresh.mode, least, fresh.max_staleness)
                confirmed = confirming(node, self._reads, group, own, timeout)
            except NeedleError as error:
                release(error)
                continue
            if confirmed is not None:
                found.append(_Begun(place, group, hosted, confirmed))
        return found

    def _note(
        self,
        call: SearchShardsCall,
        requests: Sequence[SearchRequest],
        answered: Sequence[HostedReplica],
        seconds: float,
    ) -> None:
        """As each shard's call would have been."""
        node, observed = self._node, _observed(call)
        now = node.now()
        for hosted in answered:
            hosted.calls.searched(now, len(requests))
            for request in requests:
                hosted.recall.saw(request)
        node.observe(observed, seconds, None, len(answered))

    async def _of_shard(self, call: SearchShardsCall, asked: AskedShard, seconds: float, key: str) -> Told:
        """What one shard says of itself, and its hits for each vector; [] if it was not searched."""
        group = asked.group
        fresh = Freshness(call.freshness.mode, asked.min_index, call.freshness.max_staleness, seconds)
        one: Any = SearchCall(group, call.request, fresh, call.epoch)
        run: Any = self._reads.search
        if call.count:
            one, run = SearchManyCall(group, call.request, call.count, fresh, call.epoch), self._reads.search_many
        observed, node = _observed(call), self._node
        watched = self._documents.watch.begin(observed, one, key)
        start, failure = node.now(), None
        try:
            owned, answer = await read_shard(node, self._documents, run, one)
        except NeedleError as error:
            failure = error
            add_address(error, node)
            return SearchedShard(refused=Refused.of(error)), []
        finally:
            node.observe(observed, node.now() - start, failure)
            if watched is not None:
                watched.end(failure)
        batches = answer.batches if call.count else [answer]
        shard = group - 1
        applied = min(batch.applied_index for batch in batches)
        return SearchedShard(owned.fingerprint(shard), applied), [of_shard(shard, batch) for batch in batches]


async def _seen(part: Part, waiting: Sequence[_Begun]) -> tuple[list[Together], dict[int, int]]:
    """What a part has found, and by their places in it the replicas whose hits count, and the index that each has
    seen. No error of this counts."""
    seen = dict[int, int]()
    try:
        found = [await one for one in part.found]
    except NeedleError as error:
        release(error)
        return [], seen
    for at, applied in enumerate(_least(found)):
        if applied is None:
            continue
        confirmed = waiting[part.first + at].confirmed
        if not isinstance(confirmed, int):
            try:
                confirmed = await confirmed
            except NeedleError as error:
                release(error)
                continue
        if applied >= confirmed:
            seen[at] = applied
    return found, seen


def _least(found: Sequence[Together]) -> Sequence[int | None]:
    """The least index of all searches at which each replica was searched; None if it has not answered one."""
    if len(found) == 1:
        return found[0].applied
    each = zip(*[one.applied for one in found], strict=True)
    return [None if None in indices else min(index for index in indices if index is not None) for indices in each]


def _hits(part: Part, found: Sequence[Together], waiting: Sequence[_Begun]) -> _Hits:
    of = [one.place for one in waiting[part.first : part.first + len(part.members)]]
    return _Hits([one.hits for one in found], [one.places for one in found], () if of == [*range(len(of))] else of)


def merged(found: Sequence[_Hits], k: int, count: int) -> NodeHits:
    """The k nearest of all for each vector."""
    hits = NodeHits([], [])
    for at in range(count):
        batches, owners = [one.batches[at] for one in found], [one.owners(at) for one in found]
        if len(batches) == 1:  # in order, and no more than k
            [batch], [of] = batches, owners
            hits.batches.append(batch)
            hits.places.append([of] * len(batch.ids) if isinstance(of, int) else of)
            continue
        rows = nearest(batches, k, owners)
        hits.batches.append(chosen(batches, rows))
        hits.places.append([_place(owners[which], row) for which, row in rows])
    return hits


def _merged_once(found: Sequence[_Hits], k: int, count: int) -> NodeHits:
    """The same, in a thread, of hits that nobody looks at any more: to give back a million takes its time, too."""
    hits = merged(found, k, count)
    for one in found:
        one.batches.clear()
    return hits


def _place(of: list[int] | int, row: int) -> int:
    return of if isinstance(of, int) else of[row]


def _observed(call: SearchShardsCall) -> str:
    """The method of each shard, as it is observed."""
    return "shard_search_many" if call.count else "shard_search"


def _single(request: SearchRequest, count: int) -> list[SearchRequest]:
    """The search for each vector. [] if they do not say how long a vector is: each shard refuses that by itself."""
    if not count:
        return [request]
    width, rest = divmod(len(request.vector), count)
    if rest:
        return []
    vectors = [request.vector[at * width : (at + 1) * width] for at in range(count)]
    return [msgspec.structs.replace(request, vector=vector) for vector in vectors]


def _check(call: SearchShardsCall) -> None:
    check_groups(call.shards, call.epoch)
    if call.request.k < 1:
        raise invalid("k", call.request.k, "1 or more")
    if not 0 <= call.count <= QUERIES_MAX:
        raise invalid("count", call.count, f"0 to {QUERIES_MAX}")
    if call.request.keywords or call.request.words is not None:
        raise invalid("keywords", call.request.keywords, "in a call of one shard")
    if call.request.sparse is not None:
        raise invalid("sparse", call.request.sparse.name, "in a call of one shard")
    if call.request.group_by:
        raise invalid("group_by", call.request.group_by, "in a call of one shard")
