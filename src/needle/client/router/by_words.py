"""A search by words, in two rounds: what all documents say of the words, then the best by the weights that this gives.

Invariant: the weights come from the statistics of every shard that owns keys, whatever the filter, each as of a moment
after the call began (for strong reads). So a document's score depends on the documents that the caller may see, and not
on how they are spread. Documents that are written between the rounds may be hits, by the weights of before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from needle.base.errors import ClusterTooOld, InvalidArgument
from needle.base.ids import shard_group
from needle.base.model import HitBatch, Metric, SearchRequest
from needle.base.text import Statistics, TextQuery, added, weights_of
from needle.client.document_calls import Found
from needle.client.router import searching
from needle.client.router.fan_out import Answers
from needle.client.router.merge import too_old
from needle.client.router.routes import Routes
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchCall


async def search_words(
    routes: Routes,
    request: SearchRequest,
    fresh: Callable[[int], Freshness],
    timeout: float,
    monotonic: Callable[[], float],
    *,
    partial: bool,
) -> Found:
    """request: as shards know it. The rest as of `searching.search`. Raises InvalidArgument."""
    text = routes.text_of(request.collection)
    if text is None:
        raise InvalidArgument(
            f"keywords find nothing in collection {request.collection!r}, which was made without a text to search: "
            'name its field when a collection is created, as text="body"',
            field="keywords",
        )
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    asked = msgspec.structs.replace(request, words=TextQuery(text), k=1, offset=0, filter=b"", explain=False)
    counted = await routes.fan_out.read(
        calls.SEARCH,
        lambda shard, fresh, epoch: SearchCall(shard_group(shard), asked, fresh, epoch),
        lambda owned: owned.owners,
        fresh,
        timeout / 2 if partial else timeout,  # who does not answer takes all of its time, and there are two rounds
        partial=partial,
        together=searching.each_of_node(asked),
    )
    if not counted.by_shard:  # of a partial search, as none else gets here: nobody knows what the words weigh
        nothing = HitBatch([], [], [], [], b"", 0, Metric.DOT)
        return Found(nothing, counted.missing, counted.gaps, {}, len(counted.missing), counted.epoch)
    weights, average = weights_of(_sums(counted))
    found = await searching.search(
        routes.fan_out,
        msgspec.structs.replace(request, words=TextQuery(text, weights, average)),
        fresh,
        max(0.001, deadline - loop.time()),
        routes.beside,
        routes.saw,
        monotonic,
        partial=partial,
    )
    if not counted.missing:
        return found
    gaps = [*found.gaps, *(gap for gap in counted.gaps if gap not in found.gaps)]
    return msgspec.structs.replace(found, missing=counted.missing | found.missing, gaps=gaps)


def _sums(answers: Answers) -> Statistics:
    parts = list[Statistics]()
    for shard, body in answers.by_shard.items():
        told = calls.decode(body, HitBatch).statistics
        if told is None:
            raise too_old(shard, "keywords")
        parts.append(told)
    try:
        return added(parts)
    except ValueError:
        raise ClusterTooOld("nodes run releases that make different words of the keywords: upgrade all nodes") from None
