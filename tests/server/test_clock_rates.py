"""What a node knows of the rate of its own clock, by minutes of the others'."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from catalog.catalog_util import topology
from needle.base.errors import ConnectionLost
from needle.protocol import calls
from needle.protocol.probe_calls import LOAD, Facts, LoadAnswer
from needle.server.machine.clock_rates import KEPT, WINDOW_SECONDS, ClockRates
from needle.server.upkeep import health
from needle.server.upkeep.health import HealthWatch


def load(node: str, at: float, life: int = 1) -> LoadAnswer:
    return LoadAnswer(node, at, life, Facts(), {})


def watch(rates: dict[str, float], mine: str, seconds: float, took: float = 0.01, life: Any = None) -> ClockRates:
    """After so many seconds of a right clock, a look every five. rates: of each node's clock."""
    made = ClockRates(mine, 0.001)
    for second in range(0, int(seconds) + 1, 5):
        loads = {
            node: load(node, 1000 + second * rate, 1 if life is None else life(second)) for node, rate in rates.items()
        }
        at = 50 + second * rates[mine]
        made.note(at, loads, dict.fromkeys(loads, (at - took / 2, at + took / 2)))
    return made


CLOCKS = {"a": 1.0, "b": 1.0, "c": 1.02}


@pytest.mark.parametrize(("mine", "rate"), [("a", 0.0), ("b", 0.0), ("c", 0.0196)])
def test_the_one_that_is_off_says_so(mine: str, rate: float) -> None:
    told = watch(CLOCKS, mine, 320).levels(50 + 320 * CLOCKS[mine])
    assert told is not None
    assert told.rate == pytest.approx(rate, abs=1e-4) and told.error < 1e-4 and told.error_max == 0.001


@pytest.mark.parametrize(("mine", "rate"), [("a", 0.0), ("b", 0.0), ("c", 0.0196)])
def test_it_is_told_after_a_minute(mine: str, rate: float) -> None:
    told = watch(CLOCKS, mine, 70).levels(50 + 70 * CLOCKS[mine])
    assert told is not None
    assert told.rate == pytest.approx(rate, abs=1e-3) and told.error < 1e-3


@pytest.mark.parametrize("jump", [10, 40, 55])
def test_a_clock_that_was_put_on_once_is_not_told_of_for_that(jump: int) -> None:
    """As that of a virtual machine that stood still for a tenth of a second."""
    made = ClockRates("a", 0.001)
    for second in range(0, 75, 5):
        at = 50 + second + (0.1 if second >= jump else 0.0)
        loads = {node: load(node, 1000.0 + second) for node in ("a", "b", "c")}
        made.note(at, loads, dict.fromkeys(loads, (at - 0.001, at + 0.001)))
    told = made.levels(50.1 + 70)
    assert told is not None and abs(told.rate) < 1e-6


def test_of_less_than_a_minute_nothing_is_told() -> None:
    assert watch(CLOCKS, "a", 55).levels(50 + 55) is None
    assert ClockRates("a", 0.001).levels(1e6) is None
    assert watch({"a": 1.0}, "a", 400).levels(450) is None, "it has nobody to compare itself with"


def test_a_node_that_was_restarted_is_not_compared_with_its_former_life() -> None:
    rates = watch({"a": 1.0, "b": 1.0}, "a", 400, life=lambda second: 1 if second < 200 else 2)
    assert rates.levels(450) is None


def test_slow_answers_make_it_uncertain() -> None:
    told = watch(CLOCKS, "c", 320, took=3.0).levels(50 + 320 * 1.02)
    assert told is not None and told.error == pytest.approx(3.0 / WINDOW_SECONDS, rel=0.1)


def test_what_is_kept_is_bounded() -> None:
    assert len(watch(CLOCKS, "a", 4000)._looks) <= KEPT


async def test_it_is_told_while_the_cluster_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same calls as the dashboard's history."""
    now, turns, silent = topology(), 0, 0.0
    told = asyncio.Event()
    monkeypatch.setattr(health, "LOOK_SECONDS", 0.0)

    class Clock:
        def monotonic(self) -> float:
            return 50 + turns * 20 * 1.02 + silent

        def wall(self) -> float:
            return 1e9 + turns * 20

    class Caller:
        """node-3 is silent, and would make all readings uncertain if they were one."""

        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            nonlocal turns, silent
            if method == LOAD:
                node = next(name for name, at in now.addresses().items() if at == address)
                if node == "node-3":
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    silent += 3.0
                    raise ConnectionLost("in vain")
                if node == "node-1":
                    turns += 1
                    if turns > 20:
                        told.set()
                return calls.encode(load(node, 1000.0 + turns * 20 + silent))
            raise ConnectionLost("no replica answers")

    rates = ClockRates("node-1", 0.001)
    caller: Any = Caller()
    running = asyncio.create_task(HealthWatch(caller, lambda: now, Clock(), rates).run())
    await asyncio.wait([running, asyncio.create_task(told.wait())], return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    found = rates.levels(Clock().monotonic())
    assert found is not None and found.rate > 0.01 and found.error < 0.001
