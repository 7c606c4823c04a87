"""What a node measures of its links: each is measured once, however slow it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import DeadlineExceeded
from needle.server.service.probing import CONNECT_TRIPS, PING_SECONDS, PINGS_MAX, Probing


class Peers:
    """A link over which a round trip takes so long, and the first call some of them: it connects."""

    def __init__(self, trip: float, connects: int = CONNECT_TRIPS) -> None:
        self.now, self.trip, self.connects, self.calls = 0.0, trip, connects, 0

    async def call(self, other: str, method: str, body: bytes, timeout: float) -> bytes:
        takes = self.trip * (1 if self.calls else self.connects)
        self.calls += 1
        self.now += min(takes, timeout)
        if takes > timeout:
            raise DeadlineExceeded("no answer")
        return b""


def probing(peers: Peers) -> Probing:
    node: Any = SimpleNamespace(peers=peers, now=lambda: peers.now)
    return Probing(node)


@pytest.mark.parametrize(("trip", "pings"), [(0.001, PINGS_MAX), (0.1, 7), (0.4, 1), (0.8, 1), (0.99, 1)])
async def test_a_slow_link_has_a_ping(trip: float, pings: int) -> None:
    link = await probing(Peers(trip))._link("node-2", 1.0)
    assert (len(link.pings), link.error) == (pings, "")
    assert link.pings == pytest.approx([trip] * pings)


@pytest.mark.parametrize("connects", [1, 3])
async def test_a_link_that_answered_and_is_slower_than_a_ping_may_take_is_slow_and_not_cut(connects: int) -> None:
    """As one of 0.4 s each way is on a busy machine."""
    link = await probing(Peers(1.1 * PING_SECONDS, connects))._link("node-2", 1.0)
    assert (link.pings, link.error) == ([PING_SECONDS], "")


async def test_a_link_on_which_nothing_comes_back_in_time_has_none() -> None:
    peers = Peers(1.1 * PING_SECONDS)
    link = await probing(peers)._link("node-2", 1.0)
    assert not link.pings and link.error and peers.now <= (CONNECT_TRIPS + 1) * PING_SECONDS
