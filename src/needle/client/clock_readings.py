"""How fast the clocks of nodes run, and how far they are apart, from two readings of each. Pure.

Invariant: a difference that may come of the time that a reading was under way is never told as one of the clock: each
figure has its error beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from needle.base.ids import NodeId
from needle.protocol.probe_calls import ClockAnswer


class Reading(NamedTuple):
    """at: by the reader's clock, in the middle of the round trip, which took `took` seconds."""

    at: float
    took: float
    told: ClockAnswer


class ClockFound(NamedTuple):
    """rate: by which fraction it is faster than the median; offset: seconds that its wall clock is ahead of the median
    of nodes, or of the other one if there are two. Each may be off by its error."""

    rate: float = 0.0
    rate_error: float = float("inf")
    offset: float = 0.0
    offset_error: float = float("inf")


def compare(first: Mapping[NodeId, Reading], last: Mapping[NodeId, Reading]) -> dict[NodeId, ClockFound]:
    """Of each node that was read twice in one life. The reader's own clock is one of those of which rates the median is
    taken, so that of two nodes it is told which is off."""
    rates = _rates(first, last)
    offsets = {node: (last[node].told.wall - last[node].at, last[node].took / 2) for node in rates}
    if not rates:
        return {}
    rate, slack = median([1.0, *(value for value, _ in rates.values())]), median(error for _, error in rates.values())
    return {node: ClockFound(rates[node][0] - rate, rates[node][1] + slack, *_ahead(node, offsets)) for node in rates}


def _ahead(node: NodeId, offsets: Mapping[NodeId, tuple[float, float]]) -> tuple[float, float]:
    """Of the median, with the error. That of two is between them, and would hide half of what they are apart."""
    against = [one for other, one in offsets.items() if len(offsets) != 2 or other != node]
    own, error = offsets[node]
    return own - median(value for value, _ in against), error + median(off for _, off in against)


def own_rate(first: Mapping[NodeId, Reading], last: Mapping[NodeId, Reading]) -> tuple[float, float] | None:
    """By which fraction the reader's own clock is faster than the median of all, its own and those of others that were
    read twice in one life, and by how much that may be off; None if there is no other."""
    rates = _rates(first, last)
    if not rates:
        return None
    return 1.0 - median([1.0, *(value for value, _ in rates.values())]), max(error for _, error in rates.values())


def _rates(first: Mapping[NodeId, Reading], last: Mapping[NodeId, Reading]) -> dict[NodeId, tuple[float, float]]:
    """Of each node that was read twice in one life, in seconds of its clock per second of the reader's; with the
    error."""
    rates: dict[NodeId, tuple[float, float]] = {}
    for node, begin in first.items():
        end = last.get(node)
        if end is None or end.told.life != begin.told.life or end.at <= begin.at:
            continue
        elapsed = end.at - begin.at
        rates[node] = (end.told.monotonic - begin.told.monotonic) / elapsed, (begin.took + end.took) / 2 / elapsed
    return rates
