"""What the cluster did in the last hour, kept in memory for whoever opens the dashboard. Pure.

Bounded: MOMENTS of them, some 100 bytes each. It is what one node saw: a node that has just started knows nothing of
before. Nothing is decided by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from needle.base.ids import NodeId
from needle.client.activity import Pair, between, pairs_of, quantile
from needle.client.cluster_conditions import views
from needle.client.conditions import NodeView, lag_of
from needle.client.health import ReplicaStatus
from needle.protocol.probe_calls import LoadAnswer

EVERY_SECONDS: Final = 5.0
MOMENTS: Final = 720
COUNTED_MIN: Final = 10
"""Of fewer calls between two moments the slowest says nothing about the hundredth."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """at: seconds since 1970, by the node's clock. writes, searches: a second, of the whole cluster, as its replicas
    count them. documents: as their leaders count them. lag: seconds by which the replica lags that lags most; null
    while no shard has a leader. unled: shards without a leader. silent: replicas that did not answer. search_p99,
    write_p99: seconds in which replicas answered 99 of 100 calls since the moment before; null if there were too few
    to say."""

    at: float
    writes: float
    searches: float
    documents: int
    lag: float | None
    unled: int
    silent: int
    search_p99: float | None = None
    write_p99: float | None = None


class History:
    """The moments of the last hour, ascending."""

    def __init__(self) -> None:
        self._moments: deque[Moment] = deque(maxlen=MOMENTS)
        self._before: Mapping[NodeId, LoadAnswer] = {}
        self.seen = 0.0
        """When it was looked at last; as in Moment."""

    def due(self, at: float) -> bool:
        """Whether it is time for another one. at: as in Moment; a clock that was put back begins again."""
        self.seen = round(at, 3)  # as a moment's: no moment is of later
        if not self._moments:
            return True
        if at < self._moments[-1].at:
            self._moments.clear()
            return True
        return at - self._moments[-1].at >= EVERY_SECONDS - 0.5

    def note(self, at: float, replicas: Sequence[ReplicaStatus], loads: Mapping[NodeId, LoadAnswer]) -> None:
        """One more. loads: what the nodes have done since their start."""
        statuses = [one.status for one in replicas if one.status is not None]
        held = views(replicas)
        pairs = pairs_of(loads, self._before).values()
        lags = [lag for shard in held.values() if (lag := _lag(shard)) is not None]
        self._moments.append(
            Moment(
                at=round(at, 3),
                writes=round(sum(one.writes for one in statuses), 2),
                searches=round(sum(one.searches for one in statuses), 2),
                documents=sum(one.documents for one in statuses if one.state == "Leader"),
                lag=round(max(lags), 3) if lags else None,
                unled=len(held) - len(lags),
                silent=len(replicas) - len(statuses),
                search_p99=_p99("shard_search", pairs),
                write_p99=_p99("shard_write", pairs),
            )
        )
        self._before = loads

    def since(self, at: float) -> list[Moment]:
        """Those after `at`."""
        return [one for one in self._moments if one.at > at]


def _p99(method: str, pairs: Collection[Pair]) -> float | None:
    counts = between(pairs, method)
    return quantile(counts, 0.99) if max(counts.values(), default=0.0) >= COUNTED_MIN else None


def _lag(shard: Sequence[NodeView]) -> float | None:
    """Of the replica that lags most, in seconds; None without a leader."""
    lags = [lag[1] / 1000 for one in shard if (lag := lag_of(one.node, shard)) is not None]
    return max(lags, default=None)
