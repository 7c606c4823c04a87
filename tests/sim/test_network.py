"""The simulated network: what may happen to frames and calls, and what callers see of it."""

from __future__ import annotations

import asyncio
import random

import pytest

from needle.base.errors import ConnectionLost, DeadlineExceeded, Internal, NotLeader
from proof.sim.event_loop import SimLoop
from proof.sim.network import SimNetwork
from proof.sim.process import Process
from proof.sim.trace import Trace


class Echo:
    def __init__(self):
        self.frames = []
        self.gone = []
        self.calls = 0

    def on_oneway(self, peer, body):
        self.frames.append((peer.node_id, body))

    def on_gone(self, peer):
        self.gone.append((peer.node_id, len(self.frames)))

    async def on_request(self, peer, method, body):
        self.calls += 1
        if method == "refuse":
            raise NotLeader("not me", leader="b")
        if method == "hang":
            await asyncio.sleep(1000)
        if method == "crash":
            raise ZeroDivisionError("bug")
        return [b"echo:", body]


class Pair:
    def __init__(self, seed=1):
        self.loop = SimLoop(random.Random(seed))
        self.unhandled = []
        self.loop.on_unhandled = lambda process, error, message: self.unhandled.append(error)
        self.network = SimNetwork(self.loop, random.Random(seed), Trace(self.loop.time))
        self.a, self.b = Process("a", 1), Process("b", 1)
        self.echo = Echo()
        self.network.listen("b:1", "b", self.b, self.echo)
        self.endpoint = self.network.endpoint("a", self.a, "a")

    def run(self, make):
        async def main():
            return await self.loop.spawn(self.a, make())

        try:
            return self.loop.run_until_complete(main())
        finally:
            self.loop.kill(self.a)
            self.loop.kill(self.b)
            self.loop.bury()
            self.loop.close()


def test_a_call_is_answered_and_takes_time():
    pair = Pair()
    assert pair.run(lambda: pair.endpoint.call("b:1", "echo", b"hi", 1)) == b"echo:hi"
    assert 0 < pair.loop.time() < 1


def test_errors_cross_by_code():
    pair = Pair()
    with pytest.raises(NotLeader, match="not me") as caught:
        pair.run(lambda: pair.endpoint.call("b:1", "refuse", b"", 1))
    assert caught.value.details == {"leader": "b"}


def test_a_bug_in_a_handler_is_an_internal_error_and_is_not_swallowed():
    pair = Pair()

    async def main():
        with pytest.raises(Internal, match="ZeroDivisionError"):
            await pair.endpoint.call("b:1", "crash", b"", 1)

    pair.run(main)
    assert [type(error) for error in pair.unhandled] == [ZeroDivisionError]


def test_a_slow_answer_meets_the_deadline():
    pair = Pair()
    with pytest.raises(DeadlineExceeded):
        pair.run(lambda: pair.endpoint.call("b:1", "hang", b"", 2))
    assert pair.loop.time() == pytest.approx(2)


def test_nobody_listens():
    pair = Pair()
    with pytest.raises(ConnectionLost, match="refused"):
        pair.run(lambda: pair.endpoint.call("c:1", "echo", b"", 1))


def test_a_server_that_dies_breaks_the_calls_it_was_handling():
    pair = Pair()

    async def main():
        call = asyncio.create_task(pair.endpoint.call("b:1", "hang", b"", 60))
        await asyncio.sleep(1)
        pair.loop.kill(pair.b)
        pair.network.process_died(pair.b)
        with pytest.raises(ConnectionLost, match="closed"):
            await call

    pair.run(main)
    assert pair.loop.time() < 2
    assert pair.echo.calls == 1


@pytest.mark.parametrize(("power_cut", "gone"), [(False, [("a", 2)]), (True, [])])
def test_a_process_that_is_killed_ends_its_connections_after_what_it_sent(power_cut, gone):
    pair = Pair()

    async def main():
        pair.endpoint.send("b:1", b"1")
        pair.endpoint.send("b:1", b"2")
        pair.network.process_died(pair.a, power_cut=power_cut)
        await asyncio.sleep(1)

    pair.run(main)
    assert pair.echo.gone == gone


@pytest.mark.parametrize("direction", [("a", "b"), ("b", "a")])
def test_a_one_way_partition_cuts_calls_but_the_answer_side_still_runs_the_handler(direction):
    pair = Pair()
    pair.network.block(*direction)

    async def main():
        with pytest.raises((ConnectionLost, DeadlineExceeded)):
            await pair.endpoint.call("b:1", "echo", b"", 1)
        await asyncio.sleep(1)

    pair.run(main)
    assert pair.echo.calls == (1 if direction == ("b", "a") else 0)


def flood(pair, count=300):
    async def main():
        for n in range(count):
            assert pair.endpoint.send("b:1", b"%d" % n)
        await asyncio.sleep(5)

    pair.run(main)
    return [int(body) for _, body in pair.echo.frames]


def test_frames_arrive_once_and_in_order_without_faults():
    assert flood(Pair()) == list(range(300))


def test_loss_duplication_and_reordering():
    pair = Pair()
    pair.network.faults.loss = 0.3
    assert 150 < len(flood(pair)) < 260
    pair = Pair()
    pair.network.faults.duplicate = 0.5
    assert sorted(set(flood(pair))) == list(range(300))
    assert len(pair.echo.frames) > 400
    pair = Pair()
    pair.network.faults.reorder = 0.5
    arrived = flood(pair)
    assert sorted(arrived) == list(range(300)) != arrived


def test_a_clogged_link_delivers_all_at_once_later():
    pair = Pair()
    pair.network.clog("a", "b", until=3.0)

    async def main():
        pair.endpoint.send("b:1", b"x")
        await asyncio.sleep(2.9)
        assert pair.echo.frames == []
        await asyncio.sleep(0.2)
        assert pair.echo.frames == [("a", b"x")]

    pair.run(main)


def test_a_blocked_link_drops_frames_until_healed():
    pair = Pair()
    pair.network.block("a", "b")

    async def main():
        pair.endpoint.send("b:1", b"lost")
        await asyncio.sleep(1)
        pair.network.heal()
        pair.endpoint.send("b:1", b"arrives")
        await asyncio.sleep(1)

    pair.run(main)
    assert pair.echo.frames == [("a", b"arrives")]
