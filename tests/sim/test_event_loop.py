"""The virtual-time loop: time jumps, order is seeded, a killed process leaves no trace."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from types import SimpleNamespace

import pytest

from proof.sim.event_loop import SimLoop, SimulationError
from proof.sim.machine import SimClock, SimPool
from proof.sim.process import CURRENT, Killed, Process
from proof.sim.stalls import StallMeter


@pytest.fixture
def loop():
    made = SimLoop(random.Random(1))
    yield made
    made.close()


def test_time_jumps_to_the_next_timer(loop):
    async def main():
        await asyncio.sleep(3600)
        return loop.time()

    assert loop.run_until_complete(main()) == 3600


def test_a_timer_below_the_resolution_of_the_clock_does_not_fire_for_ever_at_one_instant(loop):
    async def main():
        await asyncio.sleep(3600)
        later = loop.create_future()

        def look():
            if loop.time() > 3600:
                later.set_result(loop.time())
            else:
                loop.call_later(1e-15, look)

        look()
        return await later

    assert 3600 < loop.run_until_complete(main()) < 3600.1


def test_callbacks_of_one_process_are_fifo_and_processes_interleave_by_seed():
    def order(seed):
        loop = SimLoop(random.Random(seed))
        seen = []
        a, b = Process("a", 1), Process("b", 1)
        for n in range(20):
            loop.call_in(a, 0, seen.append, ("a", n))
            loop.call_in(b, 0, seen.append, ("b", n))
        loop.run_until_complete(asyncio.sleep(1))
        loop.close()
        for name in "ab":
            assert [n for who, n in seen if who == name] == list(range(20))
        return seen

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(5)}) > 1


def test_a_killed_process_runs_nothing_more_not_even_finally(loop):
    seen = []
    process = Process("n", 1)

    async def work():
        try:
            await asyncio.sleep(10)
            seen.append("woke")
        finally:
            seen.append("finally")

    async def main():
        loop.spawn(process, work())
        await asyncio.sleep(1)
        loop.kill(process)
        await asyncio.sleep(100)

    loop.run_until_complete(main())
    assert seen == []
    with pytest.raises(Killed):
        process.fence()
    loop.bury()
    assert seen == ["finally"]


def test_tasks_inherit_their_process(loop):
    process = Process("n", 1)
    seen = []

    async def child():
        seen.append(CURRENT.get())

    async def parent():
        await asyncio.create_task(child())

    async def main():
        await loop.spawn(process, parent())

    loop.run_until_complete(main())
    assert seen == [process]


def test_a_paused_process_catches_up_when_it_resumes(loop):
    process = Process("n", 1)
    seen = []

    async def ticks():
        while True:
            await asyncio.sleep(1)
            seen.append(loop.time())

    async def main():
        loop.spawn(process, ticks())
        await asyncio.sleep(2.5)
        loop.pause(process)
        await asyncio.sleep(10)
        assert seen == [1, 2]
        loop.resume(process)
        await asyncio.sleep(0.1)
        assert seen == [1, 2, 12.5]
        loop.kill(process)

    loop.run_until_complete(main())
    loop.bury()


def test_a_run_away_is_reported(loop):
    def spin():
        loop.call_soon(spin)

    loop.call_soon(spin)
    with pytest.raises(SimulationError, match="run-away"):
        loop.run_until_complete(asyncio.sleep(1))


def test_waiting_for_nothing_is_reported(loop):
    async def forever():
        await loop.create_future()

    with pytest.raises(SimulationError, match="deadlock"):
        loop.run_until_complete(forever())


def test_threads_are_refused(loop):
    async def main():
        await asyncio.to_thread(print)

    with pytest.raises(SimulationError, match="thread"):
        loop.run_until_complete(main())


def test_a_pool_call_happens_even_when_its_caller_gave_up(loop):
    class Slow:
        def latency(self):
            return 1.0, 1.0

        def hold(self, resume):
            return False

    process = Process("n", 1)
    seen = []

    async def caller(pool):
        try:
            await asyncio.wait_for(pool.run(seen.append, "written"), 0.5)
        except TimeoutError:
            seen.append("gave up")

    async def main():
        await loop.spawn(process, caller(SimPool(loop, process, Slow())))
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert seen == ["gave up", "written"]


def test_a_pool_keeps_the_order_of_its_calls(loop):
    rng = random.Random(5)

    class Jittery:
        def latency(self):
            return rng.random(), rng.random()

        def hold(self, resume):
            return False

    process = Process("n", 1)
    seen = []

    async def main():
        pool = SimPool(loop, process, Jittery())
        await asyncio.gather(*(loop.spawn(process, pool.run(seen.append, n)) for n in range(10)))

    loop.run_until_complete(main())
    assert seen == list(range(10))


def test_a_pool_raises_what_the_call_raised(loop):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.run_until_complete(SimPool(loop, loop.root).run(fail))


def test_a_clock_drifts_and_jumps_but_never_goes_back(loop):
    clock = SimClock(loop, rate_error=0.01)

    async def main():
        await asyncio.sleep(100)
        assert clock.monotonic() == pytest.approx(101)
        clock.set_rate(-0.01)
        assert clock.monotonic() == pytest.approx(101)
        clock.jump(5)
        await asyncio.sleep(100)
        assert clock.monotonic() == pytest.approx(101 + 5 + 99)

    loop.run_until_complete(main())
    with pytest.raises(ValueError, match="never goes back"):
        clock.jump(-1)


def test_a_pass_of_the_garbage_collector_is_nobodys_stall():
    found = []
    meter = StallMeter(lambda name, seconds: found.append(name), limit=0.02)
    kept = [{n: n} for n in range(1_000_000)]
    meter.start()
    try:
        meter.run(SimpleNamespace(_run=gc.collect))
        assert not found
        meter.run(SimpleNamespace(_run=lambda: sum(len(one) for one in kept)))
        assert len(found) == 1
    finally:
        meter.stop()


def test_a_jump_of_the_clock_is_nobodys_stall(monkeypatch):
    found = []
    meter = StallMeter(lambda name, seconds: found.append(name), limit=0.02)
    told = iter([10.0, 10.5])
    meter.start()
    try:
        with monkeypatch.context() as jumping:
            jumping.setattr("proof.sim.stalls.time.thread_time", lambda: next(told))
            meter.run(SimpleNamespace(_run=lambda: None))
    finally:
        meter.stop()
    assert not found and meter.longest == 0.5


@pytest.mark.parametrize("killed_before", [False, True])
def test_a_task_that_never_began_is_buried_with_its_process(loop, killed_before):
    """What a process that is dead by then is still given was left to the garbage collector, which complains."""
    processes, ran = [Process("a", 1)], []

    async def work():
        ran.append(1)

    def start():
        process = processes.pop()
        if killed_before:
            loop.kill(process)
        loop.spawn(process, work())
        if not killed_before:
            loop.kill(process)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        loop.call_soon(start)
        loop.run_until_complete(asyncio.sleep(1))
        loop.bury()
        gc.collect()
    assert not ran and not [str(one.message) for one in told]
